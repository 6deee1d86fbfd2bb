"""``metrics.json``: the metrics of one run, or of several on a joint scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parm_mlx.errors import InputError
from parm_mlx.evaluation import metrics
from parm_mlx.evaluation.diagnosis import diagnose
from parm_mlx.evaluation.metrics import LEVEL, interval
from parm_mlx.evaluation.scores import Normalize, Run, Scale, ScoreArrays, make_scale, named, score_arrays

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
    arrays = score_arrays(run)
    return _Measured(arrays, make_scale([arrays], normalize, reference), samples, seed).summary()


def compare(
    runs: Sequence[Run],
    *,
    normalize: Normalize = "unguided",
    reference: Sequence[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures several runs on one normalisation and one reference point.

    Args:
        runs: Runs with the same objectives and rewards.
        normalize: As for :func:`summarise`, over the unguided answers of all runs.
        reference: As for :func:`summarise`, over the points of all runs.
        samples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        The content of ``metrics.json``, of kind ``"comparison"``. ``"differences"`` has those runs that have the
        prompts of the first one, with paired intervals: the same prompts are drawn for both.

    Raises:
        InputError: As for :func:`summarise`, or runs differ in their objectives or rewards.
    """
    if not runs:
        raise InputError("no run to compare")
    for run in runs[1:]:
        _check_alike(runs[0], run)
    arrays = [score_arrays(run) for run in runs]
    scale = make_scale(arrays, normalize, reference)
    measured = [_Measured(each, scale, samples, seed) for each in arrays]
    first = measured[0]
    return {
        "format": FORMAT,
        "kind": "comparison",
        "objectives": list(runs[0].objectives),
        **scale.as_json(),
        "confidence": _confidence(arrays, samples),
        "runs": [one.summary() for one in measured],
        "differences": [
            {
                "run": other.arrays.run.name,
                "less": first.arrays.run.name,
                "hv": interval(other.hv - first.hv, other.drawn_hv - first.drawn_hv),
                "mip": interval(other.mip - first.mip, other.drawn_mip - first.drawn_mip),
            }
            for other in measured[1:]
            if other.arrays.prompts == first.arrays.prompts
        ],
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


def _confidence(arrays: Sequence[ScoreArrays], samples: int) -> dict[str, Any]:
    text = f"{LEVEL:.0%} percentile intervals of {samples} bootstrap samples of the prompts."
    if any(len(each.prompts) == 1 for each in arrays):
        text += " With one prompt there is nothing to draw from: low and high repeat the value."
    return {"level": LEVEL, "samples": samples, "over": "prompts", "text": text}


class _Measured:
    """The metrics of a run on a scale; of every metric, the value and its bootstrap samples."""

    def __init__(self, arrays: ScoreArrays, scale: Scale, samples: int, seed: int) -> None:
        self.arrays, self.scale, self.samples = arrays, scale, samples
        self.normalised = ((arrays.values - scale.centre) / scale.unit).mean(axis=1)  # (P, 1 + A, rewards)
        self.means = self.normalised.mean(axis=0)
        self.drawn = metrics.bootstrap(self.normalised, samples, seed)
        self.alphas = np.array(arrays.alphas, float)
        self.points, self.drawn_points = self.means[1:, arrays.columns], self.drawn[:, 1:, arrays.columns]
        self.hv = metrics.hypervolume(self.points, scale.reference)
        self.drawn_hv, self.drawn_hv_exact = metrics.hypervolumes(self.drawn_points, scale.reference)
        self.mip = float(metrics.mip(self.alphas, self.points))
        self.drawn_mip = metrics.mip(self.alphas, self.drawn_points)

    def summary(self) -> dict[str, Any]:
        arrays, run, alphas, points, drawn = self.arrays, self.arrays.run, self.alphas, self.points, self.drawn_points
        measured = {
            "format": FORMAT,
            "kind": "run",
            "name": run.name,
            "objectives": list(run.objectives),
            "rewards": dict(run.rewards),
            "prompts": len(arrays.prompts),
            "seeds": list(arrays.seeds),
            **self.scale.as_json(),
            "confidence": _confidence([arrays], self.samples),
            "unguided": self._point(0),
            "points": [self._point(1 + index) for index in range(len(alphas))],
            "hv": interval(self.hv, self.drawn_hv),
            "hv_text": self._hv_text(),
            "hv_unguided": metrics.hypervolume(self.means[:1, arrays.columns], self.scale.reference),
            "mip": interval(self.mip, self.drawn_mip),
            "mip_gain": interval(metrics.mip_gain(alphas, points), metrics.mip_gain(alphas, drawn)),
            "spearman": {
                name: interval(
                    metrics.spearman(alphas[:, i], points[:, i]), metrics.spearman(alphas[:, i], drawn[:, :, i])
                )
                for i, name in enumerate(run.objectives)
            },
            "corner_difference": self._corner_difference(),
            "front": self._front(),
            "time": _time(run.timing),
        }
        return {**measured, "diagnosis": diagnose(measured)}

    def _point(self, index: int) -> dict[str, Any]:
        arrays, names, scores = self.arrays, self.scale.names, {}
        for column, name in enumerate(names):
            value = interval(self.means[index, column], self.drawn[:, index, column])
            scores[name] = {"mean": value["value"], "low": value["low"], "high": value["high"]}
        return {
            "alpha": list(arrays.alphas[index - 1]) if index else None,
            "answers": len(arrays.prompts) * len(arrays.seeds),
            "ended": float(arrays.ended[index]),
            "tokens": float(arrays.tokens[index]),
            "scores": scores,
            "raw": named(names, arrays.values[:, :, index].mean(axis=(0, 1))),
        }

    def _hv_text(self) -> str:
        text = "approximated from {} directions"
        exact = metrics.hypervolume_is_exact(self.points, self.scale.reference)
        if exact and self.drawn_hv_exact:
            return "exact"
        value = "exact" if exact else text.format(metrics.VALUE.directions)
        return f"value {value}, samples of its interval {text.format(metrics.SAMPLE.directions)}"

    def _corner_difference(self) -> dict[str, Any]:
        names, columns = self.arrays.run.objectives, self.arrays.columns
        if len(names) == 1:  # one corner: against the unguided answers
            value = self.points[0] - self.means[0, columns]
            drawn = self.drawn_points[:, 0] - self.drawn[:, 0, columns]
        else:
            value, drawn = (metrics.corner_difference(self.alphas, each) for each in (self.points, self.drawn_points))
        return {name: interval(value[i], drawn[:, i]) for i, name in enumerate(names)}

    def _front(self) -> dict[str, Any]:
        indices = metrics.front(self.points)
        near = metrics.neighbours(self.alphas)
        same = metrics.indistinguishable(self.normalised[:, 1:, self.arrays.columns])
        jumps = metrics.jumps(metrics.steps(self.alphas, self.points, near), same)
        return {
            "indices": indices.tolist(),
            "size": len(indices),
            "spacing": metrics.spacing(self.points[indices]),
            "clusters": metrics.clusters(near, same),
            "jumps": [{"from": i, "to": j, "step": step} for i, j, step in jumps],
        }


def _time(timing: Mapping[str, float]) -> dict[str, float]:
    if not {"generating_s", "scoring_s"} <= timing.keys():
        return dict(timing)
    whole = timing["generating_s"] + timing["scoring_s"]
    return {**timing, "scoring_share": timing["scoring_s"] / whole if whole > 0 else 0.0}
