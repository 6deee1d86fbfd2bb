"""The training curves as a picture, drawn by matplotlib where it is installed (the ``plot`` extra)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.drawing import INSTALL, STYLES, can_draw
from parm_mlx.files import disk_errors
from parm_mlx.preference import format_alpha
from parm_mlx.training.logging import Record, TrainRecord, ValidRecord

PICTURE_FILE = "curves.png"
MISSING = f"no picture of the training curves: matplotlib is not installed ({INSTALL})"


def add_picture(directory: Path, records: Sequence[Record], note: Callable[[str], None]) -> None:
    """Draws the curves into an adapter directory; a note says why if that cannot be done."""
    if not can_draw():
        note(MISSING)
        return
    try:
        with disk_errors(directory / PICTURE_FILE):
            draw(records).savefig(directory / PICTURE_FILE, dpi=120)
    except Exception as error:  # the picture is an extra: whatever is wrong with it must not cost the adapter
        note(f"no picture of the training curves: {error}")


def draw(records: Sequence[Record]) -> Any:
    """Returns a figure of loss, accuracies in training, and the accuracy of each objective over the α grid."""
    from matplotlib.figure import Figure

    train = [record for record in records if isinstance(record, TrainRecord)]
    valid = [record for record in records if isinstance(record, ValidRecord)]
    names = list(train[0].accuracy if train else valid[0].grid[0].accuracy if valid else ())
    figure = Figure(figsize=(5 + 3.6 * (1 + len(names)), 3.6), layout="constrained")
    losses, accuracies, *grids = figure.subplots(1, 2 + len(names), squeeze=False)[0]
    losses.set_title("loss")
    _line(losses, 0, train, [record.loss for record in train], "training")
    _line(losses, 1, valid, [record.loss for record in valid], "validation, mean over the grid")
    accuracies.set_title("accuracy in training")
    for i, name in enumerate(names):
        _line(accuracies, i, train, [record.accuracy[name] for record in train], name)
        _grid(grids[i], valid, i, name)
    for axis in (losses, accuracies, *grids):
        axis.set_xlabel("step")
        axis.grid(color="0.9")
        if axis is not losses:
            axis.set_ylim(0, 1.02)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small", frameon=False)
    return figure


def _grid(axis: Any, valid: Sequence[ValidRecord], objective: int, name: str) -> None:
    """One objective: a line per α, the darker the less weight the objective has there."""
    from matplotlib import colormaps

    axis.set_title(f"validation accuracy: {name}")
    for i, point in enumerate(valid[0].grid if valid else ()):
        label = format_alpha(point.alpha, list(point.accuracy))
        colour = colormaps["cividis"](0.85 * point.alpha[objective])
        _line(axis, i, valid, [record.grid[i].accuracy[name] for record in valid], label, colour)


def _line(
    axis: Any, style: int, records: Sequence[Record], values: Sequence[float], label: str, colour: Any = None
) -> None:
    if not records:
        return
    usual, dashes, marker = STYLES[style % len(STYLES)]
    steps = [record.step for record in records]
    shown = marker if len(records) <= 30 else None
    axis.plot(steps, values, color=colour or usual, linestyle=dashes, marker=shown, markersize=4, label=label)
