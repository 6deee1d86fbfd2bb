"""How a PARM and its backbone judge held-out pairs: which response they find likelier, and how often that is right."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

# isort: split
import mlx.core as mx
import numpy as np
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


def shares(right: Array, judged: Array, groups: Sequence[int], samples: int) -> tuple[Array, Array]:
    """The share of judged pairs that are right, and bootstrap samples of it in which groups are drawn whole.

    Args:
        right: (n, …) 1 where a pair is right, at each of several preferences.
        judged: (n,) 1 where a pair counts.
        groups: (n,) the group of each pair, from 0.
        samples: Their number.

    Returns:
        (…) and (samples, …), without the samples in which no pair counts.
    """
    size = max(groups) + 1
    both = np.concatenate([right * judged[:, None], judged[:, None]], axis=1)
    sums = np.zeros((size, both.shape[1]))
    np.add.at(sums, list(groups), both)
    total, drawn = sums.sum(axis=0), metrics.bootstrap(sums, samples, 0)
    drawn = drawn[drawn[:, -1] > 0]
    return total[:-1] / total[-1], drawn[:, :-1] / drawn[:, -1:]


def measure(found: dict[str, Any], objectives: Sequence[str], samples: int) -> dict[str, Any]:
    """Accuracies with their intervals: of the base, of the PARM at every α, and how α changes them.

    ``raised_from_base`` and ``raised_from_other`` are the shares of pairs whose preferred response gains on the other
    one at the objective's own corner: from the base to the PARM, and from the other corner. ``longer`` has the shares
    in which the base judges for the longer response, and in which training (mean over α) makes it gain; there is none
    where all pairs are of even length.
    """
    lead, preferred = np.array(found["leads"]), np.array(found["preferred"])
    longer, groups = np.array(found["longer"]), found["group"]
    uneven = longer >= 0
    results: dict[str, Any] = {}
    for i, name in enumerate(objectives):
        labels = preferred[:, i]
        judged = (labels != UNLABELLED).astype(float)
        right = np.where(labels[:, None] == 0, lead > 0, lead < 0).astype(float)
        value, drawn = shares(right, judged, groups, samples)
        own, other = (1, -1) if i else (-1, 1)  # α is the weight of the first objective, rising
        best = value[own]
        changes = np.stack([lead[:, own] - lead[:, 0], lead[:, own] - lead[:, other]], axis=1)
        raised = np.where(labels[:, None] == 0, changes > 0, changes < 0).astype(float)
        change, drawn_change = shares(raised, judged, groups, samples)
        results[name] = {
            "raised_from_base": interval(change[0], drawn_change[:, 0]),
            "raised_from_other": interval(change[1], drawn_change[:, 1]),
            "pairs": int(judged.sum()),
            "base": interval(value[0], drawn[:, 0]),
            "alphas": [interval(v, d) for v, d in zip(value[1:], drawn[:, 1:].T, strict=True)],
            "corner_less_base": interval(best - value[0], drawn[:, own] - drawn[:, 0]),
            "corner_less_other": interval(best - value[other], drawn[:, own] - drawn[:, other]),
        }
        if uneven.any():
            as_labelled = (longer == labels)[:, None].astype(float)
            by_length, drawn_length = shares(as_labelled, judged * uneven, groups, samples)
            results[name]["longer_is_preferred"] = interval(by_length[0], drawn_length[:, 0])
    differ = (preferred != UNLABELLED).all(axis=1) & (preferred[:, 0] != preferred[:, 1])
    right = np.where(preferred[:, :1] == 0, lead > 0, lead < 0).astype(float)
    value, drawn = shares(right, differ.astype(float), groups, samples)
    both = int((preferred != UNLABELLED).all(axis=1).sum())
    results["where_they_differ"] = {
        "pairs": int(differ.sum()),
        "of": both,
        "base": interval(value[0], drawn[:, 0]),
        "alphas": [interval(v, d) for v, d in zip(value[1:], drawn[:, 1:].T, strict=True)],
        "corners": interval(value[-1] - value[1], drawn[:, -1] - drawn[:, 1]),
    }
    if uneven.any():
        changes = np.stack([lead[:, 0], (lead[:, 1:] - lead[:, :1]).mean(axis=1)], axis=1)
        favours = np.where(longer[:, None] == 0, changes > 0, changes < 0).astype(float)
        value, drawn = shares(favours, uneven.astype(float), groups, samples)
        results["longer"] = {name: interval(value[i], drawn[:, i]) for i, name in enumerate(("base", "training"))}
    results["nats"] = {
        "base": float(np.abs(lead[:, 0]).mean()),
        "training": float(np.abs(lead[:, 1:] - lead[:, :1]).mean()),
        "corners": float(np.abs(lead[:, -1] - lead[:, 1]).mean()),
    }
    return results


def interval(value: float, drawn: Array) -> dict[str, float]:
    """That of :func:`~parm_mlx.evaluation.metrics.interval`, to digits that do not depend on the number of threads."""
    return {name: round(number, 8) for name, number in metrics.interval(value, drawn).items()}


def compared(found: Mapping[str, Any], other: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """Two PARMs of two objectives on the same pairs, as of :func:`leads` at the corners; the first less the second.

    Returns:
        By objective, in order: ``right``, the shares that are right at the objective's own corner, and ``raised``,
        those in which the preferred response gains from the other corner to it; and ``moved``, by how many nats α moves
        the difference of two responses, the first over the second.
    """
    both, labels = [np.array(each["leads"]) for each in (found, other)], np.array(found["preferred"])
    results: dict[str, list[dict[str, float]]] = {"right": [], "raised": []}
    for own, far, preferred in ((-1, 1, labels[:, 0]), (1, -1, labels[:, 1])):
        sign = np.where(preferred == 0, 1.0, -1.0)
        won = [sign * lead[:, own] > 0 for lead in both] + [sign * (lead[:, own] - lead[:, far]) > 0 for lead in both]
        judged = (preferred != UNLABELLED).astype(float)
        value, drawn = shares(np.stack(won, axis=1).astype(float), judged, found["group"], samples)
        for name, i in (("right", 0), ("raised", 2)):
            results[name].append(interval(value[i] - value[i + 1], drawn[:, i] - drawn[:, i + 1]))
    moved = [float(np.abs(lead[:, -1] - lead[:, 1]).mean()) for lead in both]
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
