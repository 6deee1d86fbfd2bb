"""Human preferences: a PARM of SmolLM2 on HH-RLHF, and its accuracy on held-out pairs along α.

    python examples/experiments/real_preferences.py

The pairs are those of the folder that ``source`` in real_preferences.yaml names; a checkout of the git repository is
made where there is none (Git LFS fetches what of it is stored there). SmolLM2 is fetched at first use.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import hh_rlhf

# isort: split
import mlx.core as mx
import numpy as np
from common import markdown
from numpy.typing import NDArray

from parm_mlx.data.dataset import load_data
from parm_mlx.data.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.drawing import STYLES
from parm_mlx.evaluation.metrics import bootstrap, interval
from parm_mlx.guidance.loading import load_guide
from parm_mlx.pblora.layer import Unconditioned, conditioned
from parm_mlx.preference import Alpha
from parm_mlx.training.batching import make_batch
from parm_mlx.training.response_logprobs import ResponseScorer

BATCH = 8
Array = NDArray[np.float64]


def checkout(repository: str, commit: str, folder: Path) -> None:
    """Clones a repository at a commit."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", repository, str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)


def leads(parm: Path, model: str, data: Path, alphas: Sequence[Alpha], tokens: int) -> dict[str, Any]:
    """How the PARM at every α, and its backbone alone, judge the pairs of a folder's ``test.jsonl``.

    Returns:
        ``leads``, a row for each pair: log π(y_0 | x) − log π(y_1 | x) of the backbone, then of the PARM at every α;
        ``preferred``, by objective; ``question``, a number for the first question; ``longer``, which response is the
        longer one, or -1.
    """
    guide, tokenizer = load_guide(parm, model)
    found = load_data(str(data / "test.jsonl"), objectives=guide.objectives, hold_out=False).train
    pairs, _ = tokenize_pairs(tokenizer, found, guide.objectives, tokens)
    first = {pair.where: hh_rlhf.first_question(pair) for pair in found}
    numbers = {question: number for number, question in enumerate(dict.fromkeys(first.values()))}
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
        "question": [numbers[first[pair.where]] for pair in pairs],
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
    total, drawn = sums.sum(axis=0), bootstrap(sums, samples, 0)
    drawn = drawn[drawn[:, -1] > 0]
    return total[:-1] / total[-1], drawn[:, :-1] / drawn[:, -1:]


def measure(found: dict[str, Any], objectives: Sequence[str], samples: int) -> dict[str, Any]:
    """Accuracies with their intervals: of the base, of the PARM at every α, and how α changes them.

    ``raised_from_base`` and ``raised_from_other`` are the shares of pairs whose preferred response gains on the other
    one at the objective's own corner: from the base to the PARM, and from the other corner. ``longer`` has the shares
    in which the base judges for the longer response, and in which training (mean over α) makes it gain.
    """
    lead, preferred = np.array(found["leads"]), np.array(found["preferred"])
    longer, groups = np.array(found["longer"]), found["question"]
    results: dict[str, Any] = {}
    for i, name in enumerate(objectives):
        labels = preferred[:, i]
        judged = (labels != UNLABELLED).astype(float)
        right = np.where(labels[:, None] == 0, lead > 0, lead < 0).astype(float)
        value, drawn = shares(right, judged, groups, samples)
        own, other = (1, -1) if i else (-1, 1)  # α is the weight of the first objective, rising
        best = value[own]
        uneven = judged * (longer >= 0)
        by_length, drawn_length = shares((longer == labels)[:, None].astype(float), uneven, groups, samples)
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
            "longer_is_preferred": interval(by_length[0], drawn_length[:, 0]),
        }
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
    gains = np.stack([lead[:, 0], (lead[:, 1:] - lead[:, :1]).mean(axis=1)], axis=1)
    favours = np.where(longer[:, None] == 0, gains > 0, gains < 0).astype(float)
    value, drawn = shares(favours, (longer >= 0).astype(float), groups, samples)
    results["longer"] = {name: interval(value[i], drawn[:, i]) for i, name in enumerate(("base", "training"))}
    results["nats"] = {
        "base": float(np.abs(lead[:, 0]).mean()),
        "training": float(np.abs(lead[:, 1:] - lead[:, :1]).mean()),
        "corners": float(np.abs(lead[:, -1] - lead[:, 1]).mean()),
    }
    return results


