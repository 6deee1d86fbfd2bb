"""Metrics of a front and of its points along the grid, on plain arrays. Larger scores are better everywhere.

A is the number of preferences, k of objectives, P of prompts, S of bootstrap samples. Points r(α) are (A, k), the
preferences themselves (A, k) too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Effort(NamedTuple):
    """Work limit of exact hypervolumes, and sample count of the approximation."""

    work: float  # largest n^(k/2) that is computed exactly; 1e9 takes seconds, 1e7 some 10 ms
    directions: int  # of the approximation


EXACT_OBJECTIVES = 5  # with so few, thousands of points take milliseconds
VALUE = Effort(1e9, 2**18)  # within 0.2 % of the exact value where that is known, up to k = 12
SAMPLE = Effort(1e7, 2**14)  # a bootstrap sample: within 2 %
LEVEL = 0.95
DEVIATIONS = 1.96  # of a normal distribution, either side of its mean: LEVEL of it
JUMP = 3.0  # a step along the grid is a jump when it is this many times the median step
TIE = 1e-9  # scores closer than this, relative to the largest, are equal: the rest is rounding


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Returns the volume that points (n, k) dominate above a reference point (k,).

    HV = volume of { x : reference ≤ x ≤ r for a point r }. Points that are not above the reference in every objective
    add nothing. Exact as far as VALUE allows, which is for all fronts up to EXACT_OBJECTIVES objectives.
    """
    return float(hypervolumes(np.asarray(points, float)[None], reference, VALUE)[0][0])


def hypervolumes(samples: ArrayLike, reference: ArrayLike, effort: Effort = SAMPLE) -> tuple[Array, bool]:
    """Returns the hypervolumes of fronts (S, n, k), and True if all are exact."""
    found = [_volume(points, np.asarray(reference, float), effort) for points in np.asarray(samples, float)]
    return np.array([value for value, _ in found]), all(exact for _, exact in found)


def _volume(points: Array, reference: Array, effort: Effort) -> tuple[float, bool]:
    import moocore

    above = points[(points > reference).all(axis=1)]
    above = above[front(above)]
    n, k = above.shape
    exact = k <= EXACT_OBJECTIVES or float(n) ** (k / 2) <= effort.work
    if not n:
        return 0.0, exact
    if exact:
        return float(moocore.hypervolume(above, ref=reference, maximise=True)), True
    return float(moocore.hv_approx(above, ref=reference, maximise=True, nsamples=effort.directions)), False


def front(points: ArrayLike) -> NDArray[np.intp]:
    """Returns the indices of the points (n, k) that no other dominates (as good in every objective, better in one).

    Of equal points the first counts.
    """
    import moocore

    points = np.asarray(points, float)
    if not len(points):
        return np.zeros(0, np.intp)
    return np.flatnonzero(moocore.is_nondominated(points, maximise=True))


def mip(alphas: ArrayLike, points: ArrayLike) -> Any:
    """Returns the mean inner product of points (…, A, k), the mean over α of αᵀ r(α): a number for one front."""
    return np.einsum("ak,...ak->...", np.asarray(alphas, float), np.asarray(points, float)) / len(np.asarray(alphas))


def mip_gain(alphas: ArrayLike, points: ArrayLike) -> Any:
    """Returns the part of the MIP that is due to α: the MIP less that of a front whose points all are the mean point.

    mean over α of αᵀ (r(α) − r̄), r̄ = mean over α of r(α). Above 0 if scores rise with their weights, 0 if α has no
    effect, below 0 if the effect is reversed.
    """
    points = np.asarray(points, float)
    return mip(alphas, points - points.mean(axis=-2, keepdims=True))


def spearman(weights: ArrayLike, scores: ArrayLike) -> Any:
    """Returns Spearman's ρ, the correlation of ranks, of weights (A,) and scores (…, A) of one objective.

    Equal values share their mean rank, and a constant side gives 0.
    """
    first, second = ranks(weights), ranks(scores)
    first, second = first - first.mean(), second - second.mean(axis=-1, keepdims=True)
    norm = np.sqrt((first**2).sum() * (second**2).sum(axis=-1))
    return np.where(norm > 0, (first * second).sum(axis=-1) / np.where(norm > 0, norm, 1.0), 0.0)[()]


