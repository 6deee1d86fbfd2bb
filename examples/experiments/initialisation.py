"""How much the initial values and the tying of A, B, W1 and W2 matter.

    python examples/experiments/initialisation.py

Each variant changes the start of every adapted layer, or ties two parts of it by giving both their mean gradient,
and trains otherwise as PBLoRA does by default.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import common
import mlx.core as mx
from adapters import OBJECTIVES
from common import markdown
from intervals import Sweeps, number, shown

from parm_mlx.pblora.layer import PBLoRALinear
from parm_mlx.training.optimizer import Optimizer

Start = Callable[[PBLoRALinear], None]
Tensors = dict[str, mx.array]


def scaled(factor: float) -> Start:
    """W1 and W2 begin so many times as large."""

    def start(layer: PBLoRALinear) -> None:
        layer.w1, layer.w2 = factor * layer.w1, factor * layer.w2

    return start


def equal_rows(layer: PBLoRALinear) -> None:
    """All rows of W2 begin alike: before training, the preference changes nothing in the core."""
    layer.w2 = mx.broadcast_to(layer.w2[:1], layer.w2.shape) + 0.0


def identity(layer: PBLoRALinear) -> None:
    """W1 and every row of W2 begin as the identity: the adapter begins as a plain LoRA."""
    layer.w1 = mx.eye(layer.config.r1)
    layer.w2 = mx.broadcast_to(mx.eye(layer.config.r2).reshape(1, -1), layer.w2.shape) + 0.0


def equal_halves(layer: PBLoRALinear) -> None:
    """The two halves of A begin alike; those of B do already, at zero."""
    layer.a = mx.concatenate([layer.a[: layer.config.r1], layer.a[: layer.config.r1]])


def tied(*names: str) -> Callable[[Tensors], Tensors]:
    """Both halves of these tensors get the mean of their gradients."""

    def change(gradients: Tensors) -> Tensors:
        for name in names:
            axis = 0 if name == "a" else 1
            first, second = mx.split(gradients[name], 2, axis=axis)
            gradients[name] = mx.concatenate([(first + second) / 2] * 2, axis=axis)
        return gradients

    return change


def frozen(*names: str) -> Callable[[Tensors], Tensors]:
    """These tensors keep their start, weight decay aside."""
    return lambda gradients: {n: mx.zeros_like(g) if n in names else g for n, g in gradients.items()}


VARIANTS: dict[str, tuple[Start | None, Callable[[Tensors], Tensors] | None]] = {
    "default": (None, None),
    "W1, W2 × 0.25": (scaled(0.25), None),
    "W1, W2 × 4": (scaled(4.0), None),
    "rows of W2 equal": (equal_rows, None),
    "W1 = I, W2 rows = I": (identity, None),
    "W1 frozen": (None, frozen("w1")),
    "A tied": (equal_halves, tied("a")),
    "A and B tied": (equal_halves, tied("a", "b")),
}


@contextmanager
def variant(start: Start | None, change: Callable[[Tensors], Tensors] | None) -> Iterator[None]:
    """Within the block, layers begin and learn in this way."""
    init, update = PBLoRALinear.__init__, Optimizer.update

    def changed_init(self: PBLoRALinear, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if start:
            start(self)

    def changed_update(self: Optimizer, step: int, gradients: Any) -> Any:
        return update(self, step, _in_layers(gradients, change) if change else gradients)

    PBLoRALinear.__init__, Optimizer.update = changed_init, changed_update  # type: ignore[method-assign]
    try:
        yield
    finally:
        PBLoRALinear.__init__, Optimizer.update = init, update  # type: ignore[method-assign]


def _in_layers(tree: Any, change: Callable[[Tensors], Tensors]) -> Any:
    """Applies a change to the gradients of every adapted layer of a tree."""
    if isinstance(tree, list):
        return [_in_layers(item, change) for item in tree]
    if isinstance(tree, dict):
        return change(dict(tree)) if "w2" in tree else {name: _in_layers(item, change) for name, item in tree.items()}
    return tree


def main() -> None:
    """Trains, sweeps, compares and writes the page."""
    experiment = common.begin("initialisation", __doc__)
    trained = {}
    for i, (name, change) in enumerate(VARIANTS.items()):
        for seed in experiment.seeds:
            label = f"init{i}" if i else "pblora"
            with variant(*change):
                trained[name, seed] = experiment.adapter(label, seed), f"{label}-{seed}"
    if experiment.quick:
        return
    runs = {key: experiment.run(label, [parm]) for key, (parm, label) in trained.items()}
    sweeps = Sweeps(list(runs.values()), experiment.settings["sweep"]["bootstrap"])
    by_variant = {name: [runs[name, seed] for seed in experiment.seeds] for name in VARIANTS}
    values = {name: [number(sweeps.found[run.name], "hv") for run in several] for name, several in by_variant.items()}
    rows, results = [], {}
    for name, several in by_variant.items():
        pairs = list(zip(several, by_variant["default"], strict=True))
        results[name] = {
            "hv": sweeps.spread(several, "hv"),
            "hv_difference": sweeps.less(pairs, "hv"),
            "mip": sweeps.spread(several, "mip"),
            "spearman": {objective: sweeps.spread(several, "spearman", objective) for objective in OBJECTIVES},
        }
        r = results[name]
        less = shown(r["hv_difference"]) if name != "default" else ""
        cells = [shown(r["hv"]), less, shown(r["mip"]), *(shown(r["spearman"][n]) for n in OBJECTIVES)]
        rows.append([name, *cells])
    heads = ["variant", "hypervolume", "above the default, same seed", "mean inner product"]
    table = markdown([*heads, *(f"Spearman {n}" for n in OBJECTIVES)], rows)
    experiment.dots(values, "hypervolume")
    experiment.publish({"variants": results, "hv_by_seed": values}, table=table, **common.fixed(sweeps.summary))


if __name__ == "__main__":
    main()