def percent(found: dict[str, float]) -> str:
    """``value [low, high]`` in per cent."""
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def points(found: dict[str, float]) -> str:
    """A difference of shares in percentage points, with its sign and interval."""
    return f"{100 * found['value']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


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


def main() -> None:
    """Trains, judges the held-out pairs and writes the page."""
    experiment = common.begin("real_preferences", __doc__)
    settings = experiment.settings
    where, named = settings["source"], str(settings["model"])
    source = where["folder"]
    if "/" not in source:
        folder = experiment.work / source
        experiment.made(folder, lambda: checkout(where["repository"], where["commit"], folder))
        source = str(folder)
    data = experiment.work / "hh-rlhf-pairs"
    about = experiment.fact("hh-rlhf-pairs", lambda: hh_rlhf.make(source, data, model=named, **settings["pairs"]))
    objectives = about["objectives"]
    parm = experiment.adapter(
        "hh-rlhf", experiment.seeds[0], base=Path(named), data=data / "train.jsonl", objectives=tuple(objectives)
    )
    if experiment.quick:
        return
    weights = [float(weight) for weight in settings["alphas"]]
    alphas = [(weight, 1 - weight) for weight in weights]
    tokens = settings["pairs"]["tokens"]
    found = experiment.fact("hh-rlhf-leads", lambda: leads(parm, named, data, alphas, tokens))
    results = measure(found, objectives, settings["samples"])
    rows = []
    for name in objectives:
        r = results[name]
        cells = [
            *map(percent, [r["base"], *r["alphas"]]),
            *map(points, [r["corner_less_base"], r["corner_less_other"]]),
        ]
        rows.append([f"{name} ({r['pairs']} pairs)", *cells])
    r = results["where_they_differ"]
    share = [f"{objectives[0]}, where {objectives[1]} prefers the other ({r['pairs']} pairs)"]
    rows.append([*share, *map(percent, [r["base"], *r["alphas"]]), "", points(r["corners"])])
    heads = ["right, %", "base alone", *(f"α = ({a:g}, {b:g})" for a, b in alphas)]
    heads += ["own corner less base", "own corner less the other"]
    draw(experiment, results, objectives, np.array(weights))
    train = settings["train"]
    experiment.publish(
        {"data": about, "alphas": alphas, **results},
        table=markdown(heads, rows),
        raised=markdown(
            ["the preferred response gains on the other, %", "from the base", "from the other corner"],
            [
                [name, *(percent(results[name][f"raised_from_{what}"]) for what in ("base", "other"))]
                for name in objectives
            ],
        ),
        **{f"longer_{what}": f"{percent(value)} %" for what, value in results["longer"].items()},
        **{f"nats_{what}": f"{value:.1f}" for what, value in results["nats"].items()},
        lengths="; ".join(f"{name} {percent(results[name]['longer_is_preferred'])} %" for name in objectives),
        first=objectives[0],
        second=objectives[1],
        files=", ".join(about["files"]),
        missing=", ".join(about["missing"]) or "none",
        read=f"{about['read']:,}",
        fitting=f"{about['fitting']:,}",
        tokens=str(tokens),
        train=f"{about['train']:,}",
        test=f"{about['test']:,}",
        questions=f"{about['first_questions']['test']:,}",
        differ=f"{r['pairs'] / r['of']:.0%}",
        steps=str(train["iters"]),
        batch=str(train["batch_size"]),
        passes=f"{train['iters'] * train['batch_size'] / about['train']:.1f}",
        commit=where["commit"][:12],
    )


if __name__ == "__main__":
    main()
