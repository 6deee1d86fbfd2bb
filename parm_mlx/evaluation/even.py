"""Preferences that cover the front evenly: ``--grid even``, for two objectives.

Steps of equal size in α make steps of very different size along the front. SURF (arXiv 2605.20619) takes the length of
the front up to α as a distribution function and inverts it, so that equal shares of the length lie between
preferences; it moves all of them until that holds. Here an answered preference stays, since its answers are paid for,
and the rule is applied to one new preference at a time: after the two corners and the middle, each further one halves
the widest gap, measured as the chord between neighbours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from parm_mlx.answers.store import Key, Scores
from parm_mlx.answers.sweep import Job, plan
from parm_mlx.errors import InputError
from parm_mlx.evaluation.metrics import is_constant
from parm_mlx.guidance.prompts import Prompt
from parm_mlx.preference import Alpha

EVEN = "even"
FIRST: tuple[Alpha, ...] = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
POINTS = 11  # as many as a grid of step 0.1 has
NARROWEST = 1 / 64  # of α: where answers jump, or differ by chance alone, halving goes no further


def check_even(objectives: Sequence[str]) -> None:
    """Raises InputError if there are other than two objectives: beyond a line, gaps have no order."""
    if len(objectives) != 2:
        raise InputError(
            f"--grid even is for two objectives, and these are {', '.join(objectives)}",
            hint="a step: --grid 0.25; or a file of preferences: --alphas",
        )


def widest_gap(alphas: Sequence[Alpha], points: Sequence[Sequence[float]]) -> Alpha | None:
    """Returns the middle of the two neighbouring preferences whose points are farthest apart.

    Args:
        alphas: Preferences, in any order.
        points: The normalised mean scores at each.

    Returns:
        The preference; of equal distances, that of the wider interval of α, then the one with more weight on the first
        objective. None if every interval is at most :data:`NARROWEST`.
    """
    gaps: list[tuple[float, float, Alpha]] = []
    ordered = sorted(zip(alphas, points, strict=True), reverse=True)
    for (before, start), (after, end) in pairwise(ordered):
        if (width := before[0] - after[0]) > NARROWEST:
            middle = (before[0] + after[0]) / 2
            gaps.append((math.dist(start, end), width, (middle, 1 - middle)))
    return max(gaps)[2] if gaps else None


@dataclass(frozen=True)
class EvenGrid:
    """The preferences of a run that are chosen as its answers are scored.

    Attributes:
        prompts: The prompts of the run.
        seeds: Its seeds.
        names: The rewards of its two objectives.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    names: Sequence[str]

    def alphas(self, scores: Mapping[Key, Scores]) -> list[Alpha]:
        """Returns the preferences to answer, as far as the scores that are there decide them.

        At first these are the corners and the middle. Once all answers to them and of the base alone are scored, it is
        one more, and so on up to :data:`POINTS`. The unit of the scores is the standard deviation of those of the base
        alone, or 1 where they are all the same. The same scores give the same preferences.
        """
        alphas, points = list(FIRST), list[list[float]]()
        unguided = self._scored(None, scores)
        if unguided is None:
            return alphas
        unit = np.where(is_constant(unguided), 1.0, unguided.std(axis=0))
        while len(alphas) < POINTS:
            for alpha in alphas[len(points) :]:
                if (scored := self._scored(alpha, scores)) is None:
                    return alphas
                points.append((scored.mean(axis=0) / unit).tolist())
            if (middle := widest_gap(alphas, points)) is None:
                break
            alphas.append(middle)
        return alphas

    def _scored(self, alpha: Alpha | None, scores: Mapping[Key, Scores]) -> NDArray[np.float64] | None:
        """Scores (answers, 2) at a preference; None where some are missing."""
        found = [scores.get((prompt.id, alpha, seed), {}) for prompt in self.prompts for seed in self.seeds]
        if any(name not in each for each in found for name in self.names):
            return None
        return np.array([[each[name] for name in self.names] for each in found], float)

    def jobs(self, alphas: Sequence[Alpha]) -> list[list[Job]]:
        """Returns the jobs of :meth:`alphas` in groups that stay as they are when preferences are added."""
        first = len(FIRST)
        groups = plan(self.prompts, alphas[:first], self.seeds)
        for alpha in alphas[first:]:
            groups += [group for group in plan(self.prompts, [alpha], self.seeds) if group[0].alpha is not None]
        return groups
