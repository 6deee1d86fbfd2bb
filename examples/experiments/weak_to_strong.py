"""Weak to strong: the PARMs of the bundled size guide a base that is three times as large.

    python examples/experiments/weak_to_strong.py

The larger base is trained from nothing on the same world (about 45 minutes on one core); it and the guides share a
vocabulary and nothing else. The PARMs are those of adapters.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import common
from adapters import OBJECTIVES, parms
from common import markdown, shown, spread

from parm_mlx.evaluation.summary import compare


def large_base(experiment: common.Experiment) -> Path:
    """The larger base, trained unless it is there."""
    folder = experiment.work / "large"
    if not (folder / "work" / "base.json").exists():
        flags = [part for name, value in experiment.settings["large"].items() for part in (f"--{name}", str(value))]
        script = common.HERE.parent / "bundled" / "make_base.py"
        out = ["--out", str(folder / "base"), "--work", str(folder / "work")]
        subprocess.run([sys.executable, str(script), *flags, *out], check=True)
    return folder / "base"


def share(found: dict[str, float]) -> str:
    """``mean % ± half`` of an interval."""
    return f"{100 * found['value']:.0f} ± {100 * (found['high'] - found['value']):.0f} %"


def main() -> None:
    """Trains, sweeps, compares and writes the page."""
    experiment = common.begin("weak_to_strong", __doc__)
    trained = {seed: parms(experiment, "PBLoRA", seed) for seed in experiment.seeds}
    if experiment.quick:
        return
    large = large_base(experiment)
    own = [experiment.run(f"pblora-{seed}", adapters) for seed, adapters in trained.items()]
    guided = [
        experiment.run(f"large-{seed}", adapters, base=large, timed=seed == 0) for seed, adapters in trained.items()
    ]
    summary = compare([*own, *guided], samples=experiment.settings["sweep"]["bootstrap"])
    count = len(own)
    groups = {"own base": summary["runs"][:count], "large base": summary["runs"][count:]}
    made = json.loads((large.parent / "work" / "base.json").read_text(encoding="utf-8"))
    small = json.loads((common.BASE / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    rows, results = [], {"large": made}
    for name, runs in groups.items():
        results[name] = {"hv": spread(runs, "hv"), "mip": spread(runs, "mip"), "mip_gain": spread(runs, "mip_gain")}
        results[name]["corner_difference"] = {n: spread(runs, "corner_difference", n) for n in OBJECTIVES}
        results[name]["spearman"] = {n: spread(runs, "spearman", n) for n in OBJECTIVES}
        r = results[name]
        unguided = ", ".join(f"{runs[0]['unguided']['raw'][n]:.1f}" for n in OBJECTIVES)
        cells = [shown(r["hv"]), shown(r["mip"]), shown(r["mip_gain"])]
        cells += [shown(r["corner_difference"][n]) for n in OBJECTIVES]
        rows.append([name, *cells, *(shown(r["spearman"][n]) for n in OBJECTIVES), unguided])
    kept = {}
    for metric in ("hv", "mip", "mip_gain"):
        pairs = zip(groups["large base"], groups["own base"], strict=True)
        kept[metric] = common.interval([large_[metric]["value"] / own_[metric]["value"] for large_, own_ in pairs])
    results["kept"] = kept
    heads = ["base", "hypervolume", "mean inner product", "its gain by α", *(f"corners {n}" for n in OBJECTIVES)]
    heads += [*(f"Spearman {n}" for n in OBJECTIVES), "unguided scores"]
    first = compare([own[0], guided[0]], samples=experiment.settings["sweep"]["bootstrap"])
    for run, name in zip(first["runs"], groups, strict=True):
        run["name"] = name
    experiment.picture(first)
    experiment.publish(
        results,
        table=markdown(heads, rows),
        kept_hv=share(kept["hv"]),
        kept_mip=share(kept["mip"]),
        kept_gain=share(kept["mip_gain"]),
        size=f"{made['parameters'] / 1e6:.2f}",
        times=f"{made['parameters'] / 3.15e6:.1f}",
        perplexity=f"{made['held_out_perplexity']:.3f}",
        minutes=f"{made['minutes']:.0f}",
        width=str(small),
        **common.fixed(summary),
    )


if __name__ == "__main__":
    main()
