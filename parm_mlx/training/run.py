"""A training run: from settings to an adapter directory, whatever ends it on the way."""

import signal
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from parm_mlx.distributed import Group, join
from parm_mlx.errors import LostError, OutputError
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.machine import keep_freed_memory
from parm_mlx.outputs import check_apart, check_new, new_directory, update
from parm_mlx.training.checkpoint import Checkpoint, CheckpointFolder, pack_checkpoint, unpack_checkpoint
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.curves import add_picture
from parm_mlx.training.metrics import METRICS_FILE, History, Record, read_metrics
from parm_mlx.training.report import Progress
from parm_mlx.training.resume import check_settings, finished_training, models_of
from parm_mlx.training.tracking import TrackedProgress, check_trackers
from parm_mlx.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        out: The adapter directory; when a signal ended the run, its last checkpoint, which is one too.
        steps: Steps done.
        signal: The signal that ended the run early: SIGINT, SIGTERM or none.
        records: Everything that was reported, in order.
        rank: Number of this process among those that trained together; only process 0 has written ``out``.
    """

    out: Path
    steps: int
    signal: int | None
    records: tuple[Record, ...]
    rank: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether the run has steps left."""
        return self.signal is not None


def train(
    config: TrainConfig,
    *,
    force: bool = False,
    resume: bool = False,
    resume_anyway: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains a PARM and writes its adapter directory, with ``metrics.jsonl`` and the curves as a picture in it.

    All input is checked before the first step. Checkpoints and the growing ``metrics.jsonl`` stand in
    ``OUT.checkpoints``, which goes when the run is done, all but the best checkpoint if that is not the result. A run
    that ended early, however it did, goes on from its newest checkpoint with ``resume`` and gives the same adapter, bit
    for bit (on a CPU). Ctrl-C and SIGTERM end it after the step in progress and save a checkpoint; before the first
    step that is a plain ``KeyboardInterrupt``.

    Under ``mlx.launch``, the processes share every batch out among them; the first one alone writes and reports. When
    one is lost, the others end, and the first one saves a checkpoint.

    Args:
        config: The settings.
        force: Whether an adapter at ``config.out`` may be replaced, and checkpoints of an earlier run be dropped.
        resume: Go on from the newest checkpoint; without any, start from the beginning.
        resume_anyway: The same, also where data or models are not those that the run began with; the records say so.
        progress: Who is told about the run.

    Returns:
        How the run ended.

    Raises:
        InputError: Settings, data, model, checkpoints or output cannot be used; nothing has been trained.
        RunError: The loss is not finite, or something cannot be written; the checkpoints stay.
        LostError: Another process is gone; the last checkpoint is named.
        QuietError: The main process reports the error.
    """
    out = Path(config.out).expanduser()
    resume = resume or resume_anyway
    keep_freed_memory()
    group = join()
    if progress is None or not group.main:
        progress = Progress()
    folder = CheckpointFolder(out, config.keep_checkpoints)
    with group.reported_once(), ExitStack() as held:
        with group.agreed():
            if group.main and config.report_to:
                check_trackers(config.report_to)
                progress = TrackedProgress(progress, config)
            begun = _begin(config, folder, force, resume, progress, held) if group.main else None
        begun = _told(begun, out, group, held)
        if isinstance(begun, TrainResult):
            return begun
        with group.agreed():
            run = Trainer(config, progress, folder, begun, group, resume_anyway)
        group.check_same(run.facts())
        with stop_on_interrupt(signal.SIGINT, signal.SIGTERM) as stop:
            stopped = group.watch(stop)
            try:
                run.loop(stopped)
                records = tuple(run.history.records)
                if not run.complete:
                    if run.done > 0:
                        path = run.save_checkpoint()
                        if group.main:
                            with update(path) as directory:
                                _add_report(run, directory)
                        return TrainResult(path, run.done, stopped.signal, records, group.rank)
                    if group.main:
                        folder.clear()
                    raise KeyboardInterrupt
                with group.agreed():
                    if group.main:
                        _finish(run, out, force)
            except LostError as lost:
                raise run.rescue(lost) from lost
    return TrainResult(out, run.done, None, records, group.rank)


def _begin(
    config: TrainConfig, folder: CheckpointFolder, force: bool, resume: bool, progress: Progress, held: ExitStack
) -> "TrainResult | Checkpoint | None":
    """Checks the output and holds it: what to go on from, or the result if there is nothing left to do."""
    out, reads = Path(config.out).expanduser(), _reads(config)
    if not resume:
        check_new(out, force, reads)
    check_apart(folder.path, reads)
    held.enter_context(folder.locked())
    if not resume:
        check_new(out, force, reads)
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
    return [config.model, config.data, config.start_from]


def _told(
    begun: "TrainResult | Checkpoint | None", out: Path, group: Group, held: ExitStack
) -> "TrainResult | Checkpoint | None":
    """What the main process begins with, in every process; the others get a copy of the checkpoint for a while."""
    message = b""
    if isinstance(begun, TrainResult):
        message = str(begun.steps).encode()
    elif begun and group.size > 1:
        message = pack_checkpoint(begun.path)
    message = group.broadcast(message)
    if group.main or not message:
        return begun
    if message.isdigit():
        return TrainResult(out, int(message), None, (), group.rank)
    directory = held.enter_context(tempfile.TemporaryDirectory(prefix="parm-mlx-"))
    return unpack_checkpoint(message, Path(directory))


def _finish(run: Trainer, out: Path, force: bool) -> None:
    """Writes the result, and removes the checkpoints.

    Raises:
        OutputError: Something has appeared at ``out``; the checkpoints stay.
    """
    try:
        with new_directory(out, force, _reads(run.config)) as directory:
            step, tensors = run.result()
            run.write_adapter(directory, out, step, tensors)
            _add_report(run, directory)
    except OutputError as error:
        hint = "move it away; the same command with --resume then writes the adapter there"
        raise OutputError(f"{error}; the trained adapter is {run.folder.last()}", hint=hint) from None
    _tidy(run.folder, run.history, step, run.progress)


def _add_report(run: Trainer, directory: Path) -> None:
    """Draws the curves beside the metrics, and tells the memory that was used."""
    add_picture(directory, run.history.records, run.progress.note)
    run.progress.note(run.footprint.measured())


def _finished(
    config: TrainConfig, out: Path, folder: CheckpointFolder, newest: Checkpoint | None, progress: Progress
) -> TrainResult | None:
    """The result of a run that had written its adapter before it was ended; the checkpoints go now."""
    training = finished_training(out, config)
    if training is None or (newest and newest.state["data"] != training["data"]):
        return None
    if training.get("models") != models_of(config):
        return None
    history = History(None)
    history.records = read_metrics(out / METRICS_FILE)
    progress.note(f"{out} is finished already")
    _tidy(folder, history, training["steps_done"], progress)
    return TrainResult(out, training["steps"], None, tuple(history.records))


def _tidy(folder: CheckpointFolder, history: History, step: int, progress: Progress) -> None:
    """Removes the checkpoints, but not the best one when the result is of another step."""
    best = history.best_step
    folder.clear(keep=None if best == step else best)
    if best in folder.steps():
        progress.note(f"validation was best at step {best}: that adapter stays at {folder.at(best)}; see --save")
