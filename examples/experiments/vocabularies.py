"""Another vocabulary: the bundled PARM guides SmolLM2, and SmolLM2's PARM guides the bundled base.

    python examples/experiments/vocabularies.py

Neither base has the tokens of its guide (49,152 and 2,048), and they are of other families of training and 1/43 of
each other's size. The pairs of one vocabulary are beside them, with the same questions and scorers. It needs SmolLM2,
which is fetched at first use.
"""

from typing import Any

import common
from common import markdown
from intervals import bracketed

from parm_mlx.evaluation.evaluate import evaluate
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.sampling import Sampling

PAIRS = {
    "bundled by its own": ("bundled", "bundled"),
    "bundled by SmolLM2's": ("bundled", "smollm2"),
    "SmolLM2 by its own": ("smollm2", "smollm2"),
    "SmolLM2 by the bundled": ("smollm2", "bundled"),
}


def sweep(experiment: common.Experiment, base: str, parm: str) -> dict[str, Any]:
    """Answers, scores and measures a pair."""
    settings = experiment.settings["pairs"]
    questions = held_out_prompts("bundled")[: settings["questions"]]
    summary = evaluate(
        out=experiment.work / f"{base}-{parm}",
        model=base,
        parm=parm,
        prompts=[[{"role": "user", "content": question}] for question in questions],
        grid=settings["grid"],
        sampling=Sampling(temp=0),
        max_tokens=settings["max_tokens"],
        bootstrap=experiment.settings["sweep"]["bootstrap"],
        note=print,
    )
    assert summary is not None
    return summary


def main() -> None:
    """Sweeps the four pairs and writes the page."""
    experiment = common.begin("vocabularies", __doc__)
    settings = experiment.settings["pairs"]
    rows, results = [], {}
    for name, (base, parm) in PAIRS.items():
        summary = experiment.fact(f"{base}-{parm}", lambda base=base, parm=parm: sweep(experiment, base, parm))
        experiment.keep(experiment.work / f"{base}-{parm}")
        run = summary
        time = run["time"]
        corners = run["corner_difference"]
        results[name] = {
            "hv": run["hv"],
            "mip": run["mip"],
            "mip_gain": run["mip_gain"],
            "corner_difference": corners,
            "reference_point": summary["reference_point"],
        }
        moved = ", ".join(f"{objective} {bracketed(corners[objective])}" for objective in summary["objectives"])
        cells = [bracketed(run[metric]) for metric in ("hv", "mip", "mip_gain")]
        passes = f"{time['across_passes_per_token']:.2f}" if "across_passes_per_token" in time else "1"
        left = f"{100 * time['across_open']:.2f} %" if "across_open" in time else "–"
        slower = f"{time['guided_token_ms'] / time['base_token_ms']:.1f}"
        rows.append([name, *cells, moved, slower, passes, left])
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
