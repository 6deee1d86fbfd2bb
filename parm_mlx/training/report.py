"""What a training run tells: records for ``metrics.jsonl``, and a base class for whoever shows them."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from parm_mlx.training.train_step import StepResult
from parm_mlx.training.validation import GridPoint

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Counted(Protocol[T_co]):
    """Items whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


@dataclass(frozen=True)
class TrainRecord:
    """The steps since the last report.

    Attributes:
        step: Steps done.
        loss: Mean total loss.
        objective_loss: Mean loss of each objective, not weighted by α.
        accuracy: For each objective, the share of pairs whose preferred response is the more likely one.
        grad_norm: Mean gradient norm before clipping.
        learning_rate: Of the last step.
        tokens_per_second: Tokens trained on, without padding.
        padding: Share of the positions that the model read that was padding.
        pairs_per_second: Pairs trained on.
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
    """One validation: every point of the fixed α grid."""

    step: int
    objectives: tuple[str, ...]
    grid: list[GridPoint]

    @property
    def loss(self) -> float:
        """Mean total loss over the grid."""
        return sum(point.loss for point in self.grid) / len(self.grid)


@dataclass(frozen=True)
class ResumeRecord:
    """The run went on with other data or models than it began with.

    Attributes:
        step: Steps done until then.
        changed: The names of what had changed.
    """

    step: int
    changed: tuple[str, ...]


class Progress:
    """Shows a training run to somebody; this one shows nothing, and is what others build on."""

    def note(self, message: str) -> None:
        """Something the user should know."""

    def warn(self, message: str) -> None:
        """Something the user should act on."""
        self.note(message)

    def track(self, items: Counted[T], label: str) -> Iterable[T]:
        """Passes on the items of a piece of work that may take a while."""
        return items

    def begin(self, steps: int, done: int = 0) -> None:
        """Training starts, or goes on after ``done`` steps."""

    def advance(self, step: int) -> None:
        """``step`` steps are done."""

    def report(self, record: TrainRecord) -> None:
        """News of the training, once per ``steps_per_report``."""

    def validated(self, record: ValidRecord) -> None:
        """A validation is done."""

    def end(self) -> None:
        """Training is over, whether well or not."""


class Meter:
    """Adds up steps until the next report.

    Args:
        objectives: The k objectives.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = objectives
        self.reset()

    def reset(self) -> None:
        """Starts the next stretch of steps."""
        k = len(self.objectives)
        self.steps = self.tokens = self.pairs = self.inputs = self.cells = 0
        self.loss = self.norm = 0.0
        self.sums = np.zeros((3, k))
        self.seconds = 0.0
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock, for a validation."""
        self.seconds += time.perf_counter() - self._since

    def resume(self) -> None:
        """Starts the clock again."""
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
        """What has been added up, as plain values."""
        self.pause()
        self.resume()
        names = ("steps", "tokens", "pairs", "inputs", "cells", "loss", "norm", "seconds")
        values = {name: getattr(self, name) for name in names}
        return {**values, "sums": self.sums.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what :meth:`state` gave."""
        for name, value in state.items():
            setattr(self, name, np.array(value) if name == "sums" else value)

    def record(self, step: int, learning_rate: float) -> TrainRecord:
        """The record of the steps since the last reset."""
        self.pause()
        self.resume()
        losses, correct, labelled = self.sums
        count = np.where(labelled > 0, labelled, 1)
        return TrainRecord(
            step=step,
            loss=self.loss / self.steps,
            objective_loss=dict(zip(self.objectives, (losses / count).tolist(), strict=True)),
            accuracy=dict(zip(self.objectives, (correct / count).tolist(), strict=True)),
            grad_norm=self.norm / self.steps,
            learning_rate=learning_rate,
            tokens_per_second=self.tokens / self.seconds,
            padding=1 - self.inputs / self.cells,
            pairs_per_second=self.pairs / self.seconds,
            peak_memory_gb=mx.get_peak_memory() / 1e9,
        )


def as_metrics(record: TrainRecord | ValidRecord | ResumeRecord) -> dict[str, Any]:
    """A record as one line of ``metrics.jsonl``."""
    if isinstance(record, ResumeRecord):
        return {"kind": "resumed with changes", **asdict(record)}
    if isinstance(record, TrainRecord):
        return {"kind": "train", **asdict(record)}
    grid = [
        {
            "alpha": list(point.alpha),
            "loss": point.loss,
            "objective_loss": dict(zip(record.objectives, point.objective_loss, strict=True)),
            "accuracy": dict(zip(record.objectives, point.accuracy, strict=True)),
        }
        for point in record.grid
    ]
    return {"kind": "valid", "step": record.step, "loss": record.loss, "grid": grid}


def from_metrics(line: dict[str, Any]) -> TrainRecord | ValidRecord | ResumeRecord:
    """The inverse of :func:`as_metrics`."""
    if line["kind"] == "resumed with changes":
        return ResumeRecord(line["step"], tuple(line["changed"]))
    if line["kind"] == "train":
        return TrainRecord(**{name: value for name, value in line.items() if name != "kind"})
    grid = [
        GridPoint(
            alpha=tuple(point["alpha"]),
            loss=point["loss"],
            objective_loss=tuple(point["objective_loss"].values()),
            accuracy=tuple(point["accuracy"].values()),
        )
        for point in line["grid"]
    ]
    return ValidRecord(line["step"], tuple(line["grid"][0]["accuracy"]), grid)
