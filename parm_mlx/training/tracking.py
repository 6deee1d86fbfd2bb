"""Reports to experiment trackers (wandb, swanlab), through the callbacks of mlx-lm."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from parm_mlx.errors import ConfigError, RunError, first_line
from parm_mlx.files import disk_errors
from parm_mlx.mlxlm import TrainingCallback, reporting_callback
from parm_mlx.preference import format_alpha
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.report import Counted, Progress, TrainRecord, ValidRecord

T = TypeVar("T")


def check_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are there, without importing them.

    Raises:
        ConfigError: Some are not.
    """
    if missing := [name for name in names if find_spec(name) is None]:
        listed = " ".join(missing)
        raise ConfigError(f"--report-to {','.join(names)}: {listed} not installed", hint=f"pip install {listed}")


class TrackedProgress(Progress):
    """Passes on everything to another progress, and the numbers to trackers, which are started when training begins.

    Args:
        progress: Who shows the run.
        config: The settings; ``report_to`` names the trackers.
    """

    def __init__(self, progress: Progress, config: TrainConfig) -> None:
        self.progress, self.config = progress, config
        self.callback: TrainingCallback | None = None

    def begin(self, steps: int, done: int = 0) -> None:
        """Starts the trackers.

        Raises:
            RunError: One does not start.
        """
        out = Path(self.config.out).expanduser()
        directory = out.with_name(f"{out.name}.tracking") / out.name
        trackers = ",".join(self.config.report_to or ())
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            self.callback = reporting_callback(
                trackers,
                project_name=self.config.project_name,
                log_dir=str(directory),
                config=self.config.to_dict(),
            )
        except Exception as error:  # each tracker has its own: no account, no network
            raise RunError(f"--report-to {trackers}: {first_line(error)}") from error
        self.progress.begin(steps, done)

    def report(self, record: TrainRecord) -> None:
        """Sends the numbers of the training, under mlx-lm's names where it has them."""
        if self.callback:
            self.callback.on_train_loss_report(train_numbers(record))
        self.progress.report(record)

    def validated(self, record: ValidRecord) -> None:
        """Sends the numbers of a validation."""
        if self.callback:
            self.callback.on_val_loss_report(valid_numbers(record))
        self.progress.validated(record)

    def warn(self, message: str) -> None:
        """Passes on a warning."""
        self.progress.warn(message)

    def note(self, message: str) -> None:
        """Passes on a note."""
        self.progress.note(message)

    def track(self, items: Counted[T], label: str) -> Iterable[T]:
        """Passes on items."""
        return self.progress.track(items, label)

    def advance(self, step: int) -> None:
        """Passes on a step."""
        self.progress.advance(step)

    def end(self) -> None:
        """Passes on the end."""
        self.progress.end()


def train_numbers(record: TrainRecord) -> dict[str, Any]:
    """A report as mlx-lm's callbacks take it; ``iteration`` is the step."""
    return {
        "iteration": record.step,
        "train_loss": record.loss,
        "learning_rate": record.learning_rate,
        "tokens_per_second": record.tokens_per_second,
        "peak_memory": record.peak_memory_gb,
        "grad_norm": record.grad_norm,
        "padding": record.padding,
        **{f"train_loss/{name}": loss for name, loss in record.objective_loss.items()},
        **{f"train_accuracy/{name}": share for name, share in record.accuracy.items()},
    }


def valid_numbers(record: ValidRecord) -> dict[str, Any]:
    """A validation as mlx-lm's callbacks take it: the mean loss, and each accuracy at each grid point."""
    accuracies = {
        f"val_accuracy/{name} at {format_alpha(point.alpha, record.objectives)}": share
        for point in record.grid
        for name, share in zip(record.objectives, point.accuracy, strict=True)
    }
    return {"iteration": record.step, "val_loss": record.loss, **accuracies}
