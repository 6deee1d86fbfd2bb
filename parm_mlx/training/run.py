"""A training run: from settings to an adapter directory, however it ends."""

import io
import json
import signal
import tempfile
import zipfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from parm_mlx.data.sources import find_files
from parm_mlx.distributed import Group, join
from parm_mlx.errors import ConfigError, LostError, OutputError, ParmError
from parm_mlx.files import expanded, flush
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.machine import keep_freed_memory
from parm_mlx.outputs import check_apart, check_new, new_directory, update
from parm_mlx.pblora.adapter import CONFIG_FILE, adapter_tensors, read_config, set_adapter_tensors
from parm_mlx.training import memory
from parm_mlx.training.card import CARD_FILE, card
from parm_mlx.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    changes_since,
    check_settings,
    models_of,
    read_checkpoint,
    settings_of,
)
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.curves import add_picture
from parm_mlx.training.logging import METRICS_FILE, MetricsLog, Record, as_metrics, check_trackers, read_metrics
from parm_mlx.training.progress import Progress
from parm_mlx.training.strength import propose_beta
from parm_mlx.training.trainer import Trainer

FINISHING = 4 * 3600.0  # seconds that the others wait while the main process measures and writes the result


@dataclass(frozen=True)
class TrainResult:
    """The end of a run.

    Attributes:
        out: The adapter directory; when a signal ended the run, its last checkpoint, which is one too.
        steps: Steps done.
        signal: The signal that ended the run early: SIGINT, SIGTERM or None.
        records: Everything that was reported, in order.
        distance: How far apart the corners are, :func:`parm_mlx.training.response_logprobs.corner_distance`; None where
            it was not measured.
        rank: Rank of this process among those that trained together; only process 0 has written ``out``.
    """

    out: Path
    steps: int
    signal: int | None
    records: tuple[Record, ...]
    rank: int = 0
    distance: float | None = None

    @property
    def interrupted(self) -> bool:
        """True if the run has steps left."""
        return self.signal is not None

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The last report (``"train"``) and the last validation (``"valid"``), as ``metrics.jsonl`` holds them."""
        return {line["kind"]: line for line in map(as_metrics, self.records)}


def train(
    config: TrainConfig | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    resume_anyway: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains a PARM and writes its adapter directory, with ``metrics.jsonl`` and the curves as a picture in it.

    All input is checked before the first step. Checkpoints and the growing ``metrics.jsonl`` lie in
    ``OUT.checkpoints`` until the run is done; the best checkpoint stays if it is not the result. With ``resume``, a run
    that ended early goes on from its newest checkpoint and gives the same adapter, bit for bit (on a CPU). Ctrl-C and
    SIGTERM end it after the step in progress and save a checkpoint; before the first step they raise KeyboardInterrupt.

    Under ``mlx.launch``, the processes share every batch; the first one alone writes and reports. When one is lost, the
    others end, and the first one saves a checkpoint.

    Example:
        >>> result = parm_mlx.train(model="llama", data="pairs.jsonl", out="my-parm", iters=200)
        >>> result.metrics["valid"]["loss"]

    Args:
        config: The settings; or they are given by name.
        force: Replace an adapter at ``out``, and drop checkpoints of an earlier run.
        resume: Go on from the newest checkpoint; without any, start from the beginning.
        resume_anyway: The same, also where data or models have changed; the records say so.
        progress: The listener; by default nothing is shown.
        **settings: The fields of :class:`parm_mlx.training.config.TrainConfig`: ``model``, ``data``, ``out``, …

    Raises:
        InputError: Settings, data, model, checkpoints or output cannot be used; nothing has been trained.
        RunError: The loss is not finite, or something cannot be written; the checkpoints stay.
        LostError: Another process is gone; the last checkpoint is named.
        QuietError: The main process reports the error.
    """
    if config is not None and settings:
        raise ConfigError(f"a config and settings by name are both given: {', '.join(settings)}")
    config = config or TrainConfig(**settings)
    keep_freed_memory()
    group = join()
    if progress is None or not group.main:
        progress = Progress()
    out = expanded(config.out)
    folder = CheckpointFolder(out, config.keep_checkpoints)
    with group.reported_once(), ExitStack() as held:
        with group.agreed():
            begun = None
            if group.main:
                begun = _begin(config, folder, force, resume or resume_anyway, progress, held)
        begun = _broadcast(begun, out, group, held)
        if isinstance(begun, TrainResult):
            return begun
        with group.agreed():
            trainer = Trainer(config, group, progress, folder, begun, resume_anyway)
        group.check_same(trainer.facts())
        with stop_on_interrupt(signal.SIGINT, signal.SIGTERM) as stop:
            stopped = group.watch(stop)
            try:
                trainer.loop(stopped)
                if not trainer.complete:
                    return _interrupted(trainer, stopped.signal)
                distance = None
                with group.agreed(patience=FINISHING):
                    if group.main:
                        distance = _finish(trainer, out, force)
            except LostError as lost:
                raise trainer.rescue(lost) from lost
    return TrainResult(out, trainer.done, None, tuple(trainer.log.records), group.rank, distance)


