"""The panels of an evaluation's pictures: planes, the simplex, parallel coordinates, and rows of intervals."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parm_mlx.drawing import STYLES
from parm_mlx.evaluation.report.formatting import interval, number, short, unit, vector
from parm_mlx.evaluation.report.label_placement import place

INK, SOFT, RULE, PAPER = "#1f2328", "#59626e", "#dfe3e8", "#fffffe"
SHADES = "cividis"
ONE_COLUMN = 5  # entries of a legend of runs; more take two columns
FRONT, DOMINATED, UNGUIDED = "o", "D", "X"
Run = Mapping[str, Any]
Point = Mapping[str, Any]
Style = tuple[str, Any, str, str]


def styles(runs: Sequence[Run]) -> list[Style]:
    """Returns colour, dashes, marker and filling of each run; the second six have hollow markers."""
    return [
        (colour, dashes, marker, colour if i // len(STYLES) % 2 == 0 else PAPER)
        for i, (_, (colour, dashes, marker)) in enumerate(zip(runs, cycle(STYLES), strict=False))
    ]


def _means(points: Sequence[Point], name: str) -> list[float]:
    return [point["scores"][name]["mean"] for point in points]


def _reach(points: Sequence[Point], name: str) -> list[list[float]]:
    """Returns how far the intervals reach below and above the means. (2, n)"""
    scores = [point["scores"][name] for point in points]
    below = [max(0.0, score["mean"] - score["low"]) for score in scores]
    return [below, [max(0.0, score["high"] - score["mean"]) for score in scores]]


def plane(axis: Any, run: Run, x: str, y: str, panel: int) -> None:
    """Draws two objectives of a run: a marker for each α, the darker the less α weighs ``x``."""
    from matplotlib import colormaps

    points, front = run["points"], set(run["front"]["indices"])
    weighed = run["objectives"].index(x)
    _frame(axis, run, x, y)
    _crosses(axis, points, x, y, SOFT, 0.7, 0.6)
    _crosses(axis, [run["unguided"]], x, y, INK, 0.7, 0.6)
    if len(run["objectives"]) == 2:
        line = sorted(_place(points[index], x, y) for index in front)
        axis.plot(*zip(*line, strict=True), color=INK, linewidth=1.3, zorder=3)
    for index, point in enumerate(points):
        look = {**_marker(index in front), "color": colormaps[SHADES](point["alpha"][weighed])}
        (marker,) = axis.plot(*_place(point, x, y), **look, zorder=5 if index in front else 4)
        marker.set_gid(f"point-{index}-{panel}")
    axis.plot(*_place(run["unguided"], x, y), **_unguided(), zorder=6)


def _crosses(axis: Any, points: Sequence[Point], x: str, y: str, colour: str, width: float, alpha: float) -> None:
    """Draws the intervals of points in both directions."""
    look = {"xerr": _reach(points, x), "yerr": _reach(points, y), "ecolor": colour, "elinewidth": width}
    drawn = axis.errorbar(_means(points, x), _means(points, y), **look, fmt="none", zorder=2)
    for bar in drawn[2]:
        bar.set_alpha(alpha)


def _place(point: Point, x: str, y: str) -> tuple[float, float]:
    return point["scores"][x]["mean"], point["scores"][y]["mean"]


def _marker(on_front: bool) -> dict[str, Any]:
    shape = {"marker": FRONT, "markersize": 8.5} if on_front else {"marker": DOMINATED, "markersize": 4.8}
    return {**shape, "linestyle": "none", "markeredgecolor": INK, "markeredgewidth": 0.7}


def _unguided() -> dict[str, Any]:
    return {"marker": UNGUIDED, "markersize": 9, "color": PAPER, "linestyle": "none", "markeredgecolor": INK}


def _frame(axis: Any, run: Run, x: str, y: str) -> None:
    axis.set_xlabel(f"{short(x)}  ({unit(run)})")
    axis.set_ylabel(f"{short(y)}  ({unit(run)})")
    axis.margins(0.09)


def key(line: bool) -> list[Any]:
    """Returns the handles of a legend of one run's markers."""
    from matplotlib.lines import Line2D

    front = {**_marker(True), "linestyle": "-", "color": INK, "markerfacecolor": SOFT} if line else _marker(True)
    return [
        Line2D([], [], **{"color": SOFT, **front}, label="on the front"),
        Line2D([], [], color=SOFT, **_marker(False), label="dominated"),
        Line2D([], [], **_unguided(), label="the base alone"),
    ]


