"""What the design of a PARM changes: r1 : r2, β of guided decoding, adapted blocks, and Dirichlet p of training.

    python examples/experiments/design.py

Everything else stays as in the default, the PARM of adapters.py, and every variant is compared with the default of
the same seed. Only β is also tried on SmolLM2, as it needs no training.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import common
import mlx.core as mx
import numpy as np
from common import markdown
from comparison import OBJECTIVES
from intervals import Found, Sweeps, bracketed, number, shown
from mlx.utils import tree_map_with_path

from parm_mlx.drawing import STYLES
from parm_mlx.evaluation.summary import Run, compare
from parm_mlx.pblora import read_adapter
from parm_mlx.training.optimizer import Optimizer

BLOCKS = 4  # of the bundled base


@dataclass(frozen=True)
class Variant:
    """One change of the default.

    Attributes:
        label: Of its adapters and sweeps.
        train: Settings of its training.
        blocks: Blocks whose adapters learn; the others stay without effect.
        beta: β of guided decoding.
    """

    label: str = "default"
    train: Mapping[str, Any] = field(default_factory=dict)
    blocks: range = range(BLOCKS)
    beta: float = 1.0


def ranks(r1: int, r2: int) -> dict[str, Any]:
    """Settings of a training with these ranks, and the default's factor of the update, s = 2."""
    return {"r1": r1, "r2": r2, "lora_alpha": 2.0 * r2}


