"""Whether answers move evenly with the preference: α at steps of 0.05, jumps and clusters counted.

    python examples/experiments/interpolation.py

On the PBLoRA adapters of adapters.py. A jump is a step along the grid of more than three times the median step; a
cluster is a run of preferences whose points cannot be told apart.
"""

import statistics
from itertools import pairwise
from math import dist

import common
from adapters import OBJECTIVES, parms
from common import markdown
from intervals import Sweeps, shown


def main() -> None:
    """Sweeps and writes the page."""
    experiment = common.begin("interpolation", __doc__)
    trained = {seed: parms(experiment, "PBLoRA", seed) for seed in experiment.seeds}
    if experiment.quick:
        return
    runs = [experiment.run(f"fine-{seed}", adapters) for seed, adapters in trained.items()]
    sweeps = Sweeps(runs, experiment.settings["sweep"]["bootstrap"])
    summary = sweeps.summary
    rows, results = [], []
    for seed, run in zip(experiment.seeds, summary["runs"], strict=True):
        front, points = run["front"], [[p["scores"][n]["mean"] for n in OBJECTIVES] for p in run["points"]]
        steps = [dist(p, q) for p, q in pairwise(points)]
        falling = statistics.mean(float(q[0] < p[0]) for p, q in pairwise(points))
        jumps = [
            f"{run['points'][j['from']]['alpha'][0]:g} → {run['points'][j['to']]['alpha'][0]:g}" for j in front["jumps"]
        ]
        clusters = [
            f"{max(run['points'][i]['alpha'][0] for i in c):g} to {min(run['points'][i]['alpha'][0] for i in c):g}"
            for c in front["clusters"]
        ]
        results.append(
            {
                "seed": seed,
                "points": points,
                "jumps": front["jumps"],
                "clusters": front["clusters"],
                "median_step": statistics.median(steps),
                "largest_step": max(steps),
                "falling_steps_of_warmth": falling,
                "spearman": {name: run["spearman"][name] for name in OBJECTIVES},
                "front_size": front["size"],
            }
        )
        cells = [f"{run['spearman'][name]['value']:.2f}" for name in OBJECTIVES]
        row = [
            str(seed),
            f"{statistics.median(steps):.2f}",
            f"{max(steps):.2f}",
            str(len(jumps)),
            "; ".join(jumps) or "none",
        ]
        rows.append([*row, "; ".join(clusters) or "none", str(front["size"]), *cells])
    heads = ["seed", "median step (sd)", "largest step", "jumps", "at weight of warmth", "clusters: weight of warmth"]
    heads += ["points on the front (of 21)", *(f"Spearman {name}" for name in OBJECTIVES)]
    experiment.picture(summary["runs"][0])
    experiment.publish(
        {"runs": results},
        table=markdown(heads, rows),
        jumps=", ".join(str(len(r["jumps"])) for r in results),
        hv=shown(sweeps.spread(runs, "hv")),
        **common.fixed(summary),
    )


if __name__ == "__main__":
    main()
