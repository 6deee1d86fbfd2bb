"""Placement of labels beside points where they cover nothing."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import cos, hypot, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

# In points of 1/72 inch: the size of a marker, and how far a label may be from its point.
_MARKER, _DISTANCES = 5.0, (9.0, 17.0, 28.0)
_ANGLES = [pi * (step + 0.5) / 8 for step in range(16)]


def place(axis: Any, wanted: Sequence[tuple[int, str]], points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Labels some of the points of a plane, by index, the most important first; the layout must be final.

    A label that would cover a marker, a label or the frame is left out.
    """
    scale = axis.figure.dpi / 72
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    places = axis.transData.transform(np.asarray(points, dtype=float))
    reach = _MARKER * scale
    taken: list[Box] = [(x - reach, y - reach, x + reach, y + reach) for x, y in places]
    lines = _segments(axis)
    for index, text in wanted:
        look = {"textcoords": "offset points", "ha": "center", "va": "center", **style}
        label = axis.annotate(text, points[index], (0, 0), **look)
        label.set_in_layout(False)
        extent = label.get_window_extent(renderer)
        free = [
            (distance / _DISTANCES[0] + 2 * _crossed(box, lines), distance, offset, box)
            for distance, offset, box in _around(places[index], extent.width, extent.height, scale)
            if frame.x0 <= box[0] and frame.y0 <= box[1] and box[2] <= frame.x1 and box[3] <= frame.y1
            if not any(_overlap(box, other) for other in taken)
        ]
        if not free:
            label.remove()
            continue
        _, distance, offset, box = min(free, key=lambda found: found[0])
        label.set_position(offset)
        taken.append(box)
        if distance > _DISTANCES[0]:
            _lead(axis, places[index], box, reach, style.get("color", "black"))


def _around(
    place: NDArray[Any], width: float, height: float, scale: float
) -> Iterator[tuple[float, tuple[float, float], Box]]:
    """Yields places around a point: distance and offset in points, and the box in pixels."""
    for distance in _DISTANCES:
        for angle in _ANGLES:
            dx = cos(angle) * distance * scale + min(1.0, max(-1.0, 1.5 * cos(angle))) * width / 2
            dy = sin(angle) * distance * scale + min(1.0, max(-1.0, 1.5 * sin(angle))) * height / 2
            x, y = place[0] + dx, place[1] + dy
            box = (x - width / 2 - 1, y - height / 2 - 1, x + width / 2 + 1, y + height / 2 + 1)
            yield distance, (dx / scale, dy / scale), box


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _segments(axis: Any) -> NDArray[Any]:
    """Returns points along all drawn lines, a few pixels apart. (n, 2)"""
    paths = [
        line.get_transform().transform(line.get_xydata()) for line in axis.get_lines() if line.get_linestyle() != "None"
    ]
    for collection in axis.collections:
        if hasattr(collection, "get_segments"):
            paths += [axis.transData.transform(segment) for segment in collection.get_segments()]
    dense = [np.empty((0, 2))]
    for path in paths:
        for start, end in pairwise(path):
            steps = max(2, min(400, int(hypot(*(end - start)) / 3)))
            dense.append(start + (end - start) * np.linspace(0, 1, steps)[:, None])
    return np.concatenate(dense)


def _crossed(box: Box, lines: NDArray[Any]) -> float:
    """Returns the share of a box that lines cross: 1 for a line that crosses it once from side to side."""
    inside = (lines[:, 0] > box[0]) & (lines[:, 0] < box[2]) & (lines[:, 1] > box[1]) & (lines[:, 1] < box[3])
    return float(inside.sum()) * 3 / (box[2] - box[0])


def _lead(axis: Any, place: NDArray[Any], box: Box, reach: float, colour: str) -> None:
    """Draws a thin line from a point to a distant label."""
    near = np.array([min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])])
    away = near - place
    start = place + away / hypot(*away) * reach
    ends = axis.transData.inverted().transform([start, near])
    (line,) = axis.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.6, zorder=2)
    line.set_in_layout(False)
