"""The scores of a run as arrays, and the scale on which they are compared.

P is the number of prompts, A of preferences, k of objectives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from parm_mlx.answers.store import Key, Result
from parm_mlx.errors import InputError
from parm_mlx.evaluation.metrics import Array
from parm_mlx.preference import Alpha, format_alpha

REFERENCE = -2.0  # in standard deviations of the unguided answers
REFERENCE_STEP = 0.5
Normalize = Literal["unguided", "none"]


@dataclass(frozen=True)
class Run:
    """Answers of a sweep with their scores.

    Attributes:
        name: Its name in tables.
        objectives: In the order of α.
        rewards: SPEC of each reward by name: one for each objective, and others that are reported beside.
        results: An answer for every prompt at every α and seed, and of the base alone.
        scores: By reward, for each answer; larger is better.
        timing: Seconds and milliseconds that were measured, by name; may be empty.
    """

    name: str
    objectives: tuple[str, ...]
    rewards: Mapping[str, str]
    results: Sequence[Result]
    scores: Mapping[Key, Mapping[str, float]]
    timing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreArrays:
    """The scores of a complete run.

    Attributes:
        run: The run.
        prompts: Ids of the prompts, sorted.
        alphas: The preferences in grid order, the first objective's weight falling.
        seeds: The seeds, rising.
        values: Raw scores (P, seeds, 1 + A, rewards), the unguided answers first.
        tokens: Mean length of the answers, (1 + A,).
        ended: Share of the answers that ended before the limit, (1 + A,).
        columns: The index of each objective among the rewards.
    """

    run: Run
    prompts: tuple[str, ...]
    alphas: tuple[Alpha, ...]
    seeds: tuple[int, ...]
    values: Array
    tokens: Array
    ended: Array
    columns: list[int]


def score_arrays(run: Run) -> ScoreArrays:
    """Orders a run's answers and scores.

    Raises:
        InputError: There is no guided answer; an answer or a score is missing, given twice or not finite; or an
            objective has no reward.
    """
    for name in run.objectives:
        if name not in run.rewards:
            raise InputError(f"run {run.name}: no reward for the objective {name!r}", hint=f"--reward {name}=SPEC")
    answers: dict[Key, Result] = {}
    for result in run.results:
        if answers.setdefault(result.key, result) is not result:
            raise InputError(f"run {run.name}: the answer to {_shown(result.key, run)} is there twice")
    prompts = tuple(sorted({result.id for result in run.results}))
    seeds = tuple(sorted({result.seed for result in run.results}))
    alphas = tuple(sorted({result.alpha for result in run.results if result.alpha is not None}, reverse=True))
    if not alphas:
        raise InputError(f"run {run.name} has no guided answer")
    keys = [(prompt, alpha, seed) for prompt in prompts for seed in seeds for alpha in (None, *alphas)]
    for noun, there in (("answers", answers), ("scores", {key for key in keys if run.scores.get(key)})):
        if missing := [key for key in keys if key not in there]:
            raise InputError(
                f"run {run.name} is not complete: {len(missing)} of {len(keys)} {noun} are missing, for instance to "
                f"{_shown(missing[0], run)}",
                hint="the command that began the run completes it",
            )
    ordered = [answers[key] for key in keys]
    per_answer = np.array([[answer.tokens, answer.finish_reason == "stop"] for answer in ordered], float)
    shape = (len(prompts), len(seeds), 1 + len(alphas))
    tokens, ended = per_answer.reshape(*shape, 2).mean(axis=(0, 1)).T
    values = np.array([[_score(run, key, name) for name in run.rewards] for key in keys], float).reshape(*shape, -1)
    columns = [list(run.rewards).index(name) for name in run.objectives]
    return ScoreArrays(run, prompts, alphas, seeds, values, tokens, ended, columns)


def _score(run: Run, key: Key, name: str) -> float:
    score = run.scores[key].get(name)
    if score is None or not math.isfinite(score):
        problem = "has no score" if score is None else f"has the score {score}"
        raise InputError(f"run {run.name}: the answer to {_shown(key, run)} {problem} by the reward {name!r}")
    return score


def _shown(key: Key, run: Run) -> str:
    prompt, alpha, seed = key
    at = "unguided" if alpha is None else f"at {format_alpha(alpha, run.objectives)}"
    return f"{prompt!r} {at}, seed {seed}"


@dataclass(frozen=True)
class Scale:
    """The normalisation of scores, and the reference point of the hypervolume.

    Attributes:
        kind: The unit.
        text: The unit in a sentence.
        names: Names of the rewards.
        objectives: In the order of α.
        centre: The raw score that becomes 0, (rewards,).
        unit: The raw difference that becomes 1, (rewards,).
        spread: Standard deviation of the unguided answers in normalised units, (rewards,).
        reference: Reference point in normalised units, (k,).
        reference_text: How it was chosen.
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
        """Returns the part of ``metrics.json`` that describes the scale."""
        numbers = {"centre": self.centre, "unit": self.unit, "spread": self.spread}
        return {
            "normalization": {
                "kind": self.kind,
                "text": self.text,
                **{name: named(self.names, values) for name, values in numbers.items()},
            },
            "reference_point": named(self.objectives, self.reference),
            "reference_text": self.reference_text,
        }


def make_scale(runs: Sequence[ScoreArrays], normalize: Normalize, reference: Sequence[float] | None) -> Scale:
    """Makes one scale for all runs, which have the same objectives and rewards.

    Args:
        runs: The runs.
        normalize: As for :func:`parm_mlx.evaluation.summary.summarise`.
        reference: The reference point in normalised units; None chooses one.

    Raises:
        InputError: The reference point is not one number per objective, or no point dominates it.
    """
    names, objectives, columns = tuple(runs[0].run.rewards), runs[0].run.objectives, runs[0].columns
    unguided = np.concatenate([arrays.values[:, :, 0].reshape(-1, len(names)) for arrays in runs])
    constant = np.ptp(unguided, axis=0) == 0
    deviation = np.where(constant, 0.0, unguided.std(axis=0))
    if normalize == "unguided":
        centre, unit = unguided.mean(axis=0), np.where(constant, 1.0, deviation)
        of = "" if len(runs) == 1 else f" of all {len(runs)} runs"
        text = f"Scores are (score - mean) / standard deviation of the {len(unguided)} unguided answers{of}."
        if constant.any():
            same = ", ".join(name for name, is_same in zip(names, constant, strict=True) if is_same)
            text += f" The unguided answers all score the same in {same}; the unit there is 1."
    else:
        centre, unit, text = np.zeros(len(names)), np.ones(len(names)), "Scores are not normalised."
    points = [((arrays.values.mean(axis=(0, 1)) - centre) / unit)[:, columns] for arrays in runs]
    if reference is None:
        chosen, how = _default_reference(np.concatenate(points), normalize, len(runs))
    else:
        guided = np.concatenate([own[1:] for own in points])
        chosen, how = _given_reference(reference, guided, objectives), "given"
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
        best = ", ".join(f"{name} {best:.3g}" for name, best in zip(objectives, points.max(axis=0), strict=True))
        raise InputError(
            f"no point dominates the reference point {shown}: the hypervolume would be 0",
            hint=f"choose a lower one; each objective's best point scores {best}",
        )
    return np.array(reference, float)


def named(names: Sequence[str], values: Array) -> dict[str, float]:
    """Returns numbers by name."""
    return {name: float(value) for name, value in zip(names, values, strict=True)}
