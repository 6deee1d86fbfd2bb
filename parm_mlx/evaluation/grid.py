"""How points follow one another along the grid of preferences: neighbours, clusters, jumps.

A is the number of preferences, k of objectives, P of prompts. Normalised scores, so that distances mean something.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from parm_mlx.evaluation.metrics import DEVIATIONS, TIE, Array, Mask

JUMP = 3.0  # a step along the grid is a jump when it is this many times the median step


def neighbours(alphas: ArrayLike) -> Mask:
    """Which preferences stand side by side: no third one is closer to both than they are to each other.

    On a line (k = 2) those are consecutive preferences; on the simplex grid those that differ by one step from one
    objective to another.

    Args:
        alphas: (A, k), all different.

    Returns:
        (A, A), symmetric, False on the diagonal.
    """
    distances = _distances(np.asarray(alphas, float))
    found, closer = np.ones(distances.shape, bool), distances * (1 - TIE)
    for to_third in distances:
        found &= np.maximum(to_third[:, None], to_third[None]) >= closer
    np.fill_diagonal(found, False)
    return found


def indistinguishable(scores: ArrayLike) -> Mask:
    """Which pairs of preferences have points whose difference has a confidence interval over 0 in every objective.

    |mean over prompts of (r(α) − r(α'))| ≤ DEVIATIONS · √(variance over prompts / P), which is the interval that a
    bootstrap over prompts has where its samples are normally distributed. Each pair is judged by itself: of many that
    differ by noise alone, some are told apart.

    Args:
        scores: (P, A, k).

    Returns:
        (A, A), symmetric, True on the diagonal.
    """
    scores = np.asarray(scores, float)
    means = scores.mean(axis=0)
    same = np.ones((len(means), len(means)), bool)
    for mean, centred in zip(means.T, np.moveaxis(scores - means, -1, 0), strict=True):
        covariance = centred.T @ centred / len(scores)
        own = np.diagonal(covariance)
        variance = np.maximum(own[:, None] + own[None] - 2 * covariance, 0.0)
        rounding = TIE * max(1.0, np.abs(mean).max())
        same &= np.abs(mean[:, None] - mean[None]) <= DEVIATIONS * np.sqrt(variance / len(scores)) + rounding
    return same


def clusters(near: Mask, same: Mask) -> list[list[int]]:
    """Groups of neighbouring preferences that all have the same point as far as can be told.

    In grid order each preference joins the first group in which it has a neighbour and is indistinguishable from all.

    Args:
        near: (A, A), of :func:`neighbours`.
        same: (A, A), of :func:`indistinguishable`.

    Returns:
        Indices, the groups of two or more alone.
    """
    groups: list[list[int]] = []
    for index in range(len(near)):
        for group in groups:
            if near[index, group].any() and same[index, group].all():
                group.append(index)
                break
        else:
            groups.append([index])
    return [group for group in groups if len(group) > 1]


def steps(alphas: ArrayLike, points: ArrayLike, near: Mask) -> list[tuple[int, int, float]]:
    """Between neighbours, how far the point moves for each unit that α moves: (from, to, ‖Δr‖ / ‖Δα‖)."""
    moved, way = _distances(np.asarray(points, float)), _distances(np.asarray(alphas, float))
    return [(int(i), int(j), float(moved[i, j] / way[i, j])) for i, j in np.argwhere(np.triu(near))]


def jumps(walk: Sequence[tuple[int, int, float]], same: Mask) -> list[tuple[int, int, float]]:
    """The :func:`steps` that are more than JUMP times the median step, between points that differ."""
    if not walk:
        return []
    median = float(np.median([step for _, _, step in walk]))
    return [(i, j, step) for i, j, step in walk if step > JUMP * median and not same[i, j]]


def _distances(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows[:, None] - rows[None], axis=-1))
