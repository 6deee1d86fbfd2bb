"""Human ratings: a PARM of SmolLM2 on jokes that people rated by humor and by offense, on held-out pairs along α.

    python examples/experiments/jokes.py

The texts are those of the file that ``source`` in jokes.yaml names; a checkout of the git repository is made where
there is none. SmolLM2 is fetched at first use.
"""

from pathlib import Path

import common
import judging
import rated_texts

# isort: split
import numpy as np


def main() -> None:
    """Trains, judges the held-out pairs and writes the page."""
    experiment = common.begin("jokes", __doc__)
    settings = experiment.settings
    where, named = settings["source"], str(settings["model"])
    folder = experiment.work / "hahackathon"
    experiment.made(folder, lambda: common.checkout(where["repository"], where["commit"], folder))
    data = experiment.work / "joke-pairs"
    about = experiment.fact(
        "joke-pairs", lambda: rated_texts.make(folder / where["file"], data, model=named, **settings["pairs"])
    )
    objectives = tuple(about["objectives"])
    parm = experiment.adapter(
        "jokes", experiment.seeds[0], base=Path(named), data=data / "train.jsonl", objectives=objectives
    )
    if experiment.quick:
        return
    weights = [float(weight) for weight in settings["alphas"]]
    alphas = [(weight, 1 - weight) for weight in weights]
    train = settings["train"]
    found = experiment.fact(
        "joke-leads",
        lambda: judging.leads(parm, named, data, alphas, train["max_seq_length"], lambda pair: pair.where),
    )
    results = judging.measure(found, objectives, settings["samples"])
    judging.draw(experiment, results, objectives, np.array(weights))
    experiment.publish(
        {"data": about, "alphas": alphas, **results},
        table=judging.accuracies(results, objectives, alphas),
        raised=judging.gains(results, objectives),
        **{f"nats_{what}": f"{value:.1f}" for what, value in results["nats"].items()},
        repository=where["repository"].removeprefix("https://github.com/"),
        url=where["repository"],
        commit=where["commit"][:12],
        file=where["file"],
        prompt=settings["pairs"]["prompt"],
        clear=f"{settings['pairs']['clear']:g}",
        most=str(settings["pairs"]["tokens"]),
        texts=f"{about['texts']:,}",
        held_out=f"{about['held_out']:,}",
        train=f"{about['train']:,}",
        test=f"{about['test']:,}",
        labels=" and ".join(f"{count:,} by {name}" for name, count in about["labels"].items()),
        correlation=f"{about['correlation']:.2f}",
        length=f"{about['tokens'][1]:.0f}",
        steps=str(train["iters"]),
        batch=str(train["batch_size"]),
        passes=f"{train['iters'] * train['batch_size'] / about['train']:.1f}",
    )


if __name__ == "__main__":
    main()
