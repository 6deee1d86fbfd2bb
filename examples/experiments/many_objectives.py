"""How well a PARM follows the preference as the number of objectives grows from 2 to 12, and what helps it to.

    python examples/experiments/many_objectives.py

All pairs are labelled by twelve deterministic rewards, as ``parm-mlx data relabel`` does; a PARM of k objectives is
trained on the labels of the first k, by each recipe of many_objectives.yaml. Two more things are measured. *Parts*:
what each part of a recipe does by itself, with one seed, on held-out pairs, without generating. *Choosing*: what
Spearman a base reaches that answers several times and gives the answer with the largest α · scores, which knows the
rewards.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import numpy as np
from common import markdown
from intervals import Found, Sweeps, number, shown
from mlx_lm.generate import batch_generate
from objectives import ALL, specs

from parm_mlx.data.dataset import load_data
from parm_mlx.data.relabel import relabel
from parm_mlx.data.tokenize import tokenize_pairs
from parm_mlx.evaluation import metrics
from parm_mlx.guidance.loading import load_base
from parm_mlx.pblora.adapter import load_into, read_adapter
from parm_mlx.preference import Alpha, sample_dirichlet
from parm_mlx.rewards.registry import load_rewards
from parm_mlx.training.batching import fixed_batches
from parm_mlx.training.response_logprobs import ResponseScorer

MAX_TOKENS = 256  # of a prompt with its response, as in training
HEADS = [
    "recipe",
    "k",
    "steps",
    "seeds",
    "preferences",
    "mean Spearman",
    "worst objective",
    "mean inner product",
    "its gain",
]


def relabelled(experiment: common.Experiment, names: tuple[str, ...], label: str) -> Path:
    """The pairs of the bundled world, labelled by these rewards."""
    out = experiment.work / f"{label}.jsonl"

    def make() -> None:
        rewards = load_rewards([f"{name}={spec}" for name, spec in specs(names).items()])
        print(f"{out.name}: {relabel(experiment.pairs(), rewards, out)}", flush=True)

    return experiment.made(out, make)


def preferences(k: int, draws: int) -> list[Alpha]:
    """The corners, the centre and a few draws that are always the same."""
    corners = [tuple(float(i == j) for j in range(k)) for i in range(k)]
    drawn = sample_dirichlet(np.random.default_rng(k), 1.0, k, draws).astype(float)
    drawn /= drawn.sum(axis=1, keepdims=True)
    return [*corners, tuple([1 / k] * k), *(tuple(row) for row in drawn.tolist())]


def train_settings(given: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Settings of a recipe for k objectives: "1/k" is a number then."""
    return {name: 1 / k if value == "1/k" else value for name, value in given.items()}


def measured(
    experiment: common.Experiment, k: int, draws: int, parms: Mapping[int, Path], label: str
) -> dict[str, Any]:
    """What the PARMs of k objectives do, one for each seed."""
    names, alphas = ALL[:k], preferences(k, draws)
    runs = [
        experiment.run(f"{label}-{seed}", [parm], alphas=alphas, rewards=specs(names)) for seed, parm in parms.items()
    ]
    sweeps = Sweeps(runs, samples=10)

    def means(found: Found) -> list[float]:
        return [statistics.mean(number(found[run.name], "spearman", name) for name in names) for run in runs]

    spearman = {name: sweeps.spread(runs, "spearman", name) for name in names}
    return {
        "preferences": len(alphas),
        "spearman": sweeps.interval(means),
        "spearman_by_seed": means(sweeps.found),
        "mip": sweeps.spread(runs, "mip"),
        "gain": sweeps.spread(runs, "mip_gain"),
        "per_objective": spearman,
        "corners": {name: sweeps.spread(runs, "corner_difference", name) for name in names},
        "worst": min(found["value"] for found in spearman.values()),
    }


