"""The scale on which scores are compared: their unit, and the reference point of the hypervolume."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from parm_mlx.errors import InputError
from parm_mlx.evaluation.metrics import Array
from parm_mlx.evaluation.scores import Scored

REFERENCE = -2.0  # in standard deviations of the unguided answers
REFERENCE_STEP = 0.5
Normalize = Literal["unguided", "none"]


@dataclass(frozen=True)
class Scale:
    """How scores are normalised, and above which point volume counts.

    Attributes:
        kind: What the unit is.
        text: The same in a sentence.
        names: Of the rewards.
        objectives: Of the preference.
        centre: What becomes 0, (rewards,).
        unit: What becomes 1, (rewards,).
        spread: Standard deviation of the unguided answers in normalised units, (rewards,).
        reference: Reference point in normalised units, (k,).
        reference_text: Who chose it, and how.
    """

    kind: Normalize
    text: str
    names: tuple[str, ...]
    objectives: tuple[str, ...]
    centre: Array
    unit: Array
    spread: Array
    reference: Array
    reference_text: str

    def as_json(self) -> dict[str, Any]:
        """The part of ``metrics.json`` that says what the scale is."""
        return {
            "normalization": {
                "kind": self.kind,
                "text": self.text,
                "centre": named(self.names, self.centre),
                "unit": named(self.names, self.unit),
                "spread": named(self.names, self.spread),
            },
            "reference_point": named(self.objectives, self.reference),
            "reference_text": self.reference_text,
        }


def make_scale(all_scored: Sequence[Scored], normalize: Normalize, reference: Sequence[float] | None) -> Scale:
    """One scale for all runs, which have the same objectives and rewards.

    Args:
        all_scored: The runs.
        normalize: As :func:`parm_mlx.evaluation.summary.summarise` has it.
        reference: The reference point in normalised units; None chooses one.

    Raises:
        InputError: The reference point is not one number per objective, or no point dominates it.
    """
    first = all_scored[0]
    names = tuple(first.run.rewards)
    unguided = np.concatenate([scored.values[:, :, 0].reshape(-1, len(names)) for scored in all_scored])
    constant = np.ptp(unguided, axis=0) == 0
    deviation = np.where(constant, 0.0, unguided.std(axis=0))
    if normalize == "unguided":
        centre, unit = unguided.mean(axis=0), np.where(constant, 1.0, deviation)
        of = "" if len(all_scored) == 1 else f" of all {len(all_scored)} runs"
        text = f"Scores are (score - mean) / standard deviation of the {len(unguided)} unguided answers{of}."
        if constant.any():
            same = ", ".join(name for name, is_same in zip(names, constant, strict=True) if is_same)
            text += f" The unguided answers all score the same in {same}; the unit there is 1."
    else:
        centre, unit, text = np.zeros(len(names)), np.ones(len(names)), "Scores are not normalised."
    columns = first.objective_columns
    points = [((scored.values.mean(axis=(0, 1)) - centre) / unit)[:, columns] for scored in all_scored]
    objectives = first.run.objectives
    if reference is None:
        chosen, how = _default_reference(np.concatenate(points), normalize, len(all_scored))
    else:
        chosen, how = _given_reference(reference, np.concatenate([each[1:] for each in points]), objectives), "given"
    return Scale(normalize, text, names, objectives, centre, unit, deviation / unit, chosen, how)


def _default_reference(points: Array, normalize: Normalize, runs: int) -> tuple[Array, str]:
    lowest = points.min(axis=0)
    over = "points" if runs == 1 else f"points of the {runs} runs"
    if normalize == "none":
        extent = np.ptp(points, axis=0)
        below = np.where(extent > 0, extent / 10, 1.0)
        return lowest - below, f"a tenth of the range below the lowest of the {over} (1 below where all are the same)"
    below = REFERENCE_STEP * (np.ceil(lowest / REFERENCE_STEP) - 1)
    text = f"{REFERENCE:g} for each objective"
    if (lowest <= REFERENCE).any():
        text += f", or the next multiple of {REFERENCE_STEP:g} below the lowest of the {over}"
    return np.where(lowest <= REFERENCE, below, REFERENCE), text


def _given_reference(reference: Sequence[float], points: Array, objectives: Sequence[str]) -> Array:
    shown = ", ".join(f"{value:g}" for value in reference)
    if len(reference) != len(objectives):
        names = ", ".join(objectives)
        raise InputError(f"the reference point {shown} has {len(reference)} number(s), the objectives are {names}")
    if not all(math.isfinite(value) for value in reference):
        raise InputError(f"the reference point {shown} must be finite")
    if not (points > np.array(reference, float)).all(axis=1).any():
        raise InputError(
            f"no point dominates the reference point {shown}: the hypervolume would be 0",
            hint="choose a lower one; each objective's best point scores "
            + ", ".join(f"{name} {best:.3g}" for name, best in zip(objectives, points.max(axis=0), strict=True)),
        )
    return np.array(reference, float)


def named(names: Sequence[str], values: Array) -> dict[str, float]:
    """Numbers by name."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}