def shade(axis: Any, label: str) -> None:
    """Adds the colours of weights from 0 to 1 beside a panel."""
    from matplotlib.colors import Normalize

    _colour_bar(axis, Normalize(0, 1), label).set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "¼", "½", "¾", "1"])


def _colour_bar(axis: Any, norm: Any, label: str) -> Any:
    from matplotlib.cm import ScalarMappable

    bar = axis.figure.colorbar(ScalarMappable(norm, SHADES), ax=axis, fraction=0.045, pad=0.02)
    bar.set_label(label, color=SOFT, labelpad=6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=SOFT)
    return bar


def label_points(axis: Any, run: Run, x: str, y: str) -> None:
    """Writes α beside some points, from the ends of the grid inwards; the layout must be final."""
    from matplotlib.patheffects import withStroke

    points = run["points"]
    order = sorted(range(len(points)), key=lambda index: tuple(points[index]["alpha"]))
    last = len(order) - 1
    wanted = dict.fromkeys(order[round(last * share)] for share in (0, 1, 0.5, 0.25, 0.75))
    places = [_place(point, x, y) for point in [*points, run["unguided"]]]
    labels = [(index, vector(points[index]["alpha"])) for index in wanted]
    halo = [withStroke(linewidth=2.2, foreground=PAPER)]
    place(axis, labels, places, fontsize=8, color=INK, path_effects=halo, zorder=7)


def simplex(axis: Any, run: Run, panel: int) -> None:
    """Draws three objectives: every α at its place in the triangle, coloured by αᵀr(α)."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    names, front = run["objectives"], set(run["front"]["indices"])
    alphas = np.array([point["alpha"] for point in run["points"]])
    scores = np.array([_means(run["points"], name) for name in names]).T
    gained = (alphas * scores).sum(axis=1)
    axis.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.12, 0.98))
    axis.axis("off")
    shares = np.unique(alphas.round(6))
    for share in shares if len(shares) <= 11 else np.linspace(0, 1, 11):
        for turn in range(3):
            a, b, c = np.roll(corners, turn, axis=0)
            ends = np.array([a + (b - a) * share, a + (c - a) * share])
            axis.plot(*ends.T, color=SOFT if share == 1 else RULE, linewidth=0.9, zorder=1)
    for name, (x, y), down in zip(names, corners, (True, True, False), strict=True):
        text = {"ha": "center", "va": "top" if down else "bottom", "color": INK}
        axis.text(x, y + (-0.05 if down else 0.05), short(name, 18), **text)
    norm = Normalize(gained.min(), gained.max() if gained.max() > gained.min() else gained.min() + 1)
    for index, ((x, y), value) in enumerate(zip(alphas @ corners, gained, strict=True)):
        style = {**_marker(index in front), "markersize": 9.5 if index in front else 6.5}
        (marker,) = axis.plot([x], [y], color=colormaps[SHADES](norm(value)), **style, zorder=4)
        marker.set_gid(f"point-{index}-{panel}")
    _colour_bar(axis, norm, "αᵀr(α)")


def parallel(axis: Any, run: Run) -> None:
    """Draws more objectives: a line for each α; on every axis, darker markers weigh the objective less."""
    from matplotlib import colormaps

    names, points, front = run["objectives"], run["points"], set(run["front"]["indices"])
    _coordinates(axis, run)
    for index, point in enumerate(points):
        heights = [point["scores"][name]["mean"] for name in names]
        (line,) = axis.plot(heights, color=SOFT, linewidth=0.9 if index in front else 0.5, alpha=0.45, zorder=2)
        line.set_gid(f"point-{index}-0")
    for place_, name in enumerate(names):
        for marker, size, on_front in ((DOMINATED, 4.2, False), (FRONT, 7, True)):
            group = [point for index, point in enumerate(points) if (index in front) == on_front]
            group.sort(key=lambda point, at=place_: point["alpha"][at])  # type: ignore[misc]
            colours = colormaps[SHADES]([point["alpha"][place_] for point in group])
            look = {"c": colours, "marker": marker, "s": size**2, "edgecolors": INK, "linewidths": 0.5}
            axis.scatter([place_] * len(group), _means(group, name), **look, zorder=5 if on_front else 4)
    heights, reach = _reached(run)
    axis.errorbar(range(len(names)), heights, reach, fmt="none", ecolor=INK, elinewidth=1.1, zorder=3)
    alone = {**_unguided(), "linestyle": "--", "color": INK, "markerfacecolor": PAPER}
    axis.plot([run["unguided"]["scores"][name]["mean"] for name in names], **alone, zorder=6)


def _reached(run: Run) -> tuple[list[float], NDArray[Any]]:
    """Returns each objective's score at the α that weighs it most, (k,), and the reach of its interval, (2, k)."""
    heights, reach = [], []
    for i, name in enumerate(run["objectives"]):
        weights = [point["alpha"][i] for point in run["points"]]
        best = run["points"][weights.index(max(weights))]
        heights.append(best["scores"][name]["mean"])
        reach.append(_reach([best], name))
    return heights, np.concatenate(reach, axis=1)


