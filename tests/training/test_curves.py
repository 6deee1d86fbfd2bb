from pathlib import Path
from typing import Any

import pytest

from parm_mlx.training import curves
from parm_mlx.training.metrics import Record, write_metrics
from parm_mlx.training.report import TrainRecord, ValidRecord
from parm_mlx.training.validation import GridPoint

PNG = b"\x89PNG\r\n"


def records() -> list[Record]:
    grid = [GridPoint((1.0, 0.0), 0.6, (0.6, 0.7), (0.9, 0.4)), GridPoint((0.0, 1.0), 0.7, (0.8, 0.7), (0.5, 0.8))]
    found: list[Record] = [ValidRecord(0, ("warm", "brief"), grid)]
    for step in (10, 20):
        shares = {"warm": 0.5 + step / 100, "brief": 0.6}
        found.append(TrainRecord(step, 0.7, shares, shares, 1.0, 1e-4, 100.0, 0.1, 4.0, 1.0))
    return [*found, ValidRecord(20, ("warm", "brief"), grid)]


@pytest.mark.parametrize("kept", [slice(None), slice(1, 3), slice(0, 1), slice(0, 0)])
def test_curves_of_whole_and_partial_runs(tmp_path: Path, kept: slice) -> None:
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path / "metrics.jsonl", records()[kept])
    curves.draw(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_what_is_drawn() -> None:
    """A panel each for loss, accuracy in training and every objective; lines differ in more than colour."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axis: Any = figure.subplots()
    _, first, second, _ = records()
    curves._accuracies(axis, [first, second], ("warm", "brief"))
    warm, brief = axis.get_lines()
    assert [list(line.get_ydata()) for line in (warm, brief)] == [[0.6, 0.7], [0.6, 0.6]]
    assert (warm.get_label(), brief.get_label()) == ("warm", "brief")
    assert warm.get_linestyle() != brief.get_linestyle()
    axis = figure.subplots()
    curves._grid(axis, [records()[0], records()[3]], 1, "brief")
    assert [list(line.get_ydata()) for line in axis.get_lines()] == [[0.4, 0.4], [0.8, 0.8]]
    assert [line.get_label() for line in axis.get_lines()] == ["warm=1 brief=0", "warm=0 brief=1"]


def test_without_matplotlib_there_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "can_draw", lambda: False)
    notes: list[str] = []
    curves.add_picture(tmp_path, records(), notes.append)
    assert notes == [curves.MISSING]
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(metrics: object, out: Path) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "can_draw", lambda: True)
    monkeypatch.setattr(curves, "draw", fail)
    notes: list[str] = []
    curves.add_picture(tmp_path, records(), notes.append)
    assert notes == ["no picture of the training curves: no fonts"]
