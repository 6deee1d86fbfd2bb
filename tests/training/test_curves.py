from pathlib import Path
from typing import Any

import pytest

from parm_mlx.training import curves
from parm_mlx.training.logging import Record, TrainRecord, ValidRecord
from parm_mlx.training.train_step import GridPoint

PNG = b"\x89PNG\r\n"


def records() -> list[Record]:
    grid = (
        GridPoint((1.0, 0.0), 0.6, {"warm": 0.6, "brief": 0.7}, {"warm": 0.9, "brief": 0.4}),
        GridPoint((0.0, 1.0), 0.7, {"warm": 0.8, "brief": 0.7}, {"warm": 0.5, "brief": 0.8}),
    )
    found: list[Record] = [ValidRecord(0, 0.65, grid)]
    for step in (10, 20):
        shares = {"warm": 0.5 + step / 100, "brief": 0.6}
        found.append(TrainRecord(step, 0.7, shares, shares, 1.0, 1e-4, 100.0, 0.1, 4.0, 1.0))
    return [*found, ValidRecord(20, 0.65, grid)]


@pytest.mark.parametrize("kept", [slice(None), slice(0, 1), slice(0, 0)])
def test_curves_of_whole_and_partial_runs(tmp_path: Path, kept: slice) -> None:
    pytest.importorskip("matplotlib")
    curves.add_picture(tmp_path, records()[kept], pytest.fail)
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_the_lines_of_each_panel() -> None:
    """A panel each for loss, accuracy in training and every objective; lines differ in more than colour."""
    pytest.importorskip("matplotlib")
    losses, accuracies, _, brief = curves.draw(records()).axes

    def lines(axis: Any) -> dict[str, list[float]]:
        return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}

    assert lines(losses) == {"training": [0.7, 0.7], "validation, mean over the grid": [0.65, 0.65]}
    assert lines(accuracies) == {"warm": [0.6, 0.7], "brief": [0.6, 0.6]}
    assert lines(brief) == {"warm=1 brief=0": [0.4, 0.4], "warm=0 brief=1": [0.8, 0.8]}
    first, second = accuracies.get_lines()
    assert first.get_linestyle() != second.get_linestyle()


def test_without_matplotlib_there_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "can_draw", lambda: False)
    notes: list[str] = []
    curves.add_picture(tmp_path, records(), notes.append)
    assert notes == [curves.MISSING]
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_fails_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(records: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(curves, "can_draw", lambda: True)
    monkeypatch.setattr(curves, "draw", fail)
    notes: list[str] = []
    curves.add_picture(tmp_path, records(), notes.append)
    assert notes == ["no picture of the training curves: no fonts"]