def ranks(values: ArrayLike) -> Array:
    """Returns ranks along the last axis, from 1; values within TIE of the next one share the mean of their ranks."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    ascending = np.take_along_axis(values, order, axis=-1)
    tolerance = TIE * np.abs(values).max(axis=-1, keepdims=True)
    apart = np.diff(ascending, axis=-1) > tolerance
    edge = np.ones((*values.shape[:-1], 1), bool)
    position = np.arange(n)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, apart], -1), position, 0), axis=-1)
    ends = np.where(np.concatenate([apart, edge], -1), position, n)
    last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, axis=-1)
    return found


def spacing(points: ArrayLike) -> float:
    """Returns Schott's spacing of the points (n, k) of a front: 0 if they are evenly spread, or fewer than two.

    S = √( 1/(n − 1) · Σ_i (d̄ − d_i)² ), d_i = min over j ≠ i of Σ_m |r_im − r_jm|.
    """
    points = np.asarray(points, float)
    if len(points) < 2:
        return 0.0
    distances = np.abs(points[:, None] - points[None]).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(axis=1).std(ddof=1))


def corner_difference(alphas: ArrayLike, points: ArrayLike) -> Array:
    """Returns how far each score of points (…, A, k), k ≥ 2, moves from corner to corner of the grid. (…, k)

    r_i(α with the most weight on i) − mean over the other objectives j of r_i(α with the most weight on j).
    """
    at = np.asarray(points, float)[..., np.argmax(np.asarray(alphas, float), axis=0), :]  # (…, corner, objective)
    own = np.diagonal(at, axis1=-2, axis2=-1)
    others = (at.sum(axis=-2) - own) / (at.shape[-1] - 1)
    return np.asarray(own - others)


def bootstrap(scores: ArrayLike, samples: int, seed: int) -> Array:
    """Returns means of scores (P, …) over P prompts drawn with replacement. (S, …)

    All preferences and objectives of a prompt are drawn together. The same seed draws the same prompts for every array
    of P, so that samples of two runs on the same prompts can be subtracted.
    """
    scores = np.asarray(scores, float)
    drawn = np.random.default_rng(seed).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=samples)
    return np.tensordot(drawn / len(scores), scores, axes=1)


def is_constant(scores: ArrayLike) -> Mask:
    """Finds columns of scores (n, k) that are all the same but for rounding. (k,)"""
    scores = np.asarray(scores, float)
    found: Mask = np.ptp(scores, axis=0) <= TIE * np.abs(scores).max(axis=0)
    return found


def interval(value: float, samples: ArrayLike) -> dict[str, float]:
    """Returns a value with the percentile interval of its bootstrap samples, widened to hold the value if necessary.

    It is necessary for metrics that noise always raises (hypervolume) or lowers (a perfect rank correlation).
    """
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.asarray(samples, float), [tail, 100 - tail])
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}


# Points along the grid of preferences: neighbours, clusters, jumps. Scores are normalised, so that distances compare.


def neighbours(alphas: ArrayLike) -> Mask:
    """Finds neighbours among different preferences: no third one is closer to both than they are to each other. (A, A)

    For k = 2 those are consecutive preferences; on the simplex grid, those one step apart.
    """
    distances = _distances(np.asarray(alphas, float))
    found, closer = np.ones(distances.shape, bool), distances * (1 - TIE)
    for to_third in distances:
        found &= np.maximum(to_third[:, None], to_third[None]) >= closer
    np.fill_diagonal(found, False)
    return found


def indistinguishable(scores: ArrayLike) -> Mask:
    """Finds pairs of preferences whose points differ by less than the noise in every objective: (P, A, k) to (A, A).

    |mean over prompts of (r(α) − r(α'))| ≤ DEVIATIONS · √(variance over prompts / P): 0 is in the interval of a
    bootstrap over prompts whose samples are normally distributed. Each pair is tested by itself: some that differ by
    noise alone are told apart.
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
    """Groups :func:`neighbours` that are :func:`indistinguishable`; returns the indices of groups of two or more.

    In grid order, each preference joins the first group in which it has a neighbour and is indistinguishable from all.
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
    """Returns how far the point moves per unit of α between neighbours: (from, to, ‖Δr‖ / ‖Δα‖)."""
    moved, way = _distances(np.asarray(points, float)), _distances(np.asarray(alphas, float))
    return [(int(i), int(j), float(moved[i, j] / way[i, j])) for i, j in np.argwhere(np.triu(near))]


def jumps(walk: Sequence[tuple[int, int, float]], same: Mask) -> list[tuple[int, int, float]]:
    """Returns the :func:`steps` of more than JUMP times the median, between distinguishable points."""
    if not walk:
        return []
    median = float(np.median([step for _, _, step in walk]))
    return [(i, j, step) for i, j, step in walk if step > JUMP * median and not same[i, j]]


def _distances(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows[:, None] - rows[None], axis=-1))
