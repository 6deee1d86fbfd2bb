"""The preference vectors of a step (Algorithm 1), and a way to draw them that suits many objectives.

With many objectives a pair's labels cancel in Σ_i α_i L_i: some prefer one response, some the other, and what is left
says little about any of them. So α may be drawn among the objectives that *agree* on the pair: one side is chosen with
the probability of its weight, and all weight goes to that side. Where α ~ Dirichlet(p·1), the result is Dirichlet(p·1)
on the objectives of the side. All that have weight then want the same, and the pair teaches every one of them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parm_mlx.preference import sample_dirichlet
from parm_mlx.training.batching import Batch
from parm_mlx.training.config import TrainConfig


def draw_alpha(config: TrainConfig, rng: np.random.Generator, batch: Batch, k: int) -> NDArray[np.float32]:
    """Draws α for a batch as the settings say: (k,) for all pairs, or (B, k)."""
    if config.alpha_per == "batch":
        drawn: NDArray[np.float32] = sample_dirichlet(rng, config.dirichlet, k, 1)[0]
        return drawn
    alpha = sample_dirichlet(rng, config.dirichlet, k, len(batch.pairs))
    if config.alpha_among != "agreeing":
        return alpha
    return among_agreeing(rng, alpha, np.array(batch.preferred), np.array(batch.labelled))


def among_agreeing(
    rng: np.random.Generator, alpha: NDArray[Any], preferred: NDArray[Any], labelled: NDArray[Any]
) -> NDArray[np.float32]:
    """Moves the weight of each α to objectives that agree on its pair; an α without weight on a label stays.

    Args:
        rng: Chooses between the sides, each with the probability of its weight.
        alpha: (B, k).
        preferred: (B, k) 0 or 1, the response that each objective prefers.
        labelled: (B, k), 0 where the objective did not judge.
    """
    weights = np.where(labelled > 0, alpha, 0)
    second = np.where(preferred > 0, weights, 0).sum(axis=1)
    side = rng.random(len(alpha)) * weights.sum(axis=1) < second  # which response the side prefers
    kept = np.where((preferred > 0) == side[:, None], weights, 0)
    mass = kept.sum(axis=1, keepdims=True)
    return np.where(mass > 0, kept / np.where(mass > 0, mass, 1), alpha).astype("float32")
