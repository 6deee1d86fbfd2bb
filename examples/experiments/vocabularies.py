"""Another vocabulary: the bundled PARM guides SmolLM2, and SmolLM2's PARM guides the bundled base.

    python examples/experiments/vocabularies.py

Neither base has the tokens of its guide (49,152 and 2,048), and they are of other families of training and 1/43 of
each other's size. The pairs of one vocabulary are beside them, with the same questions and scorers. It needs SmolLM2,
which is fetched at first use.
"""

import json
from pathlib import Path
from typing import Any

import common
from common import markdown
from intervals import bracketed

from parm_mlx.evaluation.summary import compare

PAIRS = {
    "bundled by its own": ("bundled", "bundled"),
    "bundled by SmolLM2's": ("bundled", "smollm2"),
    "SmolLM2 by its own": ("smollm2", "smollm2"),
    "SmolLM2 by the bundled": ("smollm2", "bundled"),
}


def measured_time(folder: Path) -> dict[str, Any]:
    """What ``parm-mlx evaluate`` has measured of the time of a sweep."""
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["time"]
    return found


def main() -> None:
    """Sweeps the four pairs and writes the page."""
    experiment = common.begin("vocabularies", __doc__)
    if experiment.quick:
        return
    settings, samples = experiment.settings["real"], experiment.settings["sweep"]["bootstrap"]
    rows, results = [], {}
    for pair, (base, parm) in PAIRS.items():
        name = f"vocabularies-{base}-{parm}"
        summary = compare([experiment.real(name, model=base, parm=parm, questions="bundled")], samples=samples)
        time = experiment.fact(f"{name}-cost", lambda name=name: measured_time(experiment.work / "runs" / name))
        (run,) = summary["runs"]
        corners = run["corner_difference"]
        results[pair] = {metric: run[metric] for metric in ("hv", "mip", "mip_gain", "corner_difference")}
        results[pair] |= {"reference_point": summary["reference_point"], "time": time}
        moved = ", ".join(f"{objective} {bracketed(corners[objective])}" for objective in summary["objectives"])
        cells = [bracketed(run[metric]) for metric in ("hv", "mip", "mip_gain")]
        passes = f"{time['across_passes_per_token']:.2f}" if "across_passes_per_token" in time else "1"
        left = f"{100 * time['across_open']:.2f} %" if "across_open" in time else "–"
        slower = f"{time['guided_token_ms'] / time['base_token_ms']:.1f}"
        rows.append([pair, *cells, moved, slower, passes, left])
    heads = ["base and PARM", "HV", "MIP", "gain by α", "corners", "time of a token, of the base's"]
    heads += ["guide passes per token", "left open"]
    moves = {name: [each["value"] for each in found["corner_difference"].values()] for name, found in results.items()}
    experiment.dots(moves, "difference between the corners, in standard deviations of the unguided answers")
    experiment.publish(
        results,
        table=markdown(heads, rows),
        questions=str(settings["questions"]),
        tokens=str(settings["max_tokens"]),
        grid=f"{settings['grid']:g}",
    )


if __name__ == "__main__":
    main()
