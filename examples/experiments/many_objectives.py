"""How well a PARM follows the preference as the number of objectives grows from 2 to 12.

    python examples/experiments/many_objectives.py

All pairs are labelled by twelve deterministic rewards, as ``parm-mlx data relabel`` does; a PARM of k objectives is
trained on the labels of the first k. Everything else stays: as many pairs, steps and ranks.
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import interval, markdown, shown, spread
from objectives import ALL, specs

from parm_mlx.data.relabel import relabel
from parm_mlx.evaluation.summary import summarise
from parm_mlx.preference import Alpha, sample_dirichlet
from parm_mlx.rewards.registry import load_rewards


def relabelled(experiment: common.Experiment, names: tuple[str, ...], label: str) -> Path:
    """The pairs of the bundled world, labelled by these rewards."""
    out = experiment.work / f"{label}.jsonl"
    if not out.exists():
        rewards = load_rewards([f"{name}={spec}" for name, spec in specs(names).items()])
        done = relabel(experiment.pairs(), rewards, out)
        print(f"{out.name}: {done}", flush=True)
    return out


def preferences(k: int, draws: int) -> list[Alpha]:
    """The corners, the centre and a few draws that are always the same."""
    corners = [tuple(float(i == j) for j in range(k)) for i in range(k)]
    drawn = sample_dirichlet(np.random.default_rng(k), 1.0, k, draws).astype(float)
    drawn /= drawn.sum(axis=1, keepdims=True)
    return [*corners, tuple([1 / k] * k), *(tuple(row) for row in drawn.tolist())]


def measured(
    experiment: common.Experiment, k: int, draws: int, parms: Mapping[int, Path], label: str
) -> dict[str, Any]:
    """What the PARMs of k objectives do, one for each seed."""
    names, alphas, found = ALL[:k], preferences(k, draws), []
    for seed, parm in parms.items():
        run = experiment.run(f"{label}{k}-{seed}", [parm], alphas=alphas, rewards=specs(names))
        found.append(summarise(run, samples=10))
    return {
        "preferences": len(alphas),
        "spearman": interval([statistics.mean(run["spearman"][n]["value"] for n in names) for run in found]),
        "mip": spread(found, "mip"),
        "gain": spread(found, "mip_gain"),
        "per_objective": {name: spread(found, "spearman", name) for name in names},
        "corners": {name: spread(found, "corner_difference", name) for name in names},
        "worst": min(statistics.mean(run["spearman"][name]["value"] for run in found) for name in names),
    }


def alone(found: Mapping[str, float]) -> str:
    """A figure of one seed, which has no interval."""
    return f"{found['value']:.2f}"


def main() -> None:
    """Labels, trains, sweeps and writes the page."""
    experiment = common.begin("many_objectives", __doc__)
    data = relabelled(experiment, ALL, "twelve")
    ks = experiment.settings["k"]
    trained = {
        (k, seed): experiment.adapter(f"k{k}", seed, data=data, objectives=ALL[:k])
        for seed in experiment.seeds
        for k in ks
    }
    longer = dict(experiment.settings["longer"])
    seeds = longer.pop("seeds")[: len(experiment.seeds)]
    long_trained = {
        (k, seed): experiment.adapter(f"long-k{k}", seed, data=data, objectives=ALL[:k], **longer)
        for seed in seeds
        for k in experiment.settings["longer_k"]
    }
    if experiment.quick:
        return
    draws = experiment.settings["draws"]
    results = {k: measured(experiment, k, draws, {s: trained[k, s] for s in experiment.seeds}, "k") for k in ks}
    long = {
        k: measured(experiment, k, draws, {s: long_trained[k, s] for s in seeds}, "long-k")
        for k in experiment.settings["longer_k"]
    }
    train = experiment.settings["train"]
    steps = {False: train["iters"], True: longer["iters"]}
    rows = [
        [
            *(str(k), str(steps[more]), str(r["preferences"])),
            *(cell(r["spearman"]), f"{r['worst']:.2f}", cell(r["mip"]), cell(r["gain"])),
        ]
        for more, several, cell in ((False, results, shown), (True, long, shown if len(seeds) > 1 else alone))
        for k, r in several.items()
    ]
    heads = [
        "k",
        "steps",
        "preferences",
        "mean Spearman",
        "worst objective",
        "mean inner product",
        "its gain over no conditioning",
    ]
    last = results[max(results)]
    each = [[name, shown(last["per_objective"][name]), shown(last["corners"][name])] for name in ALL[: max(results)]]
    experiment.dots(
        {f"k = {k}": [r["per_objective"][name]["value"] for name in ALL[:k]] for k, r in results.items()},
        "Spearman of each objective",
    )
    experiment.publish(
        {"k": results, "longer": long},
        table=markdown(heads, rows),
        each=markdown(["objective", "Spearman", "corner difference"], each),
    )


if __name__ == "__main__":
    main()
