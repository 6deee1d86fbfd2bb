"""Validation: the same pairs at the same preference vectors, every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.training.batches import Batch
from parm_mlx.training.logprobs import ResponseScorer
from parm_mlx.training.loss import preference_loss

Values = NDArray[np.float64]


@dataclass(frozen=True)
class GridPoint:
    """How the PARM does at one preference vector.

    Attributes:
        alpha: The k weights.
        loss: Σ_i α_i · loss of objective i.
        objective_loss: Loss of each objective.
        accuracy: For each objective, the share of pairs whose preferred response is the more likely one.
    """

    alpha: Alpha
    loss: float
    objective_loss: tuple[float, ...]
    accuracy: tuple[float, ...]


def validation_grid(k: int) -> list[Alpha]:
    """The α of every validation: 5 points for two objectives, 6 for three, the corners for more."""
    return simplex_grid(k, {1: 1.0, 2: 0.25, 3: 0.5}.get(k, 1.0))


def validate(
    scorer: ResponseScorer,
    batches: Sequence[Batch],
    beta: mx.array,
    gamma: float,
    stopped: Callable[[], bool] = lambda: False,
) -> list[GridPoint] | None:
    """Measures the objective on every batch at every grid point, without dropout.

    Args:
        scorer: Scores responses; its model is in training mode again afterwards.
        batches: The validation batches.
        beta: (k,) β_i.
        gamma: γ.
        stopped: Asked between batches; validation ends without a result when it returns True.
    """
    k = beta.size
    grid = validation_grid(k)
    sums = np.zeros((len(grid), 3, k))
    scorer.model.eval()
    try:
        for batch in batches:
            for point, alpha in enumerate(grid):
                if stopped():
                    return None
                logprobs = scorer(batch, mx.array(alpha))
                loss = preference_loss(logprobs, batch.preferred, batch.labelled, mx.array(alpha), beta, gamma)
                sums[point] += np.array(mx.stack([loss.per_objective * loss.labelled, loss.correct, loss.labelled]))
    finally:
        scorer.model.train()
    return [_grid_point(alpha, *sums[point]) for point, alpha in enumerate(grid)]


def _grid_point(alpha: Alpha, losses: Values, correct: Values, labelled: Values) -> GridPoint:
    count = np.maximum(labelled, 1)
    objective_loss = losses / count
    return GridPoint(
        alpha=alpha,
        loss=float(np.dot(alpha, objective_loss)),
        objective_loss=tuple(objective_loss.tolist()),
        accuracy=tuple((correct / count).tolist()),
    )
