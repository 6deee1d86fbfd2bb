import itertools
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation.made_up import made_up_run

from parm_mlx.errors import RunError
from parm_mlx.evaluation.report import panels, plots
from parm_mlx.evaluation.summary import compare, summarise

pytest.importorskip("matplotlib")

STEPS = {1: 0.5, 2: 0.1, 3: 0.25, 5: 0.5, 12: 0.5}
Summary = dict[str, Any]


def one(k: int, **settings: Any) -> Summary:
    return summarise(made_up_run(k, STEPS[k], prompts=8, **settings), samples=20)


def several(k: int, count: int = 3) -> Summary:
    runs = [made_up_run(k, STEPS[k], prompts=8, effect=1 - i / 10, seed=i, name=f"run {i}") for i in range(count)]
    return compare(runs, samples=20)


def long_names() -> Summary:
    found = one(2)
    new = dict(zip(found["objectives"], ("helpfulness_as_judged_by_a_large_model", "$α_2$ harmless"), strict=True))

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {new.get(key, key): renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return new.get(value, value) if isinstance(value, str) else value

    return {
        **renamed(found),
        "name": "a-run/with-a-name-that-goes-on-and-on-and-does-not-want-to-end-before-the-line-does",
    }


CASES = {
    "one objective": lambda: one(1),
    "two": lambda: one(2),
    "two, α without effect": lambda: one(2, effect=0.0),
    "two, raw scores": lambda: summarise(made_up_run(2, 0.25, prompts=4), normalize="none", samples=20),
    "two, one prompt": lambda: summarise(made_up_run(2, 0.25, prompts=1), samples=20, normalize="none"),
    "three": lambda: one(3),
    "five": lambda: one(5),
    "twelve": lambda: one(12),
    "long names": long_names,
    "runs, one objective": lambda: several(1),
    "runs, two": lambda: several(2),
    "runs, three": lambda: several(3),
    "runs, five": lambda: several(5),
    "nine runs": lambda: several(2, 9),
}


def drawn(summary: Summary) -> Any:
    with plots._matplotlib():
        figure = plots.figure(summary)
        figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize("case", CASES)
def test_no_text_covers_another_or_leaves_the_picture(case: str) -> None:
    from matplotlib.text import Text

    figure = drawn(CASES[case]())
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    # A tick outside the range of its axis is an object too, and is not drawn.
    ticks = {
        id(tick.label1) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
    }
    shown = {
        id(tick.label1) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()
    }
    kept = [box for text, box in zip(texts, boxes, strict=True) if id(text) not in ticks - shown]
    assert len(kept) > 5
    for text, box in kept:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (a, first), (b, second) in itertools.combinations(kept, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(wide, high) < 1, f"{a!r} and {b!r} overlap"


@pytest.mark.parametrize("case", ["one objective", "two", "three", "twelve", "runs, two", "runs, five"])
def test_files_are_pictures_and_the_same_every_time(tmp_path: Path, case: str) -> None:
    summary = CASES[case]()
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        plots.draw(summary, tmp_path / folder)
    assert (tmp_path / "first" / "pareto.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = (tmp_path / "first" / "pareto.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == (tmp_path / "second" / "pareto.svg").read_bytes()


def markers(axis: Any) -> dict[str, Any]:
    return {line.get_gid(): line for line in axis.get_lines() if line.get_gid()}


def test_a_plane_shows_means_intervals_and_the_front() -> None:
    summary = one(2)
    axis = drawn(summary).axes[0]
    x, y = summary["objectives"]
    for index, point in enumerate(summary["points"]):
        marker = markers(axis)[f"point-{index}-0"]
        assert marker.get_xydata().tolist() == [[point["scores"][x]["mean"], point["scores"][y]["mean"]]]
        assert marker.get_marker() == ("o" if index in summary["front"]["indices"] else "D")
    front = sorted([summary["points"][i]["scores"][n]["mean"] for n in (x, y)] for i in summary["front"]["indices"])
    assert front in [line.get_xydata().tolist() for line in axis.get_lines() if line.get_linestyle() == "-"]
    segments = [
        segment for group in axis.collections if hasattr(group, "get_segments") for segment in group.get_segments()
    ]
    for point in [*summary["points"], summary["unguided"]]:
        across, up = point["scores"][x], point["scores"][y]
        for wanted in (
            [[across["low"], up["mean"]], [across["high"], up["mean"]]],
            [[across["mean"], up["low"]], [across["mean"], up["high"]]],
        ):
            assert any(np.allclose(segment, wanted) for segment in segments)


def test_shades_read_in_grey() -> None:
    """Luminance rises with the weight: 0.2126 R + 0.7152 G + 0.0722 B, of linear light."""
    from matplotlib.colors import to_rgb

    summary = one(2)
    found = markers(drawn(summary).axes[0])
    order = sorted(range(11), key=lambda index: summary["points"][index]["alpha"][0])
    shades = np.array([to_rgb(found[f"point-{index}-0"].get_color()) for index in order])
    linear = np.where(shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4)
    assert (np.diff(linear @ [0.2126, 0.7152, 0.0722]) > 0.01).all()


def test_the_ends_of_the_grid_are_labelled() -> None:
    axis = drawn(one(2)).axes[0]
    assert {"(1, 0)", "(0, 1)"} <= {text.get_text() for text in axis.texts}


def test_labels_do_not_cover_markers() -> None:
    for settings in ({}, {"effect": 0.0}, {"effect": 0.0, "noise": 0.01}):
        summary = one(2, **settings)
        axis = drawn(summary).axes[0]
        places = [line.get_xydata()[0] for line in markers(axis).values()]
        for label, (x, y) in itertools.product(axis.texts, axis.transData.transform(places)):
            box = label.get_window_extent()
            assert not (box.x0 - 4 < x < box.x1 + 4 and box.y0 - 4 < y < box.y1 + 4), label.get_text()


def test_the_simplex_has_every_preference_at_its_place() -> None:
    """α = (1, 0, 0) is the left corner, (0, 1, 0) the right one, (0, 0, 1) the top, at a height of √3/2."""
    summary = one(3)
    figure = drawn(summary)
    simplex = markers(next(axis for axis in figure.axes if "point-0-3" in markers(axis)))
    corners = {(1.0, 0.0, 0.0): (0, 0), (0.0, 1.0, 0.0): (1, 0), (0.0, 0.0, 1.0): (0.5, 3**0.5 / 2)}
    found = {tuple(p["alpha"]): simplex[f"point-{i}-3"].get_xydata()[0] for i, p in enumerate(summary["points"])}
    for alpha, corner in corners.items():
        assert found[alpha] == pytest.approx(corner)
    assert found[(0.5, 0.25, 0.25)] == pytest.approx((0.375, 0.25 * 3**0.5 / 2))
    planes = [axis for axis in figure.axes if any(gid.startswith("point-0-") for gid in markers(axis))]
    assert len(planes) == 4


def test_parallel_coordinates_have_a_line_for_each_preference() -> None:
    summary = one(5)
    lines = markers(drawn(summary).axes[0])
    assert len(lines) == len(summary["points"])
    for index, point in enumerate(summary["points"]):
        wanted = [point["scores"][name]["mean"] for name in summary["objectives"]]
        assert lines[f"point-{index}-0"].get_ydata().tolist() == wanted


def test_runs_differ_in_more_than_colour() -> None:
    looks = [(marker, face == panels.PAPER) for _, _, marker, face in panels.styles([{}] * 12)]
    assert len(set(looks)) == 12
    summary = several(2)
    lines = [line for line in drawn(summary).axes[0].get_lines() if len(line.get_xydata()) > 1]
    assert len({line.get_linestyle() for line in lines if line.get_linestyle() != "None"}) == 3


def test_legend_and_caption_say_hv_and_reference_point() -> None:
    summary = several(2)
    figure = drawn(summary)
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert [entry.split()[:3] for entry in entries[:3]] == [["run", str(i), "HV"] for i in range(3)]
    for run, entry in zip(summary["runs"], entries, strict=False):
        assert f"HV {run['hv']['value']:.3g} [" in entry
    assert "reference point (−2, −2)" in figure.get_supxlabel()
    summary = one(2)
    assert f"MIP {summary['mip']['value']:.3g}".replace("-", "−") in drawn(summary).get_supxlabel()


def test_settings_and_letters_that_the_font_lacks_do_not_matter(tmp_path: Path) -> None:
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context({"axes.facecolor": "black", "text.usetex": True}):
        warnings.simplefilter("error")
        plots.draw({**one(1), "name": "運行"}, tmp_path)
        assert matplotlib.rcParams["axes.facecolor"] == "black"
    assert (tmp_path / "pareto.png").exists()


def test_without_matplotlib_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    assert plots.attempt(lambda: "drawn") == (None, plots.MISSING)


def test_a_picture_that_fails_costs_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"pareto.png was not written: No such file"):
        plots.draw(one(1), tmp_path / "missing")
    drawn, reason = plots.attempt(lambda: plots.draw(one(1), tmp_path / "missing"))
    assert drawn is None
    assert reason.startswith("no picture: ")
