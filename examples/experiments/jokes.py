"""Human ratings: a PARM of SmolLM2 on jokes that people rated by humor and by offense, on held-out pairs along α.

    python examples/experiments/jokes.py

The texts are those of the file that ``source`` in jokes.yaml names; a checkout of the git repository is made where
there is none. SmolLM2 is fetched at first use.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import judging
import rated_texts

# isort: split
import numpy as np
from design import learning, ranks
from initialisation import VARIANTS as STARTS
from initialisation import variant

from parm_mlx.preference import Alpha

BLOCKS = 30  # of SmolLM2
LORA = "W1 = I, W2 rows = I"


@dataclass(frozen=True)
class Variant:
    """One change of the default: settings of the training, and what else is changed while it runs."""

    label: str
    train: Mapping[str, Any] = field(default_factory=dict)
    changed: Callable[[], AbstractContextManager[None]] = nullcontext


VARIANTS = {
    "the default: p = 0.5, random start": Variant("default"),
    "r1 : r2 = 6 : 2": Variant("r6", ranks(6, 2)),
    "last half of the blocks, ranks 8 : 8": Variant("last", ranks(8, 8), lambda: learning(range(BLOCKS // 2, BLOCKS))),
    "Dirichlet p = 2": Variant("p2", {"dirichlet": 2.0}),
    LORA: Variant("identity", changed=lambda: variant(*STARTS[LORA])),
}


class Judges:
    """PARMs of SmolLM2 on the pairs of jokes, and how they judge the held-out ones."""

    def __init__(self, experiment: common.Experiment, data: Path, objectives: tuple[str, ...]) -> None:
        self.experiment, self.data, self.objectives = experiment, data, objectives
        self.model = str(experiment.settings["model"])

    def trained(self, name: str, seed: int, **settings: Any) -> Path:
        """A PARM, trained unless it is there."""
        data = self.data / "train.jsonl"
        return self.experiment.adapter(
            name, seed, base=Path(self.model), data=data, objectives=self.objectives, **settings
        )

    def leads(self, name: str, parm: Path, alphas: Sequence[Alpha]) -> dict[str, Any]:
        """What :func:`judging.leads` says of it, kept under a name."""
        tokens = self.experiment.settings["train"]["max_seq_length"]
        return self.experiment.fact(
            name, lambda: judging.leads(parm, self.model, self.data, alphas, tokens, lambda pair: pair.where)
        )


def design(judges: Judges, quick: bool) -> tuple[list[dict[str, Any]], str]:
    """PARMs of fewer steps, of which each changes one thing, and the first nothing: their figures and the table."""
    settings = judges.experiment.settings
    iters, samples, seed = settings["design"]["iters"], settings["samples"], judges.experiment.seeds[0]
    parms = {}
    for each in VARIANTS.values():
        with each.changed():
            parms[each.label] = judges.trained(f"jokes-{each.label}", seed, iters=iters, **each.train)
    if quick:
        return [], ""
    corners = [(0.0, 1.0), (1.0, 0.0)]
    found = {label: judges.leads(f"joke-leads-{label}", parm, corners) for label, parm in parms.items()}
    figures, rows = [], []
    for name, of in VARIANTS.items():
        leads = found[of.label]
        measured = judging.measure([leads], judges.objectives, samples)
        less = judging.compared(leads, found["default"], samples)
        figures.append({"name": name, "less_default": less, **measured})
        right = [measured[each]["alphas"][own] for each, own in zip(judges.objectives, (-1, 0), strict=True)]
        changes = [judging.points(each) for each in (*less["right"], *less["raised"])]
        changes = changes if of.label != "default" else [""] * len(changes)
        rows.append([name, *map(judging.percent, right), *changes, f"{less['moved']:.2f}"])
    heads = ["", *(f"right, {name}, %" for name in judges.objectives)]
    heads += [f"less the default, {name}" for name in judges.objectives]
    heads += [f"α raises the preferred, less the default, {name}" for name in judges.objectives]
    return figures, common.markdown([*heads, "α moves, times the default"], rows)


def seeds(by_seed: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    """The table of what each seed gives at an objective's own corner."""
    what = {"base": "corner_less_base", "the other corner": "corner_less_other"}
    rows = [
        [f"{name}, less {other}", *(f"{100 * each[name][key]['value']:+.1f}" for each in by_seed)]
        for name in objectives
        for other, key in what.items()
    ]
    return common.markdown(["right at the own corner, points", *(f"seed {i}" for i in range(len(by_seed)))], rows)


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
    judges = Judges(experiment, data, objectives)
    parms = {seed: judges.trained("jokes", seed) for seed in experiment.seeds}
    designs, designed = design(judges, experiment.quick)
    if experiment.quick:
        return
    weights = [float(weight) for weight in settings["alphas"]]
    alphas = [(weight, 1 - weight) for weight in weights]
    train = settings["train"]
    found = [judges.leads(f"joke-leads-{seed}", parm, alphas) for seed, parm in parms.items()]
    results = judging.measure(found, objectives, settings["samples"])
    by_seed = [judging.measure([each], objectives, settings["samples"]) for each in found]
    judging.draw(experiment, results, objectives, np.array(weights))
    experiment.publish(
        {"data": about, "alphas": alphas, **results, "seeds": by_seed, "design": designs},
        table=judging.accuracies(results, objectives, alphas),
        raised=judging.gains(results, objectives),
        seeds=seeds(by_seed, objectives),
        count=str(len(parms)),
        design=designed,
        design_steps=str(settings["design"]["iters"]),
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
