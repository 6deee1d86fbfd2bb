"""A third objective that a PARM was never trained on: the adapter as it is against a short extra training.

    python examples/experiments/cross_domain.py

The PARMs of adapters.py get a third objective in two ways: ``frozen``, a new row of W2 that is the mean of the others
and is never trained; ``short`` and ``longer``, the same start and a fifth or half of the steps on pairs that all label
(``--start-from``), in which the new row learns at five times the rate of W2, as ``parm-mlx train`` does it; both also
``before`` that was so, with one rate for all rows.
``whole`` is a PARM trained on all three from nothing, for comparison.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
from common import interval, markdown, shown, spread
from many_objectives import relabelled

from parm_mlx.evaluation.summary import compare
from parm_mlx.outputs import new_directory
from parm_mlx.pblora import extend_objectives, read_adapter, save_adapter
from parm_mlx.training import optimizer

EXTRA = {"short, before": ("short", 1.0), "short": ("short", optimizer.ADDED_RATIO)}
EXTRA |= {"longer, before": ("longer", 1.0), "longer": ("longer", optimizer.ADDED_RATIO)}
WAYS = ("frozen", *EXTRA, "whole")


def frozen(experiment: common.Experiment, parm: Path, third: str, seed: int) -> Path:
    """The adapter with a third objective, not trained any further."""
    out = experiment.work / "adapters" / f"frozen-{third}-{seed}"

    def make() -> None:
        config, tensors = extend_objectives(*read_adapter(parm), [third])
        with new_directory(out) as partial:
            save_adapter(partial, config, tensors)

    return experiment.made(out, make)


def extended(experiment: common.Experiment, way: str, seed: int, **begin: Any) -> Path:
    """The adapter after extra training, in which the new row of W2 has a rate of its own."""
    settings, ratio = EXTRA[way]
    name = f"{experiment.settings['third']}-{settings}-at-{ratio:g}"
    with patch.object(optimizer, "ADDED_RATIO", ratio):
        return experiment.adapter(name, seed, **begin, **experiment.settings[settings])


def against(runs: Mapping[str, Sequence[Any]], way: str, names: Sequence[str]) -> dict[str, Any]:
    """By how much the corner of the new objective moved, and which share of the others is left, seed by seed."""
    corners = [[run["corner_difference"][name]["value"] for name in names] for run in runs[way]]
    frozen = [[run["corner_difference"][name]["value"] for name in names] for run in runs["frozen"]]
    pairs = list(zip(corners, frozen, strict=True))
    kept = {name: [100 * now[i] / was[i] for now, was in pairs] for i, name in enumerate(names[:-1])}
    return {
        "moved": interval([now[-1] - was[-1] for now, was in pairs]),
        "moved_by_seed": [now[-1] - was[-1] for now, was in pairs],
        "kept": {name: interval(shares) for name, shares in kept.items()},
        "kept_by_seed": kept,
    }


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
        for way in EXTRA:
            trained[way, seed] = extended(experiment, way, seed, data=data, **begin)
        trained["whole", seed] = experiment.adapter(f"whole-{third}", seed, data=data, objectives=names)
    if experiment.quick:
        return
    runs = {(way, seed): experiment.run(parm.name, [parm]) for (way, seed), parm in trained.items()}
    summary = compare(list(runs.values()), samples=experiment.settings["sweep"]["bootstrap"])
    found = {run["name"]: run for run in summary["runs"]}
    by_way = {way: [found[runs[way, seed].name] for seed in experiment.seeds] for way in WAYS}
    rows, changes, results = [], [], {}
    for way, several in by_way.items():
        r = {"hv": spread(several, "hv"), "mip": spread(several, "mip"), "mip_gain": spread(several, "mip_gain")}
        r["spearman"] = {name: spread(several, "spearman", name) for name in names}
        r["corner_difference"] = {name: spread(several, "corner_difference", name) for name in names}
        results[way] = r | against(by_way, way, names)
        if way != "frozen":
            r = results[way]
            left = [shown(r["kept"][name], 0) for name in names[:-1]]
            by_seed = ", ".join(f"{moved:.1f}" for moved in r["moved_by_seed"])
            changes.append([way, shown(r["moved"]), by_seed, *left])
        cells = [shown(r["hv"]), shown(r["mip"]), *(shown(r["spearman"][name]) for name in names)]
        rows.append([way, *cells, *(shown(r["corner_difference"][name]) for name in names)])
    heads = [
        "way",
        "hypervolume",
        "mean inner product",
        *(f"Spearman {n}" for n in names),
        *(f"corners {n}" for n in names),
    ]
    change_heads = ["way", f"corner of {third} moved by", "by seed", *(f"{name} kept, %" for name in names[:-1])]
    experiment.picture(found[runs["longer", experiment.seeds[0]].name])
    parts = {"table": markdown(heads, rows), "changes": markdown(change_heads, changes), "third": third}
    experiment.publish(results, **parts, **common.fixed(summary))


if __name__ == "__main__":
    main()
