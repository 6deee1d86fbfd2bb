"""The training curves as a picture, drawn by matplotlib where it is installed (the ``plot`` extra)."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.drawing import INSTALL, STYLES, can_draw
from parm_mlx.files import disk_errors
from parm_mlx.preference import format_alpha
from parm_mlx.training.metrics import Record, read_metrics
from parm_mlx.training.report import TrainRecord, ValidRecord

PICTURE_FILE = "curves.png"
MISSING = f"no picture of the training curves: matplotlib is not installed ({INSTALL})"

SHADES = ("cividis", 0.85)


def add_picture(directory: Path, records: Sequence[Record], note: Callable[[str], None]) -> None:
    """Draws the curves into an adapter directory; where that cannot be done, a note says why."""
    if not can_draw():
        note(MISSING)
        return
    try:
        draw(records, directory / PICTURE_FILE)
    except Exception as error:  # the picture is an extra: whatever is wrong with it must not cost the adapter
        note(f"no picture of the training curves: {error}")


def draw(metrics: Path | Iterable[Record], out: Path) -> None:
    """Draws loss, accuracies in training, and accuracies over the α grid as a PNG.

    Args:
        metrics: A ``metrics.jsonl``, or its records.
        out: The picture.

    Raises:
        ImportError: matplotlib is not installed; see :func:`parm_mlx.drawing.can_draw`.
        OSError: The metrics cannot be read.
        RunError: The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics) if isinstance(metrics, Path) else list(metrics)
    train = [record for record in records if isinstance(record, TrainRecord)]
    valid = [record for record in records if isinstance(record, ValidRecord)]
    names = tuple(train[0].accuracy) if train else valid[0].objectives if valid else ()
    figure = Figure(figsize=(5 + 3.6 * (1 + len(names)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 + len(names), squeeze=False)[0]
    _losses(axes[0], train, valid)
    _accuracies(axes[1], train, names)
    for axis, (number, name) in zip(axes[2:], enumerate(names), strict=True):
        _grid(axis, valid, number, name)
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(color="0.9")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small", frameon=False)
    with disk_errors(out):
        figure.savefig(out, dpi=120)


def _losses(axis: Any, train: Sequence[TrainRecord], valid: Sequence[ValidRecord]) -> None:
    axis.set_title("loss")
    _line(axis, 0, [(record.step, record.loss) for record in train], "training")
    _line(axis, 1, [(record.step, record.loss) for record in valid], "validation, mean over the grid")


def _accuracies(axis: Any, train: Sequence[TrainRecord], names: Sequence[str]) -> None:
    axis.set_title("accuracy in training")
    axis.set_ylim(0, 1.02)
    for number, name in enumerate(names):
        _line(axis, number, [(record.step, record.accuracy[name]) for record in train], name)


def _grid(axis: Any, valid: Sequence[ValidRecord], number: int, name: str) -> None:
    """One objective: a line per α, the darker the less weight the objective has there."""
    from matplotlib import colormaps

    axis.set_title(f"validation accuracy: {name}")
    axis.set_ylim(0, 1.02)
    if not valid:
        return
    shades, lightest = colormaps[SHADES[0]], SHADES[1]
    for point, first in enumerate(valid[0].grid):
        _, dashes, marker = STYLES[point % len(STYLES)]
        axis.plot(
            [record.step for record in valid],
            [record.grid[point].accuracy[number] for record in valid],
            color=shades(first.alpha[number] * lightest),
            linestyle=dashes,
            marker=marker,
            markersize=4,
            label=format_alpha(first.alpha, valid[0].objectives),
        )


def _line(axis: Any, number: int, points: Sequence[tuple[int, float]], label: str) -> None:
    if not points:
        return
    colour, dashes, marker = STYLES[number % len(STYLES)]
    steps, values = zip(*points, strict=True)
    shown = marker if len(points) <= 30 else None
    axis.plot(steps, values, color=colour, linestyle=dashes, marker=shown, markersize=4, label=label)
