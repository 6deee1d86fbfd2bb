"""PBLoRA against plain LoRA, SVD-LoRA and GenARM, with equally many trainable numbers.

    python examples/experiments/adapters.py

GenARM is two plain LoRA models of half the rank, each trained on one objective for half of the steps, that guide
together. LoRA without conditioning cannot follow α; it is the floor of the comparison.
"""

from pathlib import Path
from typing import Any

import common
from common import interval, markdown, shown, spread

from parm_mlx.evaluation.summary import Run, compare
from parm_mlx.pblora import read_adapter

OBJECTIVES = common.make_parm.OBJECTIVES
SYSTEMS = ("PBLoRA", "LoRA", "SVD-LoRA", "GenARM")


def parms(experiment: common.Experiment, system: str, seed: int) -> list[Path]:
    """The adapters of a system, trained unless they are there."""
    train = experiment.settings["train"]
    if system != "GenARM":
        return [experiment.adapter(system.lower(), seed, adapter=system.lower())]
    half = {"iters": train["iters"] // 2, "warmup": train["warmup"] // 2}
    small: dict[str, Any] = {"adapter": "lora", "r1": 2, "r2": 2, "lora_alpha": 4.0}
    return [experiment.adapter(f"genarm-{name}", seed, objectives=(name,), **small, **half) for name in OBJECTIVES]


def paired(runs: dict[str, list[Run]], found: dict[str, Any], system: str, metric: str) -> dict[str, float]:
    """By how much PBLoRA is above a system that trained with the same seed."""
    pairs = zip(runs["PBLoRA"], runs[system], strict=True)
    return interval([found[ours.name][metric]["value"] - found[theirs.name][metric]["value"] for ours, theirs in pairs])


def main() -> None:
    """Trains, sweeps, compares and writes the page."""
    experiment = common.begin("adapters", __doc__)
    trained = {(system, seed): parms(experiment, system, seed) for seed in experiment.seeds for system in SYSTEMS}
    if experiment.quick:
        return
    runs: dict[str, list[Run]] = {system: [] for system in SYSTEMS}
    for (system, seed), adapters in trained.items():
        runs[system].append(experiment.run(f"{system.lower()}-{seed}", adapters, timed=seed == experiment.seeds[0]))
    summary = compare(
        [run for several in runs.values() for run in several], samples=experiment.settings["sweep"]["bootstrap"]
    )
    found = {run["name"]: run for run in summary["runs"]}
    rows, results = [], {}
    for system in SYSTEMS:
        of_system = [found[run.name] for run in runs[system]]
        time = runs[system][0].timing
        numbers = sum(t.size for parm in trained[system, experiment.seeds[0]] for t in read_adapter(parm)[1].values())
        results[system] = {
            "hv": spread(of_system, "hv"),
            "mip": spread(of_system, "mip"),
            "mip_gain": spread(of_system, "mip_gain"),
            "spearman": {name: spread(of_system, "spearman", name) for name in OBJECTIVES},
            "corner_difference": {name: spread(of_system, "corner_difference", name) for name in OBJECTIVES},
            "time": time,
            "trainable_numbers": numbers,
            "points": [[[p["scores"][n]["mean"] for n in OBJECTIVES] for p in run["points"]] for run in of_system],
        }
        r = results[system]
        rows.append(
            [
                system,
                shown(r["hv"]),
                shown(r["mip"]),
                shown(r["mip_gain"]),
                *(shown(r["spearman"][name]) for name in OBJECTIVES),
                f"{time['guided_token_ms']:.1f} ms ({time['guided_token_ms'] / time['base_token_ms']:.2f} × base)",
                f"{numbers:,}",
            ]
        )
    heads = ["system", "hypervolume", "mean inner product", "its gain by α"]
    heads += [f"Spearman {name}" for name in OBJECTIVES]
    table = markdown([*heads, "time per token", "trainable numbers"], rows)
    differences = {
        system: {metric: paired(runs, found, system, metric) for metric in ("hv", "mip", "mip_gain")}
        for system in SYSTEMS[1:]
    }
    less = [[f"PBLoRA less {system}", *map(shown, metrics.values())] for system, metrics in differences.items()]
    first = compare([several[0] for several in runs.values()], samples=experiment.settings["sweep"]["bootstrap"])
    for run, system in zip(first["runs"], SYSTEMS, strict=True):
        run["name"] = system
    experiment.picture(first)
    experiment.publish(
        {
            "systems": results,
            "differences": differences,
            "normalization": summary["normalization"],
            "reference_point": summary["reference_point"],
        },
        table=table,
        differences=markdown(["same seed", "hypervolume", "mean inner product", "its gain by α"], less),
        **common.fixed(summary),
    )


if __name__ == "__main__":
    main()