def row(recipe: str, k: int, steps: int, r: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    numbers = [shown(r["spearman"]), f"{r['worst']:.2f}", shown(r["mip"]), shown(r["gain"])]
    return [recipe, str(k), str(steps), str(len(r["spearman_by_seed"])), str(r["preferences"]), *numbers]


def halves(experiment: common.Experiment, data: Path, held: int) -> tuple[Path, Path]:
    """All pairs but the last, to train on, and the last; no prompt occurs twice."""
    parts = experiment.work / "twelve-first.jsonl", experiment.work / "twelve-last.jsonl"

    def make() -> None:
        lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
        for path, own in zip(parts, (lines[:-held], lines[-held:]), strict=True):
            path.write_text("".join(own), encoding="utf-8")

    return experiment.made(parts[0], make), parts[1]


def corner_margins(parm: Path, pairs: Path) -> tuple[np.ndarray, np.ndarray]:
    """By how much the first response of each pair is likelier at each corner, (N, k) nats, and the labels, −1, 0, 1."""
    model, tokenizer = load_base(common.BASE)
    config, tensors = read_adapter(parm)
    load_into(model, config, tensors)
    found = load_data(str(pairs), objectives=config.objectives, hold_out=False).train
    tokens, _ = tokenize_pairs(tokenizer, found, config.objectives, MAX_TOKENS)
    scorer, margins, labels = ResponseScorer(model, config.k), [], []
    for batch in fixed_batches(tokens, 8, -1, np.random.default_rng(0)):
        at = [scorer(batch, corner) for corner in mx.eye(config.k)]
        margins.append(np.stack([np.array(logprobs[0] - logprobs[1]) for logprobs in at], axis=1))
        labels.append(np.array((1 - 2 * batch.preferred) * batch.labelled))
    return np.concatenate(margins), np.concatenate(labels)


def leaning(margins: np.ndarray, labels: np.ndarray) -> list[float]:
    """For each objective the share of the pairs it labels that lean its way at its own corner more than at the others.

    Args:
        margins: (N, k), as :func:`corner_margins` returns them.
        labels: (N, k).
    """
    k = margins.shape[1]
    more = (margins - margins.mean(axis=1, keepdims=True)) * k / (k - 1)  # own corner less the mean of the others
    return [float((more[own, i] * labels[own, i] > 0).mean()) for i in range(k) if (own := labels[:, i] != 0).any()]


def part(experiment: common.Experiment, data: Path, name: str, given: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Trains with one seed, and measures :func:`leaning` on pairs that were held out."""

    def measure() -> dict[str, Any]:
        first, last = halves(experiment, data, experiment.settings["held"])
        settings = train_settings(given, k)
        parm = experiment.adapter(f"many-part-{name}", 0, data=first, objectives=ALL[:k], **settings)
        margins, labels = corner_margins(parm, last)
        apart = np.abs(margins - margins.mean(axis=1, keepdims=True)).mean()
        return {"leaning": dict(zip(ALL, leaning(margins, labels), strict=False)), "apart": float(apart)}

    return dict(experiment.fact(f"many-part-{name}", measure))


def base_scores(experiment: common.Experiment, answers: int) -> list[list[list[float]]]:
    """The scores of several unguided answers to each question: by question, answer and objective."""
    model, tokenizer = load_base(common.BASE)
    questions = [q.text for q in common.measure.held_out_questions(experiment.settings["sweep"]["questions"])]
    asked = [text for text in questions for _ in range(answers)]
    rows = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in asked
    ]
    mx.random.seed(0)
    limit, batch = experiment.settings["sweep"]["max_tokens"], {"completion_batch_size": 64, "prefill_batch_size": 16}
    texts = batch_generate(model, tokenizer, rows, max_tokens=limit, sampler=mx.random.categorical, **batch).texts
    rewards = load_rewards([f"{name}={spec}" for name, spec in specs(ALL).items()])
    scores = np.stack([list(reward(asked, texts)) for reward in rewards.values()], axis=-1)
    found: list[list[list[float]]] = scores.reshape(len(questions), answers, -1).round(3).tolist()
    return found


def chosen(scores: np.ndarray, alphas: Sequence[Alpha]) -> tuple[list[float], float]:
    """What giving the answer with the largest α · scores reaches: Spearman of each objective, and the gain by α.

    Args:
        scores: (Q, n, k), standardised.
        alphas: Preferences.
    """
    weights = np.array(alphas)
    best = (scores @ weights.T).argmax(axis=1)  # (Q, A)
    points = np.stack([np.take_along_axis(scores, at[:, None, None], axis=1)[:, 0].mean(axis=0) for at in best.T])
    spearman = [float(metrics.spearman(weights[:, i], points[:, i])) for i in range(weights.shape[1])]
    return spearman, float(metrics.mip_gain(weights, points))


def correlated(scores: np.ndarray, count: int) -> str:
    """The pairs of objectives whose scores correlate most, over all answers."""
    r = np.corrcoef(scores.reshape(-1, scores.shape[-1]).T)
    pairs = sorted(combinations(range(len(r)), 2), key=lambda pair: -abs(r[pair]))[:count]
    return ", ".join(f"{ALL[i]} and {ALL[j]} {r[i, j]:.2f}" for i, j in pairs)


def main() -> None:
    """Labels, trains, sweeps and writes the page."""
    experiment = common.begin("many_objectives", __doc__)
    data = relabelled(experiment, ALL, "twelve")
    recipes, draws = experiment.settings["recipes"], experiment.settings["draws"]
    trained: dict[tuple[str, int], dict[int, Path]] = {}
    for recipe, of in recipes.items():
        for k, seeds in of["seeds"].items():
            settings, label = train_settings(of["train"], k), f"many-{of['label']}-{k}"
            trained[recipe, k] = {
                seed: experiment.adapter(label, seed, data=data, objectives=ALL[:k], **settings)
                for seed in experiment.seeds[:seeds]
            }
    largest = max(k for of in recipes.values() for k in of["seeds"])
    tried = experiment.settings["parts"]
    parts = {name: part(experiment, data, name, given, largest) for name, given in tried.items()}
    if experiment.quick:
        return
    results: dict[str, dict[int, Any]] = {recipe: {} for recipe in recipes}
    rows = []
    for (recipe, k), parms in trained.items():
        of = recipes[recipe]
        results[recipe][k] = r = measured(experiment, k, draws, parms, f"many-{of['label']}-{k}")
        steps = of["train"].get("iters", experiment.settings["train"]["iters"])
        rows.append(row(recipe, k, steps, r))
    answers = experiment.settings["answers"]
    scores = np.array(experiment.fact("many-base-scores", lambda: base_scores(experiment, max(answers))))
    scores = (scores - scores.mean(axis=(0, 1))) / scores.std(axis=(0, 1))
    choosing: dict[int, dict[int, Any]] = {n: {} for n in answers}
    for n, k in product(answers, experiment.settings["choose"]):
        spearman, gain = chosen(scores[:, :n, :k], preferences(k, draws))
        choosing[n][k] = {"spearman": dict(zip(ALL, spearman, strict=False)), "gain": gain}
    last = {recipe: of[largest] for recipe, of in results.items() if recipes[recipe]["seeds"].get(largest, 0) > 1}
    bound = choosing[max(answers)][largest]["spearman"]
    each = [
        [name, f"{bound[name]:.2f}"]
        + [shown(r[what][name]) for r in last.values() for what in ("per_objective", "corners")]
        for name in ALL[:largest]
    ]
    each_heads = ["objective", f"best of {max(answers)}"]
    each_heads += [f"{recipe}: {what}" for recipe in last for what in ("Spearman", "corners")]
    experiment.dots(
        {
            f"{recipe}, k = {k}": [r["per_objective"][name]["value"] for name in ALL[:k]]
            for recipe, of in results.items()
            for k, r in of.items()
        },
        "Spearman of each objective",
    )
    experiment.publish(
        {"recipes": results, "parts": parts, "choosing": choosing},
        table=markdown(HEADS, rows),
        each=markdown(each_heads, each),
        parts=markdown(*parts_table(parts)),
        choosing=markdown(*choosing_table(choosing)),
        correlated=correlated(scores, 5),
    )


def choosing_table(choosing: Mapping[int, Mapping[int, Any]]) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of the table of answers that are chosen."""
    lines = []
    for n, of in choosing.items():
        means = [f"{statistics.mean(found['spearman'].values()):.2f}" for found in of.values()]
        lines.append([str(n), *means, f"{of[max(of)]['gain']:.2f}"])
    ks = list(choosing[max(choosing)])
    return ["answers", *(f"mean Spearman, k = {k}" for k in ks), f"gain, k = {max(ks)}"], lines


def parts_table(parts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of the table of parts."""
    lines = []
    for name, found in parts.items():
        shares = list(found["leaning"].values())
        above = sum(share > 0.5 for share in shares)
        numbers = [f"{statistics.mean(shares):.1%}", f"{min(shares):.0%}", f"{above} of {len(shares)}"]
        lines.append([name, *numbers, f"{found['apart']:.1f}"])
    return ["settings", "lean their way", "least", "objectives above half", "corners apart, nats"], lines


if __name__ == "__main__":
    main()
