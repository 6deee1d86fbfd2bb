"""``metrics.json``: the metrics of one run, or of several on a joint scale.

P is the number of prompts, A of preferences, k of objectives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np

from parm_mlx.answers.store import Key, Result
from parm_mlx.errors import InputError
from parm_mlx.evaluation import metrics
from parm_mlx.evaluation.diagnosis import diagnose
from parm_mlx.evaluation.metrics import LEVEL, Array, interval, is_constant
from parm_mlx.guidance.templates import Content
from parm_mlx.preference import Alpha, format_alpha

FORMAT = 1
REFERENCE = -2.0  # in standard deviations of the unguided answers
REFERENCE_STEP = 0.5
Normalize = Literal["unguided", "none"]


@dataclass(frozen=True)
class Run:
    """Answers of a sweep with their scores."""

    name: str  # in tables
    objectives: tuple[str, ...]  # in the order of α
    rewards: Mapping[str, str]  # SPEC of each by name: one for each objective, and others that are reported beside
    results: Sequence[Result]  # an answer for every prompt at every α and seed, and of the base alone
    scores: Mapping[Key, Mapping[str, float]]  # by reward, for each answer; larger is better
    timing: Mapping[str, float] = field(default_factory=dict)  # measured seconds and milliseconds, by name
    fidelity: Mapping[str, Any] | None = None  # of one pass, as parm_mlx.evaluation.fidelity measures it


def summarise(
    run: Run,
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a run.

    Args:
        run: Answers and scores.
        normalize: ``"unguided"``: scores in standard deviations of the unguided answers from their mean; ``"none"``:
            raw scores.
        reference: The reference point of the hypervolume in that unit, one number per objective. By default −2, or
            lower where a point is lower (raw: a tenth of the range below the lowest).
        samples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        The content of ``metrics.json``, of kind ``"run"``.

    Raises:
        InputError: The run is not complete, or the reference point is not one number per objective or no point
            dominates it.
    """
    scores = _order_scores(run)
    return _measure(scores, _make_scale([scores], normalize, reference), samples, seed)[0]


