"""A third objective that a PARM was never trained on: the adapter as it is against a short extra training.

    python examples/experiments/cross_domain.py

The PARMs of adapters.py get a third objective. ``frozen`` is a new row of W2, the mean of the others, that is never
trained. The others go on for a fifth or half of the steps on pairs that all label (``--start-from``): as it was
``before``, from that row and with one learning rate for all rows; with a ``faster row``, five times that rate; with a
``fresh row`` beside it, the random start of a new adapter added, as ``parm-mlx train`` does it now; and ``agreeing``,
with ``--alpha-among agreeing`` beside both. ``whole`` is a PARM trained on all three from nothing, for comparison.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
from common import markdown
from intervals import Found, Sweeps, number, shown
from many_objectives import relabelled

from parm_mlx.evaluation.summary import Run
from parm_mlx.outputs import new_directory
from parm_mlx.pblora import extend_objectives, read_adapter, save_adapter
from parm_mlx.training import optimizer, trainer

AGREEING = {"dirichlet": 1.0, "alpha_among": "agreeing"}


@dataclass(frozen=True)
class Extra:
    """An extra training.

    Attributes:
        label: Of its adapters.
        length: Name of its steps in the settings.
        ratio: By how much faster the new row of W2 learns.
        fresh: Whether a fresh row is added to its start.
        more: Further settings.
    """

    label: str
    length: str = "longer"
    ratio: float = optimizer.ADDED_RATIO
    fresh: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)


EXTRA = {
    "short, before": Extra("short-at-1", "short", ratio=1.0, fresh=False),
    "short, agreeing": Extra("short-agreeing", "short", more=AGREEING),
    "longer, before": Extra("longer-at-1", ratio=1.0, fresh=False),
    "longer, faster row": Extra("longer-at-5", fresh=False),
    "longer, fresh row": Extra("longer-fresh"),
    "longer, agreeing": Extra("longer-agreeing", more=AGREEING),
}
WAYS = ("frozen", *EXTRA, "whole")


def frozen(experiment: common.Experiment, parm: Path, third: str, seed: int) -> Path:
    """The adapter with a third objective, not trained any further."""
    out = experiment.work / "adapters" / f"frozen-{third}-{seed}"

    def make() -> None:
        config, tensors = extend_objectives(*read_adapter(parm), [third])
        with new_directory(out) as partial:
            save_adapter(partial, config, tensors)

    return experiment.made(out, make)


def extended(experiment: common.Experiment, extra: Extra, seed: int, **begin: Any) -> Path:
    """The adapter after extra training."""
    name = f"{experiment.settings['third']}-{extra.label}"
    with ExitStack() as patches:
        patches.enter_context(patch.object(optimizer, "ADDED_RATIO", extra.ratio))
        if not extra.fresh:
            patches.enter_context(patch.object(trainer, "with_fresh_rows", lambda tensors, *_: dict(tensors)))
        return experiment.adapter(name, seed, **begin, **experiment.settings[extra.length], **extra.more)


def against(sweeps: Sweeps, runs: Sequence[Run], frozen: Sequence[Run], names: Sequence[str]) -> dict[str, Any]:
    """By how much the corner of the new objective moved, and which share of the others is left, in per cent."""
    pairs = list(zip(runs, frozen, strict=True))

    def kept(found: Found, name: str) -> list[float]:
        return [100 * corner(found, now, name) / corner(found, was, name) for now, was in pairs]

    def moved(found: Found) -> list[float]:
        return [corner(found, now, names[-1]) - corner(found, was, names[-1]) for now, was in pairs]

    return {
        "moved": sweeps.interval(moved),
        "moved_by_seed": moved(sweeps.found),
        "kept": {name: sweeps.interval(lambda found, name=name: kept(found, name)) for name in names[:-1]},  # type: ignore[misc]
        "kept_by_seed": {name: kept(sweeps.found, name) for name in names[:-1]},
    }


def corner(found: Found, run: Run, name: str) -> float:
    """How far the score of an objective moves from corner to corner."""
    return number(found[run.name], "corner_difference", name)


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
        for way, extra in EXTRA.items():
            trained[way, seed] = extended(experiment, extra, seed, data=data, **begin)
        trained["whole", seed] = experiment.adapter(f"whole-{third}", seed, data=data, objectives=names)
    if experiment.quick:
        return
    runs = {(way, seed): experiment.run(parm.name, [parm]) for (way, seed), parm in trained.items()}
    sweeps = Sweeps(list(runs.values()), experiment.settings["sweep"]["bootstrap"])
    by_way = {way: [runs[way, seed] for seed in experiment.seeds] for way in WAYS}
    rows, changes, results = [], [], {}
    for way, several in by_way.items():
        r: dict[str, Any] = {metric: sweeps.spread(several, metric) for metric in ("hv", "mip", "mip_gain")}
        for metric in ("spearman", "corner_difference"):
            r[metric] = {name: sweeps.spread(several, metric, name) for name in names}
        results[way] = r | against(sweeps, several, by_way["frozen"], names)
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
    experiment.picture(sweeps.found[runs["longer, agreeing", experiment.seeds[0]].name])
    parts = {"table": markdown(heads, rows), "changes": markdown(change_heads, changes), "third": third}
    experiment.publish(results, **parts, **common.fixed(sweeps.summary))


if __name__ == "__main__":
    main()
