"""How a PARM and its backbone judge held-out pairs: which response they find likelier, and how often that is right."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

# isort: split
import mlx.core as mx
import numpy as np
from intervals import over_seeds
from numpy.typing import NDArray

from parm_mlx.data.dataset import load_data
from parm_mlx.data.pairs import Pair
from parm_mlx.data.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.drawing import STYLES
from parm_mlx.evaluation import metrics
from parm_mlx.guidance.loading import load_guide
from parm_mlx.pblora.layer import Unconditioned, conditioned
from parm_mlx.preference import Alpha
from parm_mlx.training.batching import make_batch
from parm_mlx.training.response_logprobs import ResponseScorer

BATCH = 8
Array = NDArray[np.float64]


def leads(
    parm: Path, model: str, data: Path, alphas: Sequence[Alpha], tokens: int, group: Callable[[Pair], str]
) -> dict[str, Any]:
    """How the PARM at every α, and its backbone alone, judge the pairs of a folder's ``test.jsonl``.

    Returns:
        ``leads``, a row for each pair: log π(y_0 | x) − log π(y_1 | x) of the backbone, then of the PARM at every α;
        ``preferred``, by objective; ``group``, a number for what ``group`` says of a pair; ``longer``, which response
        is the longer one, or -1.
    """
    guide, tokenizer = load_guide(parm, model)
    found = load_data(str(data / "test.jsonl"), objectives=guide.objectives, hold_out=False).train
    pairs, _ = tokenize_pairs(tokenizer, found, guide.objectives, tokens)
    groups = {pair.where: group(pair) for pair in found}
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups.values()))}
    guide.model.eval()
    scorer = ResponseScorer(guide.model, len(guide.objectives))
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i]))
    rows = np.zeros((len(pairs), 1 + len(alphas)))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        rows[chosen] = _leads(scorer, [pairs[i] for i in chosen], alphas)
        print(f"{start + len(chosen)} of {len(order)} held-out pairs", flush=True)
    sizes = [[len(row) - row.start for row in pair.rows] for pair in pairs]
    return {
        "leads": np.round(rows, 3).tolist(),
        "preferred": [pair.preferred.tolist() for pair in pairs],
        "group": [numbers[groups[pair.where]] for pair in pairs],
        "longer": [-1 if first == second else int(second > first) for first, second in sizes],
    }


def _leads(scorer: ResponseScorer, pairs: Sequence[TokenPair], alphas: Sequence[Alpha]) -> Array:
    batch = make_batch(pairs)
    packed = scorer.pack(batch)
    found = []
    for preference in (None, *alphas):
        context = conditioned(Unconditioned()) if preference is None else scorer.conditioned(mx.array(preference))
        with context:
            first, second = (packed.members @ scorer.token_logprobs(packed)).reshape(2, -1)
            found.append(np.array(first - second, np.float64))
    return np.stack(found, axis=1)


class Shares:
    """Shares of judged pairs in which something holds, over the PARMs of several seeds.

    Args:
        holds: (seeds, n, k) 1 where the i-th of k things holds of a pair.
        judged: (n,) 1 where a pair counts.
        groups: (n,) the group of each pair, from 0; groups are drawn whole.
        samples: Of the bootstrap over the pairs.

    Attributes:
        by_seed: (seeds, k) the shares.
        drawn: (samples, k) their means over the seeds in the samples, without those samples in which no pair counts.
    """

    def __init__(self, holds: Array, judged: Array, groups: Sequence[int], samples: int):
        counted = holds * judged[:, None]
        self.by_seed = counted.sum(axis=1) / judged.sum()
        both = np.concatenate([counted.mean(axis=0), judged[:, None]], axis=1)
        sums = np.zeros((max(groups) + 1, both.shape[1]))
        np.add.at(sums, list(groups), both)
        drawn = metrics.bootstrap(sums, samples, 0)
        drawn = drawn[drawn[:, -1] > 0]
        self.drawn = drawn[:, :-1] / drawn[:, -1:]

    def of(self, i: int, less: int | None = None) -> dict[str, float]:
        """The i-th share, or by how much it is above another one, with its interval over pairs and seeds."""
        values, drawn = (each[:, i] - (0 if less is None else each[:, less]) for each in (self.by_seed, self.drawn))
        found, seeds = metrics.interval(values.mean(), drawn), over_seeds(values)
        low, high = (math.hypot(found[end] - found["value"], seeds[end] - seeds["value"]) for end in ("low", "high"))
        found |= {"low": found["value"] - low, "high": found["value"] + high}
        return {name: round(number, 8) for name, number in found.items()}  # the same with any number of threads


def measure(found: Sequence[Mapping[str, Any]], objectives: Sequence[str], samples: int) -> dict[str, Any]:
    """Accuracies with their intervals: of the base, of the PARM at every α, and how α changes them.

    ``raised_from_base`` and ``raised_from_other`` are the shares of pairs whose preferred response gains on the other
    one at the objective's own corner: from the base to the PARM, and from the other corner. ``longer`` has the shares
    in which the base judges for the longer response, and in which training (mean over α) makes it gain; there is none
    where all pairs are of even length.

    Args:
        found: What :func:`leads` says of the PARM of each seed, on the same pairs.
        objectives: Their names.
        samples: Of the bootstrap.
    """
    lead, preferred = np.array([each["leads"] for each in found]), np.array(found[0]["preferred"])
    longer, groups = np.array(found[0]["longer"]), found[0]["group"]
    uneven = longer >= 0
    columns = range(1, lead.shape[2])  # of the preferences
    results: dict[str, Any] = {}
    for i, name in enumerate(objectives):
        labels = preferred[:, i]
        judged = (labels != UNLABELLED).astype(float)
        own, other = (1, -1) if i else (-1, 1)  # α is the weight of the first objective, rising
        right = Shares(_gained(lead, labels), judged, groups, samples)
        changes = np.stack([lead[:, :, own] - lead[:, :, 0], lead[:, :, own] - lead[:, :, other]], axis=2)
        raised = Shares(_gained(changes, labels), judged, groups, samples)
        results[name] = {
            "raised_from_base": raised.of(0),
            "raised_from_other": raised.of(1),
            "pairs": int(judged.sum()),
            "base": right.of(0),
            "alphas": [right.of(column) for column in columns],
            "corner_less_base": right.of(own, less=0),
            "corner_less_other": right.of(own, less=other),
        }
        if uneven.any():
            as_labelled = np.broadcast_to((longer == labels)[None, :, None].astype(float), (1, len(labels), 1))
            results[name]["longer_is_preferred"] = Shares(as_labelled, judged * uneven, groups, samples).of(0)
    differ = (preferred != UNLABELLED).all(axis=1) & (preferred[:, 0] != preferred[:, 1])
    right = Shares(_gained(lead, preferred[:, 0]), differ.astype(float), groups, samples)
    results["where_they_differ"] = {
        "pairs": int(differ.sum()),
        "of": int((preferred != UNLABELLED).all(axis=1).sum()),
        "base": right.of(0),
        "alphas": [right.of(column) for column in columns],
        "corners": right.of(-1, less=1),
    }
    if uneven.any():
        changes = np.stack([lead[:, :, 0], (lead[:, :, 1:] - lead[:, :, :1]).mean(axis=2)], axis=2)
        favours = Shares(_gained(changes, longer), uneven.astype(float), groups, samples)
        results["longer"] = {name: favours.of(i) for i, name in enumerate(("base", "training"))}
    results["nats"] = {
        "base": float(np.abs(lead[:, :, 0]).mean()),
        "training": float(np.abs(lead[:, :, 1:] - lead[:, :, :1]).mean()),
        "corners": float(np.abs(lead[:, :, -1] - lead[:, :, 1]).mean()),
    }
    return results


def _gained(changes: Array, responses: Array) -> Array:
    """1 where a change of log π(y_0 | x) − log π(y_1 | x) favours the given one of a pair's responses."""
    return np.where((responses == 0)[:, None], changes > 0, changes < 0).astype(float)


