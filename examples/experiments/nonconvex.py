"""A front that is not convex: linear scalarisation against smooth Tchebycheff.

    python examples/experiments/nonconvex.py

Part one is constructed, so that the true front is known. A model of one parameter θ has the two losses

    L1 = 1 − exp(−(θ − 1)²),    L2 = 1 − exp(−(θ + 1)²)

whose Pareto front, θ from −1 to 1, bulges the wrong way: every weighted sum has its minimum near an end. A network
learns θ(α) for all α at once, through the library's own losses: the log-probabilities of two pairs are such that their
preference losses are L1 and L2. Part two trains PARMs on the bundled world with both scalarisations.
"""

from typing import Any

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from adapters import OBJECTIVES
from common import markdown
from intervals import Sweeps, over_seeds, shown

from parm_mlx.drawing import STYLES
from parm_mlx.evaluation.metrics import hypervolume
from parm_mlx.training.loss import preference_loss, smooth_tchebycheff

KINDS = ("linear", "tchebycheff")
NAMES = {"linear": "linear", "tchebycheff": "smooth Tchebycheff"}
METRICS = ("hv", "mip", "mip_gain")
FLOOR = 1e-3  # losses of −log σ never reach 0, so the constructed ones begin here


def true_losses(theta: Any) -> Any:
    """(…,) θ → (…, 2) the two losses."""
    return mx.stack([FLOOR + 1 - mx.exp(-((theta - side) ** 2)) for side in (1.0, -1.0)], axis=-1)


def losses(theta: mx.array) -> mx.array:
    """The same two losses, computed by the library as preference losses of two pairs.

    −log σ(m) = L for the margin m = −log(exp(L) − 1). Pair i is labelled by objective i alone.
    """
    margin = -mx.log(mx.exp(true_losses(theta)) - 1)
    logprobs = mx.stack([margin, mx.zeros(2)])
    ones = mx.ones(2)
    return preference_loss(logprobs, mx.zeros((2, 2)), mx.eye(2), ones, ones).per_objective


