"""The numbers of a training run: records, ``metrics.jsonl`` with one JSON object per line, and experiment trackers."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parm_mlx.errors import ConfigError, RunError, first_line
from parm_mlx.files import disk_errors, expanded
from parm_mlx.mlxlm import reporting_callback
from parm_mlx.outputs import write_file
from parm_mlx.preference import format_alpha
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.judge import CornerRecord
from parm_mlx.training.train_step import GridPoint, StepResult, by_objective

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainRecord:
    """Means over the steps since the last report.

    Attributes:
        step: Steps done.
        loss: Total loss.
        objective_loss: Loss of each objective, not weighted by α.
        accuracy: For each objective, the share of pairs whose preferred response is the more likely one.
        grad_norm: Before clipping.
        learning_rate: Of the last step.
        tokens_per_second: Without padding.
        padding: Share of padding in the positions that the model read.
        peak_memory_gb: Highest memory use of MLX so far, in GB (10⁹ bytes).
    """

    step: int
    loss: float
    objective_loss: dict[str, float]
    accuracy: dict[str, float]
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    padding: float
    pairs_per_second: float
    peak_memory_gb: float


@dataclass(frozen=True)
class ValidRecord:
    """One validation: every point of the fixed α grid, and their mean loss."""

    step: int
    loss: float
    grid: tuple[GridPoint, ...]

    @property
    def weighted_accuracy(self) -> float:
        """Accuracy of the objectives, weighted by α, as a mean over the grid."""
        points = (zip(point.alpha, point.accuracy.values(), strict=True) for point in self.grid)
        return sum(weight * share for point in points for weight, share in point) / len(self.grid)

    @property
    def corner_accuracy(self) -> dict[str, float]:
        """Accuracy of each objective where it alone has weight."""
        return {
            name: share
            for point in self.grid
            for weight, (name, share) in zip(point.alpha, point.accuracy.items(), strict=True)
            if weight == 1
        }


@dataclass(frozen=True)
class ResumeRecord:
    """The run went on after this step with other data or models, whose names are ``changed``."""

    step: int
    changed: tuple[str, ...]


Record = TrainRecord | ValidRecord | CornerRecord | ResumeRecord
KINDS: dict[str, type[Record]] = {
    "train": TrainRecord,
    "valid": ValidRecord,
    "corners": CornerRecord,
    "resumed with changes": ResumeRecord,
}


def as_metrics(record: Record) -> dict[str, Any]:
    """Returns a record as an object of ``metrics.jsonl``."""
    return {"kind": next(kind for kind, found in KINDS.items() if isinstance(record, found)), **asdict(record)}


def write_metrics(path: Path, records: Iterable[Record]) -> None:
    """Writes records into a new file."""
    with disk_errors(path):
        path.write_text("".join(map(_line, records)), encoding="utf-8")


def read_metrics(path: Path) -> list[Record]:
    """Reads the records of a file."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        kind = KINDS[fields.pop("kind")]
        if "grid" in fields:
            fields["grid"] = tuple(GridPoint(**{**point, "alpha": tuple(point["alpha"])}) for point in fields["grid"])
        if "changed" in fields:
            fields["changed"] = tuple(fields["changed"])
        records.append(kind(**fields))
    return records


def _line(record: Record) -> str:
    return json.dumps(as_metrics(record)) + "\n"