def _begin(
    config: TrainConfig, folder: CheckpointFolder, force: bool, resume: bool, progress: Progress, held: ExitStack
) -> TrainResult | Checkpoint | None:
    """Checks and holds the output; returns the checkpoint to go on from, or the result if nothing is left to do."""
    check_trackers(config.report_to or ())
    out, reads = expanded(config.out), _reads(config)
    if not resume:
        check_new(out, force, reads)
    check_apart(folder.path, reads)
    held.enter_context(folder.locked())
    if not resume:
        check_new(out, force, reads)  # again: a run that had the lock may have written it
        if not force:
            folder.check_unused()
        return None
    checkpoint = folder.newest(progress.note)
    if result := _finished(config, out, folder, checkpoint, progress):
        return result
    check_new(out, force, reads)
    if checkpoint:
        check_settings(checkpoint.state["settings"], config, checkpoint.path)
    else:
        progress.note(f"no checkpoint in {folder.path}: starting from the beginning")
    return checkpoint


def _reads(config: TrainConfig) -> list[str | None]:
    return [config.model, config.data, config.start_from, *(spec.partition("=")[2] for spec in config.reward or ())]


def _broadcast(
    begun: TrainResult | Checkpoint | None, out: Path, group: Group, held: ExitStack
) -> TrainResult | Checkpoint | None:
    """Gives every process what the main one begins with; a checkpoint is copied, for as long as ``held`` is open."""
    message = b""
    if isinstance(begun, TrainResult):
        message = str(begun.steps).encode()
    elif begun and group.size > 1:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in begun.path.iterdir():
                archive.write(file, file.name)
        message = packed.getvalue()
    message = group.broadcast(message)
    if group.main or not message:
        return begun
    if message.isdigit():
        return TrainResult(out, int(message), None, (), group.rank)
    directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="parm-mlx-")))
    with zipfile.ZipFile(io.BytesIO(message)) as archive:
        archive.extractall(directory)
    return read_checkpoint(directory)


def _interrupted(trainer: Trainer, number: int | None) -> TrainResult:
    """Saves a checkpoint, with the report of a finished run; before the first step nothing is kept."""
    if trainer.done == 0:
        if trainer.group.main:
            trainer.folder.clear()
        raise KeyboardInterrupt
    path = trainer.save_checkpoint()
    if trainer.group.main:
        with update(path) as directory:
            _add_report(trainer, directory)
    return TrainResult(path, trainer.done, number, tuple(trainer.log.records), trainer.group.rank)


def _finish(trainer: Trainer, out: Path, force: bool) -> float | None:
    """Writes the result and removes the checkpoints, and returns how far apart the corners of the result are.

    Where something has appeared at ``out``, the checkpoints stay.
    """
    try:
        with new_directory(out, force, _reads(trainer.config)) as directory:
            step, tensors = trainer.result()
            last = adapter_tensors(trainer.model)
            set_adapter_tensors(trainer.model, tensors)
            distance = trainer.distance()
            held_out = trainer.progress.track(trainer.held_out, "proposing a beta")
            beta = propose_beta(trainer.model, held_out, len(trainer.objectives))
            set_adapter_tensors(trainer.model, last)
            if beta is not None:
                trainer.progress.note(f"beta {beta:g} is proposed by the held-out pairs, and the adapter's default")
            trainer.write_adapter(directory, out, step, tensors, beta)
            _add_report(trainer, directory)
            text = card(out.name, read_config(directory), trainer.log.records, distance)
            (directory / CARD_FILE).write_text(text, encoding="utf-8")
            flush(*directory.iterdir(), directory)
    except OutputError as error:
        hint = "move it away; the same command with --resume then writes the adapter there"
        raise OutputError(f"{error}; the trained adapter is {trainer.folder.last()}", hint=hint) from None
    flush(out.parent)
    _remove_checkpoints(trainer.folder, trainer.log, step, trainer.progress)
    return distance


def _add_report(trainer: Trainer, directory: Path) -> None:
    """Draws the curves beside the metrics, and reports the memory that was used."""
    add_picture(directory, trainer.log.records, trainer.progress.note)
    trainer.progress.note(f"memory: {memory.gigabytes(mx.get_peak_memory())} at the peak")


def _finished(
    config: TrainConfig, out: Path, folder: CheckpointFolder, newest: Checkpoint | None, progress: Progress
) -> TrainResult | None:
    """The result, if the adapter at ``out`` is that of these settings, data and models; the checkpoints go now.

    Data that cannot be read any more count as those of the checkpoint, or as unchanged.
    """
    log = MetricsLog(None)
    try:
        training = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))["training"]
        same = all(training["settings"].get(name) == value for name, value in settings_of(config).items())
        if not same:
            return None
        data = newest.state["data"] if newest else training["data"]
        with suppress(ParmError):
            files = find_files(config.data, config.objectives)
            data = [{"file": file.name, **file.identity()} for file in files if file.split != "test"]
        if any(changes_since(training, data, models_of(config))):
            return None
        log.records = read_metrics(out / METRICS_FILE)
        wanted = log.best_step if config.save == "best" else None
        if training["steps_done"] != (wanted or training["steps"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    progress.note(f"{out} is finished already")
    _remove_checkpoints(folder, log, training["steps_done"], progress)
    return TrainResult(out, training["steps"], None, tuple(log.records))


def _remove_checkpoints(folder: CheckpointFolder, log: MetricsLog, step: int, progress: Progress) -> None:
    """Removes the checkpoints, all but the best one if the result is of another step."""
    best = log.best_step
    folder.clear(keep=None if best == step else best)
    if best in folder.steps():
        progress.note(f"validation was best at step {best}: that adapter stays at {folder.at(best)}; see --save")
