import io

import pytest
from rich.console import Console

from parm_mlx.training.logging import TrainRecord, ValidRecord
from parm_mlx.training.progress import ConsoleProgress
from parm_mlx.training.train_step import GridPoint

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
LOSSES = {"long": 0.4, "short": 0.6}
VALID = ValidRecord(
    10,
    0.5,
    (
        GridPoint((1.0, 0.0), 0.5, LOSSES, {"long": 0.75, "short": 0.5}),
        GridPoint((0.7, 0.3), 0.5, LOSSES, {"long": 0.9, "short": 0.25}),
    ),
)


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
        "validation at step 10: loss 0.5000; accuracy weighted by alpha 73%; each at its own corner: long 75%",
        "  at long=1 short=0:  long 75%  short 50%",
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
