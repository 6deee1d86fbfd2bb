"""``metrics.jsonl``: everything a run reports, one JSON object per line, written while it runs."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from parm_mlx.files import disk_errors
from parm_mlx.outputs import write_file
from parm_mlx.training.report import ResumeRecord, TrainRecord, ValidRecord, as_metrics, from_metrics

METRICS_FILE = "metrics.jsonl"
Record = TrainRecord | ValidRecord | ResumeRecord


class History:
    """What a run has reported, in memory and in a file that grows with it.

    Args:
        path: The file; None where another process writes it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[Record] = []

    def begin(self) -> None:
        """Makes the file hold exactly the records so far."""
        if self.path:
            write_file(self.path, map(_line, self.records))

    def add(self, record: Record) -> None:
        """Adds a record, which others can read at once.

        Raises:
            RunError: The disk is full or failed.
        """
        self.records.append(record)
        if self.path is None:
            return
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    @property
    def validated_at(self) -> int | None:
        """The step of the last validation."""
        return next((record.step for record in reversed(self.records) if isinstance(record, ValidRecord)), None)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss; the adapter before the first step does not count."""
        losses = {record.step: record.loss for record in self.records if isinstance(record, ValidRecord)}
        found = [step for step, loss in losses.items() if step > 0 and math.isfinite(loss)]
        return min(found, key=lambda step: losses[step]) if found else None


def write_metrics(path: Path, records: Iterable[Record]) -> None:
    """Writes all records into a new file.

    Raises:
        RunError: The disk is full or failed.
    """
    with disk_errors(path):
        path.write_text("".join(map(_line, records)), encoding="utf-8")


def read_metrics(path: Path) -> list[Record]:
    """Reads all records.

    Raises:
        OSError: The file cannot be read.
    """
    return [from_metrics(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _line(record: Record) -> str:
    return json.dumps(as_metrics(record)) + "\n"
