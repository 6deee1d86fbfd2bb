"""A page that compares systems at several seeds, the first one against each of the others with the same seed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import common
from common import markdown
from intervals import Sweeps, shown

from parm_mlx.evaluation.summary import Run, compare
from parm_mlx.pblora import read_adapter

OBJECTIVES = common.make_parm.OBJECTIVES
METRICS = ("hv", "mip", "mip_gain")
Runs = Mapping[str, Sequence[Run]]


def sweep_all(
    experiment: common.Experiment,
    systems: Sequence[str],
    parms: Callable[[common.Experiment, str, int], Sequence[Path]],
    alone: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[Run]], dict[str, int]] | None:
    """Trains and sweeps systems at every seed; None if only training is asked for.

    Args:
        experiment: The experiment.
        systems: Their names.
        parms: Gives the adapters of a system at a seed, and trains them unless they are there.
        alone: Systems that answer without the base.
        labels: What their sweeps are called, if not by their names in lower case.

    Returns:
        The runs of each, by seed; and how many numbers it has trained.
    """
    trained = {(system, seed): parms(experiment, system, seed) for seed in experiment.seeds for system in systems}
    if experiment.quick:
        return None
    runs: dict[str, list[Run]] = {system: [] for system in systems}
    for (system, seed), adapters in trained.items():
        name = f"{(labels or {}).get(system, system.lower())}-{seed}"
        runs[system].append(experiment.run(name, adapters, alone=system in alone))
    first_trained = {system: trained[system, experiment.seeds[0]] for system in systems}
    numbers = experiment.fact(
        f"numbers-{experiment.name}", lambda: {system: sum(map(size, parms)) for system, parms in first_trained.items()}
    )
    return runs, numbers


def size(parm: Path) -> int:
    """The numbers that an adapter has trained; a soup has trained those that it was mixed of."""
    config, tensors = read_adapter(parm)
    return int(config.training.get("mixed_of") or sum(tensor.size for tensor in tensors.values()))


def paired(runs: Runs, sweeps: Sweeps, system: str, metric: str) -> dict[str, float]:
    """By how much the first system is above another one that trained with the same seed."""
    pairs = list(zip(next(iter(runs.values())), runs[system], strict=True))
    return sweeps.less(pairs, metric)


def publish(experiment: common.Experiment, runs: Runs, numbers: Mapping[str, int], **parts: str) -> None:
    """Measures all runs on one scale and writes the page: ``{table}``, ``{differences}`` and what else is given."""
    samples = experiment.settings["sweep"]["bootstrap"]
    sweeps = Sweeps([run for several in runs.values() for run in several], samples)
    summary = sweeps.summary
    rows, results = [], {}
    for system, several in runs.items():
        results[system] = r = {
            **{metric: sweeps.spread(several, metric) for metric in METRICS},
            "spearman": {name: sweeps.spread(several, "spearman", name) for name in OBJECTIVES},
            "corner_difference": {name: sweeps.spread(several, "corner_difference", name) for name in OBJECTIVES},
            "trainable_numbers": numbers[system],
            "points": [
                [[p["scores"][n]["mean"] for n in OBJECTIVES] for p in sweeps.found[run.name]["points"]]
                for run in several
            ],
        }
        cells = [*(shown(r[metric]) for metric in METRICS), *(shown(r["spearman"][name]) for name in OBJECTIVES)]
        rows.append([system, *cells, f"{numbers[system]:,}"])
    heads = ["hypervolume", "mean inner product", "its gain by α"]
    spearman = [f"Spearman {name}" for name in OBJECTIVES]
    first, *others = runs
    differences = {system: {metric: paired(runs, sweeps, system, metric) for metric in METRICS} for system in others}
    less = [[f"{first} less {system}", *map(shown, metrics.values())] for system, metrics in differences.items()]
    drawn = compare([several[0] for several in runs.values()], samples=samples)
    for run, system in zip(drawn["runs"], runs, strict=True):
        run["name"] = system
    experiment.picture(drawn)
    experiment.publish(
        {
            "systems": results,
            "differences": differences,
            "normalization": summary["normalization"],
            "reference_point": summary["reference_point"],
        },
        table=markdown(["system", *heads, *spearman, "trainable numbers"], rows),
        differences=markdown(["same seed", *heads], less),
        systems=", ".join(runs),
        **common.fixed(summary),
        **parts,
    )
