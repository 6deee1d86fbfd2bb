from pathlib import Path
from typing import Any

import pytest

from parm_mlx.diagnostics import picture
from parm_mlx.errors import RunError

FIGURES = ("decode_tokens_per_second", "of_unguided", "prefill_tokens_per_second")


def row(case: str, batch: int, prompt: int, value: float) -> dict[str, Any]:
    figures = dict.fromkeys(FIGURES, value) | {f"{name}_spread": [value - 1, value + 2] for name in FIGURES}
    return {"case": case, "batch": batch, "prompt": prompt, **figures}


ROWS = [row("base", 1, 64, 10), row("guided", 1, 64, 5), row("base", 4, 64, 20), row("guided", 4, 64, 9)]


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_ending_decides_the_format(tmp_path: Path, ending: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    picture.draw([*ROWS, row("base", 1, 256, 8), row("guided", 1, 256, 4)], tmp_path / f"speed{ending}")
    assert (tmp_path / f"speed{ending}").read_bytes().startswith(start)


def test_what_is_drawn() -> None:
    """A line per case, through medians, with bars to the lowest and highest round."""
    axis: Any = pytest.importorskip("matplotlib.figure").Figure().subplots()
    picture._lines(axis, ROWS, "batch", "of_unguided")
    lines = [container.lines[0] for container in axis.containers]
    assert [list(line.get_xdata()) for line in lines] == [[1, 4], [1, 4]]
    assert [list(line.get_ydata()) for line in lines] == [[10, 20], [5, 9]]
    assert [container.get_label() for container in axis.containers] == ["base", "guided"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    bars = axis.containers[1].lines[2][0].get_segments()
    assert [[list(end) for end in bar] for bar in bars] == [[[1, 4], [1, 7]], [[4, 8], [4, 11]]]


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(RunError, match=r"speed\.png was not written"):
        picture.draw(ROWS, tmp_path / "missing" / "speed.png")