class Network(nn.Module):
    """α → θ."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]

    def __call__(self, alpha: mx.array) -> mx.array:
        """(B, 2) → (B,)."""
        x = alpha
        for layer in self.layers[:-1]:
            x = mx.tanh(layer(x))
        return 2 * mx.tanh(self.layers[-1](x)[..., 0])


def learn(kind: str, seed: int, toy: dict[str, Any]) -> np.ndarray:
    """Trains θ(α), α uniform on the simplex; returns the losses (21, 2) at α from (1, 0) to (0, 1)."""
    mx.random.seed(seed)
    model = Network(toy["hidden"])
    optimizer = optim.Adam(optim.cosine_decay(toy["learning_rate"], toy["steps"]))

    def one(theta: mx.array, alpha: mx.array) -> mx.array:
        found = losses(theta)
        if kind == "linear":
            return (alpha * found).sum()
        return smooth_tchebycheff(found, alpha, toy["smoothing"], mx.array([True, True]))

    def total(alpha: mx.array) -> mx.array:
        return mx.vmap(one)(model(alpha), alpha).mean()

    step = nn.value_and_grad(model, total)
    for _ in range(toy["steps"]):
        first = mx.random.uniform(shape=(toy["batch"],))
        loss, gradients = step(mx.stack([first, 1 - first], axis=1))
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
    first = mx.linspace(1, 0, 21)
    return np.array(true_losses(model(mx.stack([first, 1 - first], axis=1))))


def true_points(count: int) -> np.ndarray:
    """Points of the true front at equal distances along it, (count, 2)."""
    front = np.array(true_losses(mx.linspace(1, -1, 4001)))
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(front, axis=0), axis=1))])
    return np.stack([np.interp(np.linspace(0, length[-1], count), length, front[:, i]) for i in (0, 1)], axis=1)


def recovered(found: np.ndarray, points: np.ndarray) -> list[bool]:
    """Which true points have a solution nearer than half their distance from one another."""
    half = np.linalg.norm(points[1] - points[0]) / 2
    return (np.linalg.norm(points[:, None] - found[None], axis=-1).min(axis=1) <= half).tolist()


def constructed(experiment: common.Experiment) -> tuple[dict[str, Any], str]:
    """Part one: what each scalarisation recovers, and its table."""
    toy = experiment.settings["toy"]
    points = true_points(toy["true_points"])
    learnt = experiment.fact(
        "nonconvex", lambda: {kind: [learn(kind, seed, toy).tolist() for seed in experiment.seeds] for kind in KINDS}
    )
    solutions = {kind: [np.array(found) for found in several] for kind, several in learnt.items()}
    results, rows = {}, []
    for kind, several in solutions.items():
        marks = [recovered(found, points) for found in several]
        reference = [-1.05, -1.05]
        whole = hypervolume(-np.array(true_losses(mx.linspace(1, -1, 4001))), reference)
        volumes = [hypervolume(-found, reference) / whole for found in several]
        results[kind] = {
            "recovered": marks,
            "count": over_seeds([float(sum(mark)) for mark in marks]),
            "hv_share": over_seeds(volumes),
        }
        which = "".join(
            "●" if all(m[i] for m in marks) else "◐" if any(m[i] for m in marks) else "○" for i in range(len(points))
        )
        counts = ", ".join(str(sum(mark)) for mark in marks)
        rows.append([NAMES[kind], counts, which, f"{results[kind]['hv_share']['value']:.0%}"])
    _picture(experiment, points, {kind: several[0] for kind, several in solutions.items()})
    heads = ["scalarisation", f"true points recovered, of {len(points)}, by seed", "which (from L1 = 0 to L2 = 0)"]
    return results, markdown([*heads, "hypervolume, of that of the true front"], rows)


def _picture(experiment: common.Experiment, points: np.ndarray, solutions: dict[str, np.ndarray]) -> None:
    import matplotlib.pyplot as plt

    experiment.out.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", sharex=True, sharey=True)
    for axes, (kind, found), (color, _, _) in zip(panels, solutions.items(), STYLES, strict=False):
        axes.plot(*points.T, "o", mfc="white", mec="black", ms=9, label="points of the true front")
        axes.plot(*found.T, "x", color=color, ms=8, mew=2, label="found, α in steps of 0.05")
        axes.set_title(NAMES[kind])
        axes.set_xlabel("L1")
        axes.legend(frameon=False, loc="lower left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("L2")
    experiment.save(figure)


def bundled(experiment: common.Experiment) -> tuple[dict[str, Any], str]:
    """Part two: PARMs of the bundled world; empty where adapters are only to be trained."""
    ways = {
        "linear, an α per pair": ("pblora", {}),
        "linear, an α per step": ("step", {"alpha_per": "batch"}),
        "smooth Tchebycheff, an α per step": ("tchebycheff", {"scalarization": "tchebycheff"}),
    }
    trained = {
        (way, seed): experiment.adapter(name, seed, **others)
        for way, (name, others) in ways.items()
        for seed in experiment.seeds
    }
    if experiment.quick:
        return {}, ""
    runs = {(way, seed): experiment.run(f"{ways[way][0]}-{seed}", [parm]) for (way, seed), parm in trained.items()}
    sweeps = Sweeps(list(runs.values()), experiment.settings["sweep"]["bootstrap"])
    results, rows = {}, []
    for way in ways:
        several = [runs[way, seed] for seed in experiment.seeds]
        r = {name: sweeps.spread(several, name) for name in METRICS}
        r["front"] = sweeps.spread(several, "front", "size")
        r["spearman"] = {name: sweeps.spread(several, "spearman", name) for name in OBJECTIVES}
        results[way] = r
        rows.append([way, *(shown(r[name]) for name in METRICS), *(shown(r["spearman"][name]) for name in OBJECTIVES)])
    *_, per_step, smooth = ways
    pairs = [(runs[smooth, seed], runs[per_step, seed]) for seed in experiment.seeds]
    results["difference"] = less = {name: sweeps.less(pairs, name) for name in METRICS}
    rows.append(["Tchebycheff less linear, same seed", *(shown(less[name]) for name in METRICS), "", ""])
    heads = ["training", "hypervolume", "mean inner product", "its gain by α", *(f"Spearman {n}" for n in OBJECTIVES)]
    results["scale"] = common.fixed(sweeps.summary)
    return results, markdown(heads, rows)


def main() -> None:
    """Learns, trains, sweeps and writes the page."""
    experiment = common.begin("nonconvex", __doc__)
    world, table = bundled(experiment)
    if experiment.quick:
        return
    toy, toy_table = constructed(experiment)
    scale = world.pop("scale")
    experiment.publish({"constructed": toy, "bundled": world}, toy_table=toy_table, table=table, **scale)


if __name__ == "__main__":
    main()
