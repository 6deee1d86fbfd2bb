"""A third objective that a PARM was never trained on: the adapter as it is against a short extra training.

    python examples/experiments/cross_domain.py

The PARMs of adapters.py get a third objective in two ways: ``frozen``, a new row of W2 that is the mean of the others
and is never trained; ``short`` and ``longer``, the same start and a fifth or half of the steps on pairs that all label
(``--start-from``).
``whole`` is a PARM trained on all three from nothing, for comparison.
"""

from pathlib import Path

import common
from common import markdown, shown, spread
from many_objectives import relabelled

from parm_mlx.evaluation.summary import compare
from parm_mlx.outputs import new_directory
from parm_mlx.pblora import extend_objectives, read_adapter, save_adapter

WAYS = ("frozen", "short", "longer", "whole")


def frozen(experiment: common.Experiment, parm: Path, third: str, seed: int) -> Path:
    """The adapter with a third objective, not trained any further."""
    out = experiment.work / "adapters" / f"frozen-{third}-{seed}"
    if not out.exists():
        config, tensors = extend_objectives(*read_adapter(parm), [third])
        with new_directory(out) as partial:
            save_adapter(partial, config, tensors)
    return out


def main() -> None:
    """Labels, trains, sweeps, compares and writes the page."""
    experiment = common.begin("cross_domain", __doc__)
    third = experiment.settings["third"]
    names = (*common.make_parm.OBJECTIVES, third)
    data = relabelled(experiment, names, f"with-{third}")
    trained: dict[tuple[str, int], Path] = {}
    for seed in experiment.seeds:
        parm = experiment.adapter("pblora", seed)
        trained["frozen", seed] = frozen(experiment, parm, third, seed)
        begin = {"objectives": names, "start_from": str(parm)}
        for way in ("short", "longer"):
            extra = experiment.settings[way]
            trained[way, seed] = experiment.adapter(f"{way}-{third}", seed, data=data, **begin, **extra)
        trained["whole", seed] = experiment.adapter(f"whole-{third}", seed, data=data, objectives=names)
    if experiment.quick:
        return
    runs = {(way, seed): experiment.run(f"{way}-{third}-{seed}", [parm]) for (way, seed), parm in trained.items()}
    summary = compare(list(runs.values()), samples=experiment.settings["sweep"]["bootstrap"])
    found = {run["name"]: run for run in summary["runs"]}
    rows, results = [], {}
    for way in WAYS:
        several = [found[runs[way, seed].name] for seed in experiment.seeds]
        r = {"hv": spread(several, "hv"), "mip": spread(several, "mip"), "mip_gain": spread(several, "mip_gain")}
        r["spearman"] = {name: spread(several, "spearman", name) for name in names}
        r["corner_difference"] = {name: spread(several, "corner_difference", name) for name in names}
        results[way] = r
        cells = [shown(r["hv"]), shown(r["mip"]), *(shown(r["spearman"][name]) for name in names)]
        rows.append([way, *cells, *(shown(r["corner_difference"][name]) for name in names)])
    heads = [
        "way",
        "hypervolume",
        "mean inner product",
        *(f"Spearman {n}" for n in names),
        *(f"corners {n}" for n in names),
    ]
    experiment.picture(found[runs["longer", experiment.seeds[0]].name])
    experiment.publish(results, table=markdown(heads, rows), third=third, **common.fixed(summary))


if __name__ == "__main__":
    main()