class MetricsLog:
    """The records of a run: in memory, in a file that grows with it, and on experiment trackers.

    Args:
        path: The file; None where another process writes it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[Record] = []
        self._tracker: Any = None

    def begin(self, config: TrainConfig) -> None:
        """Makes the file hold exactly the records so far, and starts the trackers of ``report_to``.

        Raises:
            RunError: A tracker does not start, or the file cannot be written.
        """
        if self.path is None:
            return
        write_file(self.path, map(_line, self.records))
        if config.report_to:
            out, trackers = expanded(config.out), ",".join(config.report_to)
            directory = out.with_name(f"{out.name}.tracking") / out.name
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            try:
                self._tracker = reporting_callback(trackers, config.project_name, str(directory), asdict(config))
            except Exception as error:  # each tracker has its own: no account, no network
                raise RunError(f"--report-to {trackers}: {first_line(error)}") from error

    def add(self, record: TrainRecord | ValidRecord | CornerRecord) -> None:
        """Adds a record, which others can read at once."""
        self.records.append(record)
        if self.path:
            with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        if self._tracker and isinstance(record, TrainRecord):
            self._tracker.on_train_loss_report(_tracked_report(record))
        elif self._tracker and isinstance(record, ValidRecord):
            self._tracker.on_val_loss_report(_tracked_validation(record))

    def last_step(self, kind: type[Record]) -> int | None:
        """The step of the last record of a kind."""
        return next((record.step for record in reversed(self.records) if isinstance(record, kind)), None)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss; the adapter before the first step does not count."""
        losses = {
            record.step: record.loss
            for record in self.records
            if isinstance(record, ValidRecord) and record.step > 0 and math.isfinite(record.loss)
        }
        return min(losses, key=lambda step: losses[step]) if losses else None


class Meter:
    """Adds up steps until the next report."""

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives, self._since = objectives, time.perf_counter()
        self.reset()

    def reset(self) -> None:
        """Begins a new report."""
        self.steps = self.tokens = self.pairs = self.inputs = self.cells = 0
        self.loss = self.norm = self.seconds = 0.0
        self.sums = np.zeros((3, len(self.objectives)))
        self.skip()

    def lap(self) -> None:
        """Counts the time since the last lap."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def skip(self) -> None:
        """Leaves out the time since the last lap, which was not spent on training."""
        self._since = time.perf_counter()

    def add(self, step: StepResult) -> None:
        """Adds a step."""
        self.steps += 1
        self.loss += step.loss
        self.norm += step.grad_norm
        self.sums += step.sums
        self.inputs += step.inputs
        self.cells += step.cells
        self.tokens += step.tokens
        self.pairs += step.pairs

    def state(self) -> dict[str, Any]:
        """The sums so far, as plain values."""
        self.lap()
        names = ("steps", "tokens", "pairs", "inputs", "cells", "loss", "norm", "seconds")
        return {**{name: getattr(self, name) for name in names}, "sums": self.sums.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from the sums of :meth:`state`."""
        for name, value in state.items():
            setattr(self, name, np.array(value) if name == "sums" else value)

    def record(self, step: int, learning_rate: float) -> TrainRecord:
        """Returns the record of the steps since the last reset."""
        self.lap()
        objective_loss, accuracy = by_objective(self.objectives, self.sums)
        return TrainRecord(
            step=step,
            loss=self.loss / self.steps,
            objective_loss=objective_loss,
            accuracy=accuracy,
            grad_norm=self.norm / self.steps,
            learning_rate=learning_rate,
            tokens_per_second=self.tokens / self.seconds,
            padding=1 - self.inputs / self.cells,
            pairs_per_second=self.pairs / self.seconds,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError where the package of a tracker (wandb, swanlab) is not installed; none is imported."""
    if missing := [name for name in names if find_spec(name) is None]:
        listed = " ".join(missing)
        raise ConfigError(f"--report-to {','.join(names)}: {listed} not installed", hint=f"pip install {listed}")


def _tracked_report(record: TrainRecord) -> dict[str, Any]:
    """A report under mlx-lm's names where it has them."""
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


def _tracked_validation(record: ValidRecord) -> dict[str, Any]:
    accuracies = {
        f"val_accuracy/{name} at {format_alpha(point.alpha, list(point.accuracy))}": share
        for point in record.grid
        for name, share in point.accuracy.items()
    }
    return {"iteration": record.step, "val_loss": record.loss, **accuracies}
