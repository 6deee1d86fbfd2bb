import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from parm_mlx.outputs import mark
from parm_mlx.training.metrics import History, read_metrics
from parm_mlx.training.progress import ConsoleProgress
from parm_mlx.training.report import Meter, TrainRecord, ValidRecord
from parm_mlx.training.train_step import StepResult
from parm_mlx.training.validation import GridPoint

RECORD = TrainRecord(
    step=10,
    loss=0.693147,
    objective_loss={"long": 0.7, "short": 0.6},
    accuracy={"long": 0.5, "short": 0.925},
    grad_norm=1.0,
    learning_rate=1e-4,
    tokens_per_second=1234.5,
    padding=0.0625,
    pairs_per_second=8.0,
    peak_memory_gb=1.234,
)
VALID = ValidRecord(10, ("long", "short"), [GridPoint((0.7, 0.3), 0.5, (0.4, 0.6), (0.9, 0.25))])


def show(terminal: bool) -> str:
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, force_terminal=terminal, width=120, color_system=None))
    progress.note("a [note]")
    assert list(progress.track([1, 2], "tokenizing")) == [1, 2]
    progress.begin(20)
    progress.advance(10)
    progress.report(RECORD)
    assert list(progress.track([3], "validating")) == [3]
    progress.validated(VALID)
    progress.end()
    return stream.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    assert show(terminal=False).splitlines() == [
        "a [note]",
        "step 10/20  loss 0.6931  long 50%  short 92%  1234 tokens/s  6% padding  1.23 GB peak  0:00 left",
        "validation at step 10: loss 0.5000; accuracy",
        "  at long=0.7 short=0.3:  long 90%  short 25%",
    ]


def test_the_time_left_counts_the_steps_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 steps were done before; the 4 since took 40 s, so the 10 that are left take 100 s."""
    now = iter([0.0, 40.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=120))
    progress.begin(20, done=6)
    progress.report(RECORD)
    assert stream.getvalue().endswith("1:40 left\n")


def test_a_bar_on_a_terminal() -> None:
    shown = show(terminal=True)
    assert "10/20" in shown
    assert "tokenizing" in shown
    assert "loss 0.6931  long 50%  short 92%" in shown
    assert "at long=0.7 short=0.3:  long 90%  short 25%" in shown


def step(loss: float, norm: float, sums: list[list[float]], tokens: int, pairs: int) -> StepResult:
    return StepResult(loss, np.array(sums, np.float32), norm, 1e-3, pairs, tokens, inputs=tokens, cells=tokens + 10)


def test_a_meter_adds_up_steps() -> None:
    meter = Meter(("a", "b"))
    meter.add(step(loss=1.0, norm=2.0, sums=[[4.0, 1.0], [3, 0], [4, 2]], tokens=10, pairs=4))
    meter.add(step(loss=3.0, norm=4.0, sums=[[2.0, 0.0], [1, 0], [4, 0]], tokens=30, pairs=4))
    record = meter.record(2, 1e-3)
    assert (record.step, record.loss, record.grad_norm, record.learning_rate) == (2, 2.0, 3.0, 1e-3)
    assert record.objective_loss == pytest.approx({"a": 0.75, "b": 0.5})
    assert record.accuracy == pytest.approx({"a": 0.5, "b": 0.0})
    assert record.padding == pytest.approx(20 / 60)
    assert record.tokens_per_second == pytest.approx(5 * record.pairs_per_second)
    meter.reset()
    meter.add(step(loss=1.0, norm=1.0, sums=[[1, 1], [1, 1], [1, 1]], tokens=1, pairs=1))
    assert meter.record(3, 0.0).loss == 1.0


def test_a_restored_meter_goes_on() -> None:
    """Half of the steps before, half after: the same means as in one piece, and both stretches of time."""
    first = Meter(("a", "b"))
    first.add(step(loss=1.0, norm=2.0, sums=[[4.0, 1.0], [3, 0], [4, 2]], tokens=10, pairs=4))
    state = first.state()
    second = Meter(("a", "b"))
    second.restore(json.loads(json.dumps(state)))
    second.add(step(loss=3.0, norm=4.0, sums=[[2.0, 0.0], [1, 0], [4, 0]], tokens=30, pairs=4))
    record = second.record(2, 1e-3)
    assert (record.loss, record.grad_norm, record.objective_loss) == (2.0, 3.0, {"a": 0.75, "b": 0.5})
    assert second.seconds > state["seconds"]


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    mark(tmp_path / "run", "checkpoints")
    history = History(tmp_path / "run" / "metrics.jsonl")
    history.begin()
    later = ValidRecord(20, VALID.objectives, [GridPoint((1.0, 0.0), 0.25, (0.25, 0.6), (0.9, 0.25))])
    start = ValidRecord(0, VALID.objectives, [GridPoint((1.0, 0.0), 0.125, (0.125, 0.6), (0.9, 0.25))])
    for record in (start, VALID, RECORD, later, RECORD):
        history.add(record)
    assert read_metrics(history.path) == history.records
    assert (history.validated_at, history.best_step) == (20, 20), "the adapter before the first step is no result"
