"""The picture of an evaluation or a comparison, drawn by matplotlib where it is installed (the ``plot`` extra).

Two objectives make one plane, three make three planes and a simplex, more make parallel coordinates.
"""

import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from parm_mlx.drawing import INSTALL, can_draw
from parm_mlx.evaluation.report import panels
from parm_mlx.evaluation.report.formatting import caption, runs_of, short, unit
from parm_mlx.evaluation.report.panels import INK, PAPER, RULE, SOFT
from parm_mlx.files import disk_errors

PNG_FILE, SVG_FILE = "pareto.png", "pareto.svg"
MISSING = f"no picture: matplotlib is not installed ({INSTALL})"
Summary = Mapping[str, Any]
T = TypeVar("T")

_SETTINGS: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "parm-mlx",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}


def attempt(action: Callable[[], T]) -> tuple[T | None, str]:
    """Returns what drawing returns, or the reason why there is no picture: its failure must not cost the figures."""
    if not can_draw():
        return None, MISSING
    try:
        return action(), ""
    except Exception as error:
        return None, f"no picture: {error}"


def draw(summary: Summary, out: Path) -> str:
    """Writes ``pareto.png`` and ``pareto.svg`` into a folder, and returns the latter's text.

    It needs matplotlib, see :func:`parm_mlx.drawing.can_draw`.

    Raises:
        RunError: A picture cannot be written.
    """
    with _matplotlib():
        drawn = figure(summary)
        with disk_errors(out / PNG_FILE):
            drawn.savefig(out / PNG_FILE, dpi=200)
        with disk_errors(out / SVG_FILE):
            drawn.savefig(out / SVG_FILE, metadata={"Date": None})
    return (out / SVG_FILE).read_text(encoding="utf-8")


def inline_svg(text: str) -> str:
    """Returns an SVG file as an ``<svg>`` element; CSS sets ``--ink``, ``--soft``, ``--rule`` and ``--paper``.

    The markers of point i of a run are groups with ids ``point-i-…``.
    """
    element = text[text.index("<svg ") :]
    for colour, name in ((INK, "ink"), (SOFT, "soft"), (RULE, "rule"), (PAPER, "paper")):
        element = element.replace(colour, f"var(--{name})")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', element, count=1)


@contextmanager
def _matplotlib() -> Iterator[None]:
    """Applies our settings over those of the user; a letter that the font lacks is drawn as a box."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def figure(summary: Summary) -> Any:
    """Returns the picture as a figure of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    k, runs = len(summary["objectives"]), runs_of(summary)
    sizes = {1: (7.2, 2.0 + 0.55 * len(runs)), 2: (7.2, 6.0), 3: (11.4, 9.8)}
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.04)
    drawn = Figure(figsize=sizes.get(k, (max(8.0, 2.5 + 0.8 * k), 5.8)), layout=layout)
    FigureCanvasAgg(drawn)
    width = int(drawn.get_figwidth() * 16)
    drawn.supxlabel(textwrap.fill(caption(summary), width), x=0.012, ha="left", fontsize=8, color=SOFT)
    {1: _one, 2: _two, 3: _three}.get(k, _many)(drawn, summary, runs)
    return drawn


def _title(summary: Summary) -> str:
    return short(summary["name"], 60) if summary["kind"] == "run" else f"{len(summary['runs'])} runs"


def _legend(drawn: Any, summary: Summary, runs: list[Summary], line: bool) -> None:
    """Adds the legend above the panels; its title is that of the picture."""
    if summary["kind"] == "run":
        handles = panels.key(line)
        columns = len(handles)
    else:
        handles = panels.key_of_runs(runs, line)
        columns = 1 if len(handles) <= panels.ONE_COLUMN else 2
    font = {"size": 12, "weight": "bold"}
    style = {"ncols": columns, "fontsize": 8.5, "title_fontproperties": font, "alignment": "left"}
    drawn.legend(handles=handles, loc="outside upper left", title=_title(summary), borderpad=0.1, **style)


def _one(drawn: Any, summary: Summary, runs: list[Summary]) -> None:
    drawn.suptitle(_title(summary), x=0.012, ha="left", fontsize=12, fontweight="bold")
    axis, (name,) = drawn.subplots(), summary["objectives"]
    values = []
    for run, (colour, _, marker, _) in zip(runs, panels.styles(runs), strict=True):
        called = f"{short(run['name'], 24)}: " if summary["kind"] == "comparison" else ""
        values.append((f"{called}the base alone", run["unguided"]["scores"][name], "mean", (colour, panels.UNGUIDED)))
        values += [(f"{called}guided", point["scores"][name], "mean", (colour, marker)) for point in run["points"]]
    drawn.set_figheight(1.7 + 0.42 * len(values))
    panels.rows(axis, values, f"{short(name)}  ({unit(summary)})")


def _two(drawn: Any, summary: Summary, runs: list[Summary]) -> None:
    axis, (x, y) = drawn.subplots(), summary["objectives"]
    _plane(axis, summary, runs, x, y, 0)
    _legend(drawn, summary, runs, line=True)
    if summary["kind"] == "run":
        drawn.draw_without_rendering()
        panels.label_points(axis, summary, x, y)


def _plane(axis: Any, summary: Summary, runs: list[Summary], x: str, y: str, panel: int) -> None:
    if summary["kind"] == "comparison":
        panels.planes_of_runs(axis, runs, x, y)
    else:
        panels.plane(axis, summary, x, y, panel)
        panels.shade(axis, f"weight of {short(x)} in α")


def _three(drawn: Any, summary: Summary, runs: list[Summary]) -> None:
    *planes, last = drawn.subplots(2, 2).flat
    for panel, (axis, (x, y)) in enumerate(zip(planes, combinations(summary["objectives"], 2), strict=True)):
        _plane(axis, summary, runs, x, y, panel)
    if summary["kind"] == "comparison":
        looks = [(colour, marker) for colour, _, marker, _ in panels.styles(runs)]
        values = [(run["name"], run["mip"], "value", look) for run, look in zip(runs, looks, strict=True)]
        panels.rows(last, values, "MIP, mean of αᵀr(α)")
    else:
        panels.simplex(last, summary, 3)
    _legend(drawn, summary, runs, line=False)


def _many(drawn: Any, summary: Summary, runs: list[Summary]) -> None:
    axis = drawn.subplots()
    if summary["kind"] == "comparison":
        panels.parallel_of_runs(axis, runs)
    else:
        panels.parallel(axis, summary)
        panels.shade(axis, "weight of the axis's objective in α")
    _legend(drawn, summary, runs, line=summary["kind"] == "comparison")
