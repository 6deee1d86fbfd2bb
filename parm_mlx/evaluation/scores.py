"""A run's answers and scores as arrays."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parm_mlx.answers.results import Key, Result
from parm_mlx.errors import InputError
from parm_mlx.evaluation.metrics import Array
from parm_mlx.preference import Alpha, format_alpha


@dataclass(frozen=True)
class Run:
    """What is summarised: the answers of a sweep with their scores.

    Attributes:
        name: What tables call it.
        objectives: In the order of α.
        rewards: SPEC of each reward; one for each objective, and others that are reported beside.
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
class Scored:
    """A complete run.

    Attributes:
        run: The run.
        prompts: Ids of the prompts, sorted.
        alphas: The preferences in grid order, the first objective's weight falling.
        seeds: The seeds, rising.
        values: Raw scores (P, seeds, 1 + A, rewards), the unguided answers first.
        tokens: Mean length of the answers, (1 + A,).
        ended: Share of the answers that ended before the limit, (1 + A,).
    """

    run: Run
    prompts: tuple[str, ...]
    alphas: tuple[Alpha, ...]
    seeds: tuple[int, ...]
    values: Array
    tokens: Array
    ended: Array

    @property
    def objective_columns(self) -> list[int]:
        """Where the objectives stand among the rewards."""
        return [list(self.run.rewards).index(name) for name in self.run.objectives]


def arrange(run: Run) -> Scored:
    """Orders a run's answers and scores.

    Raises:
        InputError: There is no guided answer, an answer or a score is missing, there twice or not finite, or an
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
    _check_complete([key for key in keys if key not in answers], len(keys), "answers", run)
    _check_complete([key for key in keys if not run.scores.get(key)], len(keys), "scores", run)
    shape = (len(prompts), len(seeds), 1 + len(alphas))
    values = np.array([_score(run, key, name) for key in keys for name in run.rewards], float)
    ordered = [answers[key] for key in keys]
    return Scored(
        run,
        prompts,
        alphas,
        seeds,
        values.reshape(*shape, len(run.rewards)),
        _mean((answer.tokens for answer in ordered), shape),
        _mean((answer.finish_reason == "stop" for answer in ordered), shape),
    )


def _score(run: Run, key: Key, name: str) -> float:
    score = run.scores[key].get(name)
    if score is None or not math.isfinite(score):
        found = "has no score" if score is None else f"has the score {score}"
        raise InputError(f"run {run.name}: the answer to {_shown(key, run)} {found} by the reward {name!r}")
    return score


def _mean(values: Iterable[Any], shape: tuple[int, ...]) -> Array:
    return np.asarray(np.array(list(values), float).reshape(shape).mean(axis=(0, 1)))


def _check_complete(missing: Sequence[Key], total: int, what: str, run: Run) -> None:
    if missing:
        raise InputError(
            f"run {run.name} is not complete: {len(missing)} of {total} {what} are missing, for instance to "
            f"{_shown(missing[0], run)}",
            hint="the command that began the run completes it",
        )


def _shown(key: Key, run: Run) -> str:
    prompt, alpha, seed = key
    at = "unguided" if alpha is None else f"at {format_alpha(alpha, run.objectives)}"
    return f"{prompt!r} {at}, seed {seed}"