DEFAULT = Variant()
GROUPS: dict[str, dict[str, Variant]] = {
    "ranks": {
        "r1 : r2 = 0 : 8": Variant("r0", ranks(0, 8)),
        "r1 : r2 = 2 : 6": Variant("r2", ranks(2, 6)),
        "r1 : r2 = 4 : 4 (default)": DEFAULT,
        "r1 : r2 = 6 : 2": Variant("r6", ranks(6, 2)),
    },
    "beta": {
        "β = 0.5": Variant("beta0.5", beta=0.5),
        "β = 1 (default)": DEFAULT,
        "β = 2": Variant("beta2", beta=2.0),
    },
    "depth": {
        "first half, ranks 8 : 8": Variant("first", ranks(8, 8), range(BLOCKS // 2)),
        "last half, ranks 8 : 8": Variant("last", ranks(8, 8), range(BLOCKS // 2, BLOCKS)),
        "all blocks, ranks 4 : 4 (default)": DEFAULT,
    },
    "dirichlet": {
        "p = 0.25": Variant("p0.25", {"dirichlet": 0.25}),
        "p = 0.5 (default)": DEFAULT,
        "p = 1": Variant("p1", {"dirichlet": 1.0}),
        "p = 2": Variant("p2", {"dirichlet": 2.0}),
    },
}
VARIANTS = {variant.label: variant for group in GROUPS.values() for variant in group.values()}
NAMES = {variant.label: name for group in GROUPS.values() for name, variant in group.items()}
MEASURES = {
    "hv": "hypervolume",
    "mip": "mean inner product",
    "mip_gain": "its gain by α",
    "length": "length of the front",
    "middle": "place of the middle",
    "height": "above the chord",
    "centre": "score at the middle",
    "step": "largest step",
}


@contextmanager
def learning(blocks: range) -> Iterator[None]:
    """Within the block, adapters learn in these blocks of the model; in others B stays zero, and so their update."""
    update = Optimizer.update

    def kept(name: str, gradient: mx.array) -> mx.array:
        found = re.search(r"layers\.(\d+)\.", name)
        assert found is not None, name
        return gradient if int(found[1]) in blocks else mx.zeros_like(gradient)

    def changed(self: Optimizer, step: int, gradients: Any) -> Any:
        return update(self, step, tree_map_with_path(kept, gradients))

    with patch.object(Optimizer, "update", changed):
        yield


def adapter(experiment: common.Experiment, variant: Variant, seed: int) -> Any:
    """The adapter of a variant, trained unless it is there; β changes nothing in it."""
    if not variant.train:
        return experiment.adapter("pblora", seed)
    with learning(variant.blocks) if len(variant.blocks) < BLOCKS else nullcontext():
        return experiment.adapter(f"design-{variant.label}", seed, **variant.train)


def run(experiment: common.Experiment, variant: Variant, seed: int) -> Run:
    """The sweep of a variant."""
    name = "pblora" if variant == DEFAULT else f"design-{variant.label}"
    return experiment.run(f"{name}-{seed}", [adapter(experiment, variant, seed)], beta=variant.beta)


def numbers(experiment: common.Experiment, variant: Variant) -> int:
    """The numbers that a variant trains."""
    tensors = read_adapter(adapter(experiment, variant, experiment.seeds[0]))[1]
    return sum(tensor.size for name, tensor in tensors.items() if int(name.split(".")[1]) in variant.blocks)


def shape(points: Sequence[Sequence[float]]) -> dict[str, float]:
    """The shape of a front of two objectives, of points in the order of α from (1, 0) to (0, 1).

    Returns:
        ``length`` of the chord, from corner to corner; ``middle``, where on the chord the middle point lies, 0.5
        halfway; ``height``, how far it lies beyond the chord, larger is better; ``centre``, the mean of its scores; and
        ``step``, the share of the largest step in the way along all points.
    """
    first, *_, last = front = np.array(points, float)
    chord, middle = last - first, front[len(front) // 2] - first
    length = float(np.linalg.norm(chord))
    ways = np.linalg.norm(np.diff(front, axis=0), axis=1)
    normal = np.array([-chord[1], chord[0]]) / length
    outwards = normal if normal.sum() > 0 else -normal
    return {
        "length": length,
        "middle": float(middle @ chord) / length**2,
        "height": float(middle @ outwards),
        "centre": float(front[len(front) // 2].mean()),
        "step": float(ways.max() / ways.sum()),
    }


def front(summary: Mapping[str, Any]) -> list[list[float]]:
    """The points of one run, in the order of α."""
    return [[point["scores"][name]["mean"] for name in OBJECTIVES] for point in summary["points"]]


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one run."""
    found = {metric: number(summary, metric) for metric in ("hv", "mip", "mip_gain")} | shape(front(summary))
    found |= {f"spearman_{name}": number(summary, "spearman", name) for name in OBJECTIVES}
    return found | {"ended": float(np.mean([point["ended"] for point in summary["points"]]))}


def real(experiment: common.Experiment) -> tuple[dict[str, Any], str]:
    """SmolLM2 guided by its PARM at each β: what is measured, and its table."""
    runs = [
        replace(experiment.real(f"design-smollm2-beta{beta:g}", beta=beta), name=f"{beta:g}")
        for beta in (1.0, 0.5, 2.0)
    ]
    summary = compare(runs)
    less = {each["run"]: each for each in summary["differences"]}
    rows, found = [], {}
    for each in sorted(summary["runs"], key=lambda each: float(each["name"])):
        name, measured = each["name"], {metric: each[metric] for metric in ("hv", "mip", "mip_gain")}
        found[name] = measured | {"corner_difference": each["corner_difference"]}
        found[name] |= {"differences": {m: less[name][m] for m in ("hv", "mip")}} if name in less else {}
        cells = [name, *(bracketed(value) for value in measured.values())]
        cells += [bracketed(each["corner_difference"][objective]) for objective in each["objectives"]]
        rows.append([*cells, *(bracketed(less[name][m]) if name in less else "" for m in ("hv", "mip"))])
    heads = ["β", "hypervolume", "mean inner product", "its gain by α"]
    heads += [f"corners {objective}" for objective in summary["objectives"]]
    return found, markdown([*heads, "HV less that at β = 1", "MIP less that at β = 1"], rows)


def picture(experiment: common.Experiment, fronts: Mapping[str, np.ndarray]) -> None:
    """Draws the fronts, mean over the seeds, a panel for each group."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharex=True, sharey=True)
    for axes, group in zip(panels.flat, GROUPS.values(), strict=True):
        for (name, variant), (color, line, marker) in zip(group.items(), STYLES, strict=False):
            axes.plot(*fronts[variant.label].T, color=color, ls=line, marker=marker, ms=5, label=name)
        axes.plot(0, 0, "*", color="black", ms=9, label="base alone")
        axes.legend(frameon=False, fontsize=8)
        axes.grid(color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_xlabel(OBJECTIVES[0])
    for axes in panels[:, 0]:
        axes.set_ylabel(OBJECTIVES[1])
    experiment.save(figure)


def main() -> None:
    """Trains, sweeps, compares and writes the page."""
    experiment = common.begin("design", __doc__)
    for seed in experiment.seeds:
        for variant in VARIANTS.values():
            adapter(experiment, variant, seed)
    if experiment.quick:
        return
    runs = {label: [run(experiment, v, seed) for seed in experiment.seeds] for label, v in VARIANTS.items()}
    sizes = experiment.fact(
        "numbers-design", lambda: {label: numbers(experiment, variant) for label, variant in VARIANTS.items()}
    )
    samples = experiment.settings["sweep"]["bootstrap"]
    sweeps = Sweeps([each for several in runs.values() for each in several], samples)
    fronts = {label: np.mean([front(sweeps.found[r.name]) for r in several], 0) for label, several in runs.items()}
    results: dict[str, Any] = {}
    for label, several in runs.items():
        results[label] = {
            "name": NAMES[label],
            "trainable_numbers": sizes[label],
            "values": of_each(sweeps, several),
            "less_default": of_each(sweeps, several, runs["default"]),
            "front": fronts[label].tolist(),
        }
    measured, of_smollm2 = real(experiment)
    picture(experiment, fronts)
    tables = {name: table(group, results) for name, group in GROUPS.items()}
    experiment.publish(
        {"variants": results, "smollm2": measured, "reference_point": sweeps.summary["reference_point"]},
        **tables,
        ended=f"{min(r['values']['ended']['value'] for r in results.values()):.0%}",
        smollm2=of_smollm2,
        seeds=str(len(experiment.seeds)),
        real=f"{experiment.settings['real']['questions']}",
        real_tokens=f"{experiment.settings['real']['max_tokens']}",
        **common.fixed(sweeps.summary),
    )


def of_each(sweeps: Sweeps, runs: Sequence[Run], less: Sequence[Run] = ()) -> dict[str, dict[str, float]]:
    """Every number of the runs of a variant, or of them less those of another with the same seeds."""

    def values(found: Found, name: str) -> list[float]:
        own, others = ([figures(found[run.name])[name] for run in several] for several in (runs, less))
        return [a - b for a, b in zip(own, others, strict=True)] if less else own

    names = figures(sweeps.found[runs[0].name])
    return {name: sweeps.interval(lambda found, name=name: values(found, name)) for name in names}  # type: ignore[misc]


def table(group: Mapping[str, Variant], results: Mapping[str, Any]) -> str:
    """A row for each variant and, below it, its difference from the default with the same seed."""
    sizes = {name: results[variant.label]["trainable_numbers"] for name, variant in group.items()}
    sized = len(set(sizes.values())) > 1

    def row(name: str, found: Mapping[str, Any], size: str) -> list[str]:
        spearman = " / ".join(shown(found[f"spearman_{objective}"]) for objective in OBJECTIVES)
        return [name, *([size] if sized else []), *(shown(found[measure]) for measure in MEASURES), spearman]

    rows = []
    for name, variant in group.items():
        r = results[variant.label]
        rows.append(row(name, r["values"], f"{sizes[name]:,}"))
        if variant != DEFAULT:
            rows.append(row("less the default", r["less_default"], ""))
    heads = ["", *(["trainable numbers"] if sized else []), *MEASURES.values()]
    return markdown([*heads, f"Spearman {' / '.join(OBJECTIVES)}"], rows)


if __name__ == "__main__":
    main()