def _coordinates(axis: Any, run: Run) -> None:
    names = [short(name, 20) for name in run["objectives"]]
    crowded = len(names) > 6 or max(map(len, names)) > 12
    turned = {"rotation": 28, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_xticks(range(len(names)), names, **turned)
    axis.set_xlim(-0.4, len(names) - 0.6)
    axis.set_ylabel(unit(run))
    axis.grid(axis="x", color=RULE)


def planes_of_runs(axis: Any, runs: Sequence[Run], x: str, y: str) -> None:
    """Draws two objectives of several runs, which differ in colour, marker and dashes."""
    _frame(axis, runs[0], x, y)
    for run, (colour, dashes, marker, face) in zip(runs, styles(runs), strict=True):
        points = run["points"]
        _crosses(axis, points, x, y, colour, 0.6, 0.45)
        if len(run["objectives"]) == 2:
            front = sorted(_place(points[index], x, y) for index in run["front"]["indices"])
            axis.plot(*zip(*front, strict=True), color=colour, linestyle=dashes, linewidth=1.4, zorder=3)
        look = {"marker": marker, "markersize": 6, "markerfacecolor": face, "markeredgecolor": colour}
        axis.plot(_means(points, x), _means(points, y), **look, linestyle="none", zorder=4)
        look = {"marker": UNGUIDED, "markersize": 8, "markerfacecolor": PAPER, "markeredgecolor": colour}
        axis.plot(*_place(run["unguided"], x, y), **look, linestyle="none", zorder=5)


def parallel_of_runs(axis: Any, runs: Sequence[Run]) -> None:
    """Draws more objectives of several runs: the scores at the α that weighs each most, and crosses for the base."""
    names = runs[0]["objectives"]
    _coordinates(axis, runs[0])
    step = min(0.12, 0.5 / len(runs))
    for number_, (run, (colour, dashes, marker, face)) in enumerate(zip(runs, styles(runs), strict=True)):
        places = np.arange(len(names)) + (number_ - (len(runs) - 1) / 2) * step
        heights, reach = _reached(run)
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markerfacecolor": face, "markersize": 6.5}
        axis.errorbar(places, heights, reach, **look, linewidth=1.1, elinewidth=1, zorder=3)
        alone = [run["unguided"]["scores"][name]["mean"] for name in names]
        look = {"marker": UNGUIDED, "markersize": 6.5, "markerfacecolor": PAPER, "markeredgecolor": colour}
        axis.plot(places, alone, **look, linestyle="none", zorder=2)


def key_of_runs(runs: Sequence[Run], line: bool) -> list[Any]:
    """Returns the handles of a legend of runs, with their HV."""
    from matplotlib.lines import Line2D

    handles, length = [], 34 if len(runs) < ONE_COLUMN else 20
    for run, (colour, dashes, marker, face) in zip(runs, styles(runs), strict=True):
        look: dict[str, Any] = {"color": colour, "linestyle": dashes if line else "none", "marker": marker}
        look["label"] = f"{short(run['name'], length)}   HV {interval(run['hv'])}"
        handles.append(Line2D([], [], **look, markerfacecolor=face))
    return [*handles, Line2D([], [], **_unguided(), label="the base alone")]


def rows(axis: Any, values: Sequence[tuple[str, Mapping[str, float], str, Any]], xlabel: str) -> None:
    """Draws rows from the top: label, interval, the key of its middle, and colour with marker."""
    for height, (_, value, middle, (colour, marker)) in enumerate(values):
        at = value[middle]
        reach = [[max(0.0, at - value["low"])], [max(0.0, value["high"] - at)]]
        axis.errorbar([at], [-height], xerr=reach, color=colour, marker=marker, markersize=8, elinewidth=1.2)
        axis.annotate(number(at), (at, -height), (0, 8), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axis.set_yticks([-height for height in range(len(values))], [short(label, 34) for label, *_ in values])
    axis.set_ylim(-len(values) + 0.4, 0.6)
    axis.set_xlabel(xlabel)
    axis.margins(x=0.12)
