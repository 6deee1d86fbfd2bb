"""Human preferences: a PARM of SmolLM2 on HH-RLHF, and its accuracy on held-out pairs along α.

    python examples/experiments/real_preferences.py

The pairs are those of the folder that ``source`` in real_preferences.yaml names; a checkout of the git repository is
made where there is none (Git LFS fetches what of it is stored there). SmolLM2 is fetched at first use.
"""

from pathlib import Path

import common
import hh_rlhf
import judging

# isort: split
import numpy as np
from judging import percent


def main() -> None:
    """Trains, judges the held-out pairs and writes the page."""
    experiment = common.begin("real_preferences", __doc__)
    settings = experiment.settings
    where, named = settings["source"], str(settings["model"])
    source = where["folder"]
    if "/" not in source:
        folder = experiment.work / source
        experiment.made(folder, lambda: common.checkout(where["repository"], where["commit"], folder))
        source = str(folder)
    data = experiment.work / "hh-rlhf-pairs"
    about = experiment.fact("hh-rlhf-pairs", lambda: hh_rlhf.make(source, data, model=named, **settings["pairs"]))
    objectives = about["objectives"]
    parm = experiment.adapter(
        "hh-rlhf", experiment.seeds[0], base=Path(named), data=data / "train.jsonl", objectives=tuple(objectives)
    )
    if experiment.quick:
        return
    weights = [float(weight) for weight in settings["alphas"]]
    alphas = [(weight, 1 - weight) for weight in weights]
    tokens = settings["pairs"]["tokens"]
    found = experiment.fact(
        "hh-rlhf-leads", lambda: judging.leads(parm, named, data, alphas, tokens, hh_rlhf.first_question)
    )
    results = judging.measure([found], objectives, settings["samples"])
    judging.draw(experiment, results, objectives, np.array(weights))
    train, differ = settings["train"], results["where_they_differ"]
    experiment.publish(
        {"data": about, "alphas": alphas, **results},
        table=judging.accuracies(results, objectives, alphas),
        raised=judging.gains(results, objectives),
        **{f"longer_{what}": f"{percent(value)} %" for what, value in results["longer"].items()},
        **{f"nats_{what}": f"{value:.1f}" for what, value in results["nats"].items()},
        lengths="; ".join(f"{name} {percent(results[name]['longer_is_preferred'])} %" for name in objectives),
        first=objectives[0],
        second=objectives[1],
        files=", ".join(about["files"]),
        missing=", ".join(about["missing"]) or "none",
        read=f"{about['read']:,}",
        fitting=f"{about['fitting']:,}",
        tokens=str(tokens),
        train=f"{about['train']:,}",
        test=f"{about['test']:,}",
        questions=f"{about['first_questions']['test']:,}",
        differ=f"{differ['pairs'] / differ['of']:.0%}",
        steps=str(train["iters"]),
        batch=str(train["batch_size"]),
        passes=f"{train['iters'] * train['batch_size'] / about['train']:.1f}",
        commit=where["commit"][:12],
    )


if __name__ == "__main__":
    main()
