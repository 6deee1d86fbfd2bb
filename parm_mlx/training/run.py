"""A training run: from settings to an adapter directory, whatever ends it on the way."""

import signal
from dataclasses import dataclass
from pathlib import Path

from parm_mlx.files import check_new, new_directory, recover
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.malloc import keep_freed_memory
from parm_mlx.training.checkpoint import Checkpoint, CheckpointFolder
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.metrics import METRICS_FILE, History, Record, read_metrics
from parm_mlx.training.picture import add_picture
from parm_mlx.training.report import Progress
from parm_mlx.training.resume import check_settings, finished_training
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
    """

    out: Path
    steps: int
    signal: int | None
    records: tuple[Record, ...]

    @property
    def interrupted(self) -> bool:
        """Whether the run has steps left."""
        return self.signal is not None


def train(
    config: TrainConfig, *, force: bool = False, resume: bool = False, progress: Progress | None = None
) -> TrainResult:
    """Trains a PARM and writes its adapter directory, with ``metrics.jsonl`` and the curves as a picture in it.

    All input is checked before the first step. Checkpoints and the growing ``metrics.jsonl`` stand in
    ``OUT.checkpoints``, which goes when the run is done, all but the best checkpoint if that is not the result. A run
    that ended early, however it did, goes on from its newest checkpoint with ``resume`` and gives the same adapter, bit
    for bit (on a CPU). Ctrl-C and SIGTERM end it after the step in progress and save a checkpoint; before the first
    step that is a plain ``KeyboardInterrupt``.

    Args:
        config: The settings.
        force: Whether an adapter at ``config.out`` may be replaced, and checkpoints of an earlier run be dropped.
        resume: Go on from the newest checkpoint; without any, start from the beginning.
        progress: Who is told about the run.

    Returns:
        How the run ended.

    Raises:
        InputError: Settings, data, model, checkpoints or output cannot be used; nothing has been trained.
        RunError: The loss is not finite, or something cannot be written; the checkpoints stay.
    """
    out = Path(config.out).expanduser()
    progress = progress or Progress()
    if config.report_to:
        check_trackers(config.report_to)
        progress = TrackedProgress(progress, config)
    keep_freed_memory()
    folder = CheckpointFolder(out, config.keep_checkpoints)
    if not resume:
        check_new(out, force)
        if not force:
            folder.check_unused()
    with folder.locked():
        checkpoint = None
        if resume:
            recover(out)
            checkpoint = folder.newest(progress.note)
            if result := _finished(config, out, folder, checkpoint, progress):
                return result
            check_new(out, force)
            if checkpoint:
                check_settings(checkpoint.state["settings"], config, checkpoint.path)
            else:
                progress.note(f"no checkpoint in {folder.path}: starting from the beginning")
        run = Trainer(config, progress, folder, checkpoint)
        with stop_on_interrupt(signal.SIGINT, signal.SIGTERM) as stopped:
            run.loop(stopped)
            records = run.history.records
            if not run.complete:
                if run.done == 0:
                    folder.clear()
                    raise KeyboardInterrupt
                path = run.save_checkpoint()
                add_picture(path, records, progress.note)
                progress.note(run.footprint.measured())
                return TrainResult(path, run.done, stopped.signal, tuple(records))
            with new_directory(out, force) as directory:
                step, tensors = run.result()
                run.write_adapter(directory, out, step, tensors)
                add_picture(directory, records, progress.note)
            progress.note(run.footprint.measured())
            _tidy(folder, run.history, step, progress)
    return TrainResult(out, run.done, None, tuple(records))


def _finished(
    config: TrainConfig, out: Path, folder: CheckpointFolder, newest: Checkpoint | None, progress: Progress
) -> TrainResult | None:
    """The result of a run that had written its adapter before it was ended; the checkpoints go now."""
    training = finished_training(out, config)
    if training is None or (newest and newest.state["data"] != training["data"]):
        return None
    history = History(out / METRICS_FILE)
    history.records = read_metrics(history.path)
    progress.note(f"{out} is finished already")
    _tidy(folder, history, training["steps_done"], progress)
    return TrainResult(out, training["steps"], None, tuple(history.records))


def _tidy(folder: CheckpointFolder, history: History, step: int, progress: Progress) -> None:
    """Removes the checkpoints, but not the best one when the result is of another step."""
    best = history.best_step
    folder.clear(keep=None if best == step else best)
    if best in folder.steps():
        progress.note(f"validation was best at step {best}: that adapter stays at {folder.at(best)}; see --save")
