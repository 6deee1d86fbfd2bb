"""How well a PARM follows the preference as the number of objectives grows from 2 to 12.

    python examples/experiments/many_objectives.py

All pairs are labelled by twelve deterministic rewards, as ``parm-mlx data relabel`` does; a PARM of k objectives is
trained on the labels of the first k. Everything else stays: as many pairs, steps and ranks.
"""

import statistics
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import interval, markdown, shown, spread
from objectives import ALL, specs

from parm_mlx.evaluation.scoring import load_rewards
from parm_mlx.evaluation.summary import summarise
from parm_mlx.preference import Alpha, sample_dirichlet
from parm_mlx.training.relabel import Source, relabel


def relabelled(experiment: common.Experiment, names: tuple[str, ...], label: str) -> Path:
    """The pairs of the bundled world, labelled by these rewards."""
    out = experiment.work / f"{label}.jsonl"
    if not out.exists():
        rewards = load_rewards([f"{name}={spec}" for name, spec in specs(names).items()])
        tally = relabel(Source(experiment.pairs()), rewards, out)
        print(f"{out.name}: {tally}", flush=True)
    return out


def preferences(k: int, draws: int) -> list[Alpha]:
    """The corners, the centre and a few draws that are always the same."""
    corners = [tuple(float(i == j) for j in range(k)) for i in range(k)]
    drawn = sample_dirichlet(np.random.default_rng(k), 1.0, k, draws).astype(float)
    drawn /= drawn.sum(axis=1, keepdims=True)
    return [*corners, tuple([1 / k] * k), *(tuple(row) for row in drawn.tolist())]


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
    if experiment.quick:
        return
    results: dict[int, Any] = {}
    for k in ks:
        alphas = preferences(k, experiment.settings["draws"])
        found = []
        for seed in experiment.seeds:
            run = experiment.run(f"k{k}-{seed}", [trained[k, seed]], alphas=alphas, rewards=specs(ALL[:k]))
            found.append(summarise(run, samples=10))
        mean_spearman = [statistics.mean(run["spearman"][name]["value"] for name in ALL[:k]) for run in found]
        results[k] = {
            "preferences": len(alphas),
            "spearman": interval(mean_spearman),
            "mip": spread(found, "mip"),
            "gain": spread(found, "mip_gain"),
            "per_objective": {name: spread(found, "spearman", name) for name in ALL[:k]},
            "corners": {name: spread(found, "corner_difference", name) for name in ALL[:k]},
            "worst": min(statistics.mean(run["spearman"][name]["value"] for run in found) for name in ALL[:k]),
        }
    rows = [
        [str(k), str(r["preferences"]), shown(r["spearman"]), f"{r['worst']:.2f}", shown(r["mip"]), shown(r["gain"])]
        for k, r in results.items()
    ]
    heads = [
        "k",
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
        {"k": results},
        table=markdown(heads, rows),
        each=markdown(["objective", "Spearman", "corner difference"], each),
    )


if __name__ == "__main__":
    main()
