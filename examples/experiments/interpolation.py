"""Whether answers move evenly with the preference: α at steps of 0.05, jumps and clusters counted.

    python examples/experiments/interpolation.py

On the PBLoRA adapters of adapters.py, and on SmolLM2 with its PARM. A jump is a step along the grid of more than three
times the median step; a cluster is a run of preferences whose points cannot be told apart.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import dist
from typing import Any

import common
from adapters import OBJECTIVES, parms
from common import markdown
from intervals import Sweeps, shown

from parm_mlx.evaluation.summary import compare


def front_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """How one run's points lie, in the order of α from (1, 0) to (0, 1)."""
    front, names = run["front"], list(run["spearman"])
    points = [[point["scores"][name]["mean"] for name in names] for point in run["points"]]
    steps = [dist(p, q) for p, q in pairwise(points)]
    return {
        "points": points,
        "jumps": front["jumps"],
        "clusters": front["clusters"],
        "median_step": statistics.median(steps),
        "largest_step": max(steps),
        "falling_steps": statistics.mean(float(q[0] < p[0]) for p, q in pairwise(points)),
        "spearman": {name: run["spearman"][name] for name in names},
        "front_size": front["size"],
    }


def row(run: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The cells of a table."""
    weights = [f"{point['alpha'][0]:g}" for point in run["points"]]
    jumps = [f"{weights[jump['from']]} → {weights[jump['to']]}" for jump in found["jumps"]]
    clusters = [f"{weights[min(places)]} to {weights[max(places)]}" for places in found["clusters"]]
    cells = [f"{found['median_step']:.2f}", f"{found['largest_step']:.2f}", "; ".join(jumps) or "none"]
    cells += ["; ".join(clusters) or "none", str(found["front_size"]), f"{found['falling_steps']:.0%}"]
    return cells + [f"{value['value']:.2f}" for value in found["spearman"].values()]


def heads(objectives: Sequence[str]) -> list[str]:
    """Those of :func:`row`."""
    first = objectives[0]
    cells = ["median step (sd)", "largest step", f"jumps: weight of {first}", f"clusters: weight of {first}"]
    return [
        *cells,
        "points on the front (of 21)",
        f"steps on which {first} falls",
        *(f"Spearman {n}" for n in objectives),
    ]


def main() -> None:
    """Sweeps and writes the page."""
    experiment = common.begin("interpolation", __doc__)
    trained = {seed: parms(experiment, "PBLoRA", seed) for seed in experiment.seeds}
    if experiment.quick:
        return
    runs = [experiment.run(f"fine-{seed}", adapters) for seed, adapters in trained.items()]
    samples = experiment.settings["sweep"]["bootstrap"]
    sweeps = Sweeps(runs, samples)
    (of_smollm2,) = compare([experiment.real("fine-smollm2")], samples=samples)["runs"]
    by_seed = [front_of(run) for run in sweeps.summary["runs"]]
    measured = front_of(of_smollm2)
    rows = [
        [str(seed), *row(run, found)]
        for seed, run, found in zip(experiment.seeds, sweeps.summary["runs"], by_seed, strict=True)
    ]
    experiment.picture(sweeps.summary["runs"][0])
    experiment.publish(
        {"runs": [{"seed": seed, **found} for seed, found in zip(experiment.seeds, by_seed, strict=True)]}
        | {"smollm2": measured},
        table=markdown(["seed", *heads(OBJECTIVES)], rows),
        smollm2=markdown(heads(list(measured["spearman"])), [row(of_smollm2, measured)]),
        questions=str(experiment.settings["real"]["questions"]),
        tokens=str(experiment.settings["real"]["max_tokens"]),
        jumps=", ".join(str(len(found["jumps"])) for found in by_seed),
        hv=shown(sweeps.spread(runs, "hv")),
        **common.fixed(sweeps.summary),
    )


if __name__ == "__main__":
    main()
