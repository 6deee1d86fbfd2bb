"""A benchmark as a picture: decoding over the number of sequences, and reading over the length of the prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parm_mlx.diagnostics.summary import Row
from parm_mlx.drawing import STYLES
from parm_mlx.files import disk_errors


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draws decode tokens/s and their share of unguided decoding over the batch, and prefill tokens/s over the prompt.

    Lines go through medians; bars show the lowest and the highest round.

    Args:
        rows: As :func:`parm_mlx.diagnostics.summary.summarise` makes them, of all comparisons.
        out: The picture; its ending decides the format.

    Raises:
        ImportError: matplotlib is not installed; see :func:`parm_mlx.drawing.can_draw`.
        RunError: The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    first = rows[0]
    batched = [row for row in rows if row["prompt"] == first["prompt"]]
    read = [row for row in rows if row["batch"] == first["batch"]]
    _lines(left, batched, "batch", "decode_tokens_per_second")
    left.set(
        title=f"decoding, prompts of {first['prompt']} tokens", xlabel="sequences", ylabel="tokens/s, all sequences"
    )
    _lines(middle, batched, "batch", "of_unguided")
    middle.set(title="speed relative to unguided decoding", xlabel="sequences")
    _lines(right, read, "prompt", "prefill_tokens_per_second")
    right.set(
        title=f"reading prompts, {first['batch']} at once", xlabel="prompt tokens", ylabel="tokens/s, all sequences"
    )
    for axis in (left, middle, right):
        axis.set_ylim(bottom=0)
        axis.grid(color="0.9")
        axis.legend(fontsize="small", frameon=False)
    with disk_errors(out):
        figure.savefig(out, dpi=120)


def _lines(axis: Any, rows: Sequence[Row], across: str, what: str) -> None:
    """A line for each case."""
    for number, name in enumerate(dict.fromkeys(row["case"] for row in rows)):
        points = sorted((row[across], row[what], *row[f"{what}_spread"]) for row in rows if row["case"] == name)
        places, values, low, high = zip(*points, strict=True)
        below = [value - bound for value, bound in zip(values, low, strict=True)]
        above = [bound - value for value, bound in zip(values, high, strict=True)]
        colour, dashes, marker = STYLES[number % len(STYLES)]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "capsize": 2}
        axis.errorbar(places, values, yerr=[below, above], label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row[across] for row in rows}), [str(x) for x in sorted({row[across] for row in rows})])
    axis.minorticks_off()
