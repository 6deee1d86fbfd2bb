"""``metrics.json``: the metrics of one run, or of several on a joint scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parm_mlx.errors import InputError
from parm_mlx.evaluation import grid, metrics
from parm_mlx.evaluation.diagnosis import diagnose
from parm_mlx.evaluation.metrics import LEVEL, interval
from parm_mlx.evaluation.normalisation import Normalize, Scale, make_scale, named
from parm_mlx.evaluation.scores import Run, Scored, arrange

__all__ = ["FORMAT", "Run", "compare", "summarise"]

FORMAT = 1


def summarise(
    run: Run,
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of a run.

    Args:
        run: Answers and scores.
        normalize: ``"unguided"``: scores in standard deviations of the unguided answers from their mean; ``"none"``:
            as they are.
        reference: The reference point of the hypervolume in that unit, one number per objective. By default −2, or
            lower where a point is lower (as they are: a tenth of the range below the lowest).
        samples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        ``metrics.json``, ready for JSON.

    Raises:
        InputError: The run is not complete, or the reference point is not one number per objective or no point
            dominates it.
    """
    scored = arrange(run)
    scale = make_scale([scored], normalize, reference)
    return {"format": FORMAT, "kind": "run", **_Measured(scored, scale, samples, seed).summary()}


def compare(
    runs: Sequence[Run],
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of several runs on one normalisation and one reference point.

    Args:
        runs: Runs with the same objectives and rewards.
        normalize: As for :func:`summarise`, over the unguided answers of all runs.
        reference: As for :func:`summarise`, over the points of all runs.
        samples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        ``metrics.json`` of kind ``"comparison"``. Where runs have the prompts of the first one, ``"differences"`` says
        how they differ from it, with paired intervals: the prompts that are drawn are the same for both.

    Raises:
        InputError: As for :func:`summarise`, or runs differ in their objectives or rewards.
    """
    if not runs:
        raise InputError("no run to compare")
    for run in runs[1:]:
        _check_alike(runs[0], run)
    all_scored = [arrange(run) for run in runs]
    scale = make_scale(all_scored, normalize, reference)
    measured = [_Measured(scored, scale, samples, seed) for scored in all_scored]
    return {
        "format": FORMAT,
        "kind": "comparison",
        "objectives": list(runs[0].objectives),
        **scale.as_json(),
        "confidence": _confidence(all_scored, samples),
        "runs": [{"format": FORMAT, "kind": "run", **one.summary()} for one in measured],
        "differences": _differences(measured),
    }


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


def _confidence(all_scored: Sequence[Scored], samples: int) -> dict[str, Any]:
    text = f"{LEVEL:.0%} percentile intervals of {samples} bootstrap samples of the prompts."
    if any(len(scored.prompts) == 1 for scored in all_scored):
        text += " With one prompt there is nothing to draw from: low and high repeat the value."
    return {"level": LEVEL, "samples": samples, "over": "prompts", "text": text}


class _Measured:
    """A run on a scale."""

    def __init__(self, scored: Scored, scale: Scale, samples: int, seed: int) -> None:
        self.scored, self.scale, self.samples = scored, scale, samples
        self.normalised = ((scored.values - scale.centre) / scale.unit).mean(axis=1)  # (P, 1 + A, rewards)
        self.means = self.normalised.mean(axis=0)
        self.drawn = metrics.bootstrap(self.normalised, samples, seed)
        columns = scored.objective_columns
        self.alphas = np.array(scored.alphas, float)
        self.points, self.drawn_points = self.means[1:, columns], self.drawn[:, 1:, columns]
        self.hv = metrics.hypervolume(self.points, scale.reference)
        self.drawn_hv, self.drawn_hv_exact = metrics.hypervolumes(self.drawn_points, scale.reference)
        self.mip = float(metrics.mip(self.alphas, self.points))
        self.drawn_mip = metrics.mip(self.alphas, self.drawn_points)

    def summary(self) -> dict[str, Any]:
        run, alphas = self.scored.run, self.alphas
        gain = [metrics.mip_gain(alphas, points) for points in (self.points, self.drawn_points)]
        found = {
            "name": run.name,
            "objectives": list(run.objectives),
            "rewards": dict(run.rewards),
            "prompts": len(self.scored.prompts),
            "seeds": list(self.scored.seeds),
            **self.scale.as_json(),
            "confidence": _confidence([self.scored], self.samples),
            "unguided": self._point(0),
            "points": [self._point(1 + index) for index in range(len(alphas))],
            "hv": interval(self.hv, self.drawn_hv),
            "hv_text": self._hv_text(),
            "hv_unguided": metrics.hypervolume(self.means[:1, self.scored.objective_columns], self.scale.reference),
            "mip": interval(self.mip, self.drawn_mip),
            "mip_gain": interval(*gain),
            "spearman": self._spearman(),
            "corner_difference": self._corner_difference(),
            "front": self._front(),
            "time": _time(run.timing),
        }
        return {**found, "diagnosis": diagnose(found)}

    def _point(self, index: int) -> dict[str, Any]:
        scored, names = self.scored, self.scale.names
        scores = {}
        for column, name in enumerate(names):
            found = interval(self.means[index, column], self.drawn[:, index, column])
            scores[name] = {"mean": found["value"], "low": found["low"], "high": found["high"]}
        return {
            "alpha": list(scored.alphas[index - 1]) if index else None,
            "answers": len(scored.prompts) * len(scored.seeds),
            "ended": float(scored.ended[index]),
            "tokens": float(scored.tokens[index]),
            "scores": scores,
            "raw": named(names, scored.values[:, :, index].mean(axis=(0, 1))),
        }

    def _hv_text(self) -> str:
        text = "approximated from {} directions"
        value = metrics.hypervolume_is_exact(self.points, self.scale.reference)
        if value and self.drawn_hv_exact:
            return "exact"
        value_text = "exact" if value else text.format(metrics.VALUE.directions)
        return f"value {value_text}, samples of its interval {text.format(metrics.SAMPLE.directions)}"

    def _spearman(self) -> dict[str, Any]:
        found = {}
        for i, name in enumerate(self.scored.run.objectives):
            weights = self.alphas[:, i]
            value = metrics.spearman(weights, self.points[:, i])
            found[name] = interval(value, metrics.spearman(weights, self.drawn_points[:, :, i]))
        return found

    def _corner_difference(self) -> dict[str, Any]:
        if len(self.scored.run.objectives) == 1:  # one corner: against the unguided answers
            column = self.scored.objective_columns
            value = self.points[0] - self.means[0, column]
            drawn = self.drawn_points[:, 0] - self.drawn[:, 0, column]
        else:
            value, drawn = (metrics.corner_difference(self.alphas, each) for each in (self.points, self.drawn_points))
        names = self.scored.run.objectives
        return {name: interval(value[i], drawn[:, i]) for i, name in enumerate(names)}

    def _front(self) -> dict[str, Any]:
        indices = metrics.front(self.points)
        near = grid.neighbours(self.alphas)
        same = grid.indistinguishable(self.normalised[:, 1:, self.scored.objective_columns])
        walk = grid.jumps(grid.steps(self.alphas, self.points, near), same)
        return {
            "indices": indices.tolist(),
            "size": len(indices),
            "spacing": metrics.spacing(self.points[indices]),
            "clusters": grid.clusters(near, same),
            "jumps": [{"from": i, "to": j, "step": step} for i, j, step in walk],
        }


def _differences(measured: Sequence[_Measured]) -> list[dict[str, Any]]:
    first = measured[0]
    return [
        {
            "run": other.scored.run.name,
            "less": first.scored.run.name,
            "hv": interval(other.hv - first.hv, other.drawn_hv - first.drawn_hv),
            "mip": interval(other.mip - first.mip, other.drawn_mip - first.drawn_mip),
        }
        for other in measured[1:]
        if other.scored.prompts == first.scored.prompts
    ]


def _time(timing: Mapping[str, float]) -> dict[str, float]:
    found = dict(timing)
    if "generating_s" in found and "scoring_s" in found:
        whole = found["generating_s"] + found["scoring_s"]
        found["scoring_share"] = found["scoring_s"] / whole if whole > 0 else 0.0
    return found
