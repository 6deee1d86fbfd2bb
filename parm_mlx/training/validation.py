"""Validation: the same pairs at the same preference vectors, every time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.training.batching import Batch
from parm_mlx.training.loss import smooth_tchebycheff
from parm_mlx.training.train_step import Learner

Values = NDArray[np.float64]
Item = tuple[Batch | None, int]
Track = Callable[[Sequence[Item]], Iterable[Item]]


@dataclass(frozen=True)
class GridPoint:
    """How the PARM does at one preference vector.

    Attributes:
        alpha: The k weights.
        loss: Σ_i α_i · loss of objective i, or the smooth Tchebycheff loss where that is trained.
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
    learner: Learner, batches: Sequence[Batch], track: Track = iter, stopped: Callable[[], bool] = lambda: False
) -> list[GridPoint] | None:
    """Measures the objective on every batch at every grid point, without dropout.

    Args:
        learner: Holds the model and the objective; the model is in training mode again afterwards.
        batches: The validation batches.
        track: Passes on the (batch, grid point) pairs, and may show how far it is.
        stopped: Asked between batches; validation ends without a result when it returns True.
    """
    k = learner.beta.size
    grid = validation_grid(k)
    sums = np.zeros((len(grid), 3, k))
    model = learner.scorer.model
    model.eval()
    try:
        shares = [learner.share(batch) for batch in batches]
        for share, point in track([(share, point) for share in shares for point in range(len(grid))]):
            if stopped():
                return None
            sums[point] += np.array(learner.measure(share, mx.array(grid[point])))
    finally:
        model.train()
    return [_grid_point(alpha, learner.smoothing, *sums[point]) for point, alpha in enumerate(grid)]


def _grid_point(alpha: Alpha, smoothing: float | None, losses: Values, correct: Values, labelled: Values) -> GridPoint:
    count = np.where(labelled > 0, labelled, 1)
    objective_loss = losses / count
    loss = float(np.dot(alpha, objective_loss))
    if smoothing is not None:
        means, judged = mx.array(objective_loss.astype(np.float32)), mx.array(labelled > 0)
        loss = float(smooth_tchebycheff(means, mx.array(alpha), smoothing, judged))
    return GridPoint(
        alpha=alpha,
        loss=loss,
        objective_loss=tuple(objective_loss.tolist()),
        accuracy=tuple((correct / count).tolist()),
    )