def compared(found: Mapping[str, Any], other: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Two PARMs of two objectives on the same pairs, as of :func:`leads` at the corners; the first less the second.

    Returns:
        By objective, in order: ``right``, the shares that are right at the objective's own corner, and ``raised``,
        those in which the preferred response gains from the other corner to it; and ``moved``, by how many nats α moves
        the difference of two responses, the first over the second.
    """
    both = [np.array([each["leads"]]) for each in (found, other)]
    results: dict[str, list[dict[str, float]]] = {"right": [], "raised": []}
    for own, far, labels in zip((-1, 1), (1, -1), np.array(found["preferred"]).T, strict=True):
        changes = [lead[:, :, own] for lead in both] + [lead[:, :, own] - lead[:, :, far] for lead in both]
        won = _gained(np.stack(changes, axis=2), labels)
        shares = Shares(won, (labels != UNLABELLED).astype(float), found["group"], samples)
        results["right"].append(shares.of(0, less=1))
        results["raised"].append(shares.of(2, less=3))
    moved = [float(np.abs(lead[:, :, -1] - lead[:, :, 1]).mean()) for lead in both]
    return {**results, "moved": moved[0] / moved[1]}


def percent(found: dict[str, float]) -> str:
    """``value [low, high]`` in per cent."""
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def points(found: dict[str, float]) -> str:
    """A difference of shares in percentage points, with its sign and interval."""
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def accuracies(results: Mapping[str, Any], objectives: Sequence[str], alphas: Sequence[Alpha]) -> str:
    """The table of :func:`measure`: shares that are right, by objective, and where the two disagree."""
    rows = []
    for name in objectives:
        r = results[name]
        changes = map(points, [r["corner_less_base"], r["corner_less_other"]])
        rows.append([f"{name} ({r['pairs']} pairs)", *map(percent, [r["base"], *r["alphas"]]), *changes])
    r = results["where_they_differ"]
    share = f"{objectives[0]}, where {objectives[1]} prefers the other ({r['pairs']} pairs)"
    rows.append([share, *map(percent, [r["base"], *r["alphas"]]), "", points(r["corners"])])
    heads = ["right, %", "base alone", *(f"α = ({a:g}, {b:g})" for a, b in alphas)]
    return common.markdown([*heads, "own corner less base", "own corner less the other"], rows)


def gains(results: Mapping[str, Any], objectives: Sequence[str]) -> str:
    """The table of what training and α have changed."""
    heads = ["the preferred response gains on the other, %", "from the base", "from the other corner"]
    what = ("raised_from_base", "raised_from_other")
    return common.markdown(heads, [[name, *(percent(results[name][each]) for each in what)] for name in objectives])


def draw(experiment: common.Experiment, results: dict[str, Any], objectives: Sequence[str], weights: Array) -> None:
    """Draws the accuracy of each objective along α, with that of the base."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (color, _, marker), name in zip(STYLES, objectives, strict=False):
        rows = results[name]["alphas"]
        mean, low, high = (np.array([100 * row[key] for row in rows]) for key in ("value", "low", "high"))
        axes.errorbar(weights, mean, [mean - low, high - mean], fmt=f"{marker}-", color=color, capsize=3, label=name)
        axes.axhline(100 * results[name]["base"]["value"], color=color, ls="--", lw=1, label=f"{name}, base alone")
    axes.axhline(50, color="#aaaaaa", lw=1)
    axes.set_xlabel(f"weight of {objectives[0]}")
    axes.set_ylabel("held-out pairs that are judged right, %")
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    experiment.save(figure)