def compare(
    runs: Sequence[Run],
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures runs with the same objectives and rewards on one scale; arguments as for :func:`summarise`.

    Returns:
        The content of ``metrics.json``, of kind ``"comparison"``. ``"differences"`` has those runs that have the
        prompts of the first one, with paired intervals: the same prompts are drawn for both. The mean inner product is
        among them only where the preferences are the same, too.

    Raises:
        InputError: As for :func:`summarise`, or runs differ in their objectives or rewards.
    """
    if not runs:
        raise InputError("no run to compare")
    for run in runs[1:]:
        _check_alike(runs[0], run)
    ordered = [_order_scores(run) for run in runs]
    scale = _make_scale(ordered, normalize, reference)
    measured = [_measure(scores, scale, samples, seed) for scores in ordered]
    (first, first_drawn), differences = measured[0], []
    for scores, (summary, drawn) in zip(ordered[1:], measured[1:], strict=True):
        if _asked(scores.run) == _asked(runs[0]):
            alike = ("hv", "mip") if scores.alphas == ordered[0].alphas else ("hv",)
            paired = {
                name: interval(summary[name]["value"] - first[name]["value"], drawn[name] - first_drawn[name])
                for name in alike
            }
            differences.append({"run": scores.run.name, "less": runs[0].name, **paired})
    return {
        "format": FORMAT,
        "kind": "comparison",
        "objectives": list(runs[0].objectives),
        **scale.facts,
        "confidence": _confidence(ordered, samples),
        "runs": [summary for summary, _ in measured],
        "differences": differences,
    }


def _asked(run: Run) -> dict[str, Content]:
    return {result.id: result.prompt for result in run.results}


def _check_alike(first: Run, other: Run) -> None:
    between = f"runs {first.name} and {other.name} cannot be compared"
    if first.objectives != other.objectives:
        theirs, ours = ", ".join(other.objectives), ", ".join(first.objectives)
        raise InputError(f"{between}: the objectives are {ours} in one, {theirs} in the other")
    for name in {**first.rewards, **other.rewards}:
        ours, theirs = (str(run.rewards.get(name, "not there")) for run in (first, other))
        if ours != theirs:
            hint = "score one of them again: the same evaluate command with the other's --reward"
            raise InputError(f"{between}: the reward {name!r} is {ours} in one, {theirs} in the other", hint=hint)


class _Scores(NamedTuple):
    """The scores of a complete run as arrays."""

    run: Run
    prompts: list[str]  # ids, sorted
    alphas: list[Alpha]  # in grid order, the first objective's weight falling
    seeds: list[int]  # rising
    values: Array  # raw scores (P, seeds, 1 + A, rewards), the unguided answers first
    tokens: Array  # mean length of the answers, (1 + A,)
    ended: Array  # share of the answers that ended before the limit, (1 + A,)
    columns: list[int]  # the index of each objective among the rewards


def _order_scores(run: Run) -> _Scores:
    """Orders a run's answers and scores, and checks that none is missing, there twice or not finite."""
    for name in run.objectives:
        if name not in run.rewards:
            raise InputError(f"run {run.name}: no reward for the objective {name!r}", hint=f"--reward {name}=SPEC")
    answers: dict[Key, Result] = {}
    for result in run.results:
        if answers.setdefault(result.key, result) is not result:
            raise InputError(f"run {run.name}: the answer to {_shown(result.key, run)} is there twice")
    prompts = sorted({result.id for result in run.results})
    seeds = sorted({result.seed for result in run.results})
    alphas = sorted({result.alpha for result in run.results if result.alpha is not None}, reverse=True)
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
    for key, name in product(keys, run.rewards):
        score = run.scores[key].get(name)
        if score is None or not math.isfinite(score):
            problem = "has no score" if score is None else f"has the score {score}"
            raise InputError(f"run {run.name}: the answer to {_shown(key, run)} {problem} by the reward {name!r}")
    per_answer = np.array([[answers[key].tokens, answers[key].finish_reason == "stop"] for key in keys], float)
    shape = (len(prompts), len(seeds), 1 + len(alphas))
    tokens, ended = per_answer.reshape(*shape, 2).mean(axis=(0, 1)).T
    values = np.array([[run.scores[key][name] for name in run.rewards] for key in keys], float).reshape(*shape, -1)
    columns = [list(run.rewards).index(name) for name in run.objectives]
    return _Scores(run, prompts, alphas, seeds, values, tokens, ended, columns)


def _shown(key: Key, run: Run) -> str:
    prompt, alpha, seed = key
    at = "unguided" if alpha is None else f"at {format_alpha(alpha, run.objectives)}"
    return f"{prompt!r} {at}, seed {seed}"


class _Scale(NamedTuple):
    """The normalisation of scores, and the reference point of the hypervolume in normalised units."""

    centre: Array  # the raw score that becomes 0, (rewards,)
    unit: Array  # the raw difference that becomes 1, (rewards,)
    reference: Array  # (k,)
    facts: dict[str, Any]  # its part of metrics.json


def _make_scale(runs: Sequence[_Scores], normalize: Normalize, given: Sequence[float] | None) -> _Scale:
    """Makes one scale for all runs, which have the same objectives and rewards."""
    names, objectives, columns = list(runs[0].run.rewards), runs[0].run.objectives, runs[0].columns
    unguided = np.concatenate([scores.values[:, :, 0].reshape(-1, len(names)) for scores in runs])
    constant = is_constant(unguided)
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
    points = [((scores.values.mean(axis=(0, 1)) - centre) / unit)[:, columns] for scores in runs]
    if given is None:
        reference, how = _default_reference(np.concatenate(points), normalize, len(runs))
    else:
        reference, how = _given_reference(given, np.concatenate([own[1:] for own in points]), objectives), "given"
    numbers = {"centre": centre, "unit": unit, "spread": deviation / unit}
    facts = {
        "normalization": {"kind": normalize, "text": text} | {key: _named(names, numbers[key]) for key in numbers},
        "reference_point": _named(objectives, reference),
        "reference_text": how,
    }
    return _Scale(centre, unit, reference, facts)


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


def _named(names: Sequence[str], values: Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _confidence(runs: Sequence[_Scores], samples: int) -> dict[str, Any]:
    text = f"{LEVEL:.0%} percentile intervals of {samples} bootstrap samples of the prompts."
    if any(len(scores.prompts) == 1 for scores in runs):
        text += " With one prompt there is nothing to draw from: low and high repeat the value."
    return {"level": LEVEL, "samples": samples, "over": "prompts", "text": text}


def _measure(scores: _Scores, scale: _Scale, samples: int, seed: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the summary of a run, and the bootstrap samples of its HV and MIP."""
    run, columns, alphas = scores.run, scores.columns, np.array(scores.alphas, float)
    normalised = ((scores.values - scale.centre) / scale.unit).mean(axis=1)  # (P, 1 + A, rewards)
    means, drawn_means = normalised.mean(axis=0), metrics.bootstrap(normalised, samples, seed)
    points, drawn = means[1:, columns], drawn_means[:, 1:, columns]
    (hv,), exact = metrics.hypervolumes(points[None], scale.reference, metrics.VALUE)
    drawn_hv, drawn_exact = metrics.hypervolumes(drawn, scale.reference)
    drawn_mip = metrics.mip(alphas, drawn)
    if len(columns) == 1:  # one corner: against the unguided answers
        corner, drawn_corner = points[0] - means[0, columns], drawn[:, 0] - drawn_means[:, 0, columns]
    else:
        corner, drawn_corner = (metrics.corner_difference(alphas, each) for each in (points, drawn))
    timing = dict(run.timing)
    if {"generating_s", "scoring_s"} <= timing.keys():
        whole = timing["generating_s"] + timing["scoring_s"]
        timing["scoring_share"] = timing["scoring_s"] / whole if whole > 0 else 0.0
    spearman = [[metrics.spearman(alphas[:, i], each[..., i]) for each in (points, drawn)] for i in range(len(columns))]

    def point(index: int) -> dict[str, Any]:
        own = {}
        for column, name in enumerate(run.rewards):
            value = interval(means[index, column], drawn_means[:, index, column])
            own[name] = {"mean": value["value"], "low": value["low"], "high": value["high"]}
        return {
            "alpha": list(scores.alphas[index - 1]) if index else None,
            "answers": len(scores.prompts) * len(scores.seeds),
            "ended": float(scores.ended[index]),
            "tokens": float(scores.tokens[index]),
            "scores": own,
            "raw": _named(list(run.rewards), scores.values[:, :, index].mean(axis=(0, 1))),
        }

    summary = {
        "format": FORMAT,
        "kind": "run",
        "name": run.name,
        "objectives": list(run.objectives),
        "rewards": dict(run.rewards),
        "prompts": len(scores.prompts),
        "seeds": scores.seeds,
        **scale.facts,
        "confidence": _confidence([scores], samples),
        "unguided": point(0),
        "points": [point(1 + index) for index in range(len(alphas))],
        "hv": interval(hv, drawn_hv),
        "hv_text": _hv_text(exact, drawn_exact),
        "hv_unguided": metrics.hypervolume(means[:1, columns], scale.reference),
        "mip": interval(float(metrics.mip(alphas, points)), drawn_mip),
        "mip_gain": interval(metrics.mip_gain(alphas, points), metrics.mip_gain(alphas, drawn)),
        "spearman": {name: interval(*spearman[i]) for i, name in enumerate(run.objectives)},
        "corner_difference": {name: interval(corner[i], drawn_corner[:, i]) for i, name in enumerate(run.objectives)},
        "front": _front(alphas, points, metrics.indistinguishable(normalised[:, 1:, columns])),
        "time": timing,
        **({"fidelity": dict(run.fidelity)} if run.fidelity else {}),
    }
    return {**summary, "diagnosis": diagnose(summary)}, {"hv": drawn_hv, "mip": drawn_mip}


def _hv_text(exact: bool, samples_exact: bool) -> str:
    if exact and samples_exact:
        return "exact"
    text = "approximated from {} directions"
    value = "exact" if exact else text.format(metrics.VALUE.directions)
    return f"value {value}, samples of its interval {text.format(metrics.SAMPLE.directions)}"


def _front(alphas: Array, points: Array, same: metrics.Mask) -> dict[str, Any]:
    indices, near = metrics.front(points), metrics.neighbours(alphas)
    jumps = metrics.jumps(metrics.steps(alphas, points, near), same)
    return {
        "indices": indices.tolist(),
        "size": len(indices),
        "spacing": metrics.spacing(points[indices]),
        "clusters": metrics.clusters(near, same),
        "jumps": [{"from": i, "to": j, "step": step} for i, j, step in jumps],
    }
