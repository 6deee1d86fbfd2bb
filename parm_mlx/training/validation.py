"""Validation: the same pairs at the same preference vectors, every time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.distributed import Group
from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.training.batching import Batch
from parm_mlx.training.loss import smooth_tchebycheff
from parm_mlx.training.train_step import TrainStep

Values = NDArray[np.float64]
Item = tuple[Batch | None, int]


@dataclass(frozen=True)
class GridPoint:
    """Loss and accuracies of the PARM at one preference vector.

    Attributes:
        alpha: The k weights.
        loss: Σ_i α_i · loss of objective i, or the smooth Tchebycheff loss where that is trained.
        objective_loss: Loss of each objective, not weighted by α.
        accuracy: For each objective, the share of pairs whose preferred response is the more likely one.
    """

    alpha: Alpha
    loss: float
    objective_loss: dict[str, float]
    accuracy: dict[str, float]


def validation_grid(k: int) -> list[Alpha]:
    """The α of every validation: 5 points for two objectives, 6 for three, the corners for more."""
    return simplex_grid(k, {1: 1.0, 2: 0.25, 3: 0.5}.get(k, 1.0))


def validate(
    train_step: TrainStep,
    batches: Sequence[Batch],
    objectives: Sequence[str],
    progress: Callable[[Sequence[Item]], Iterable[Item]] = iter,
    stopped: Callable[[], bool] = lambda: False,
) -> list[GridPoint] | None:
    """Measures the objective on every batch at every grid point, without dropout.

    Args:
        train_step: Holds the model and the objective; the model is in training mode again afterwards.
        batches: The validation batches.
        objectives: The names of the k objectives.
        progress: Passes on the (batch, grid point) items, and may show how far it is.
        stopped: Asked between batches; validation ends without a result when it returns True.
    """
    k, group, model = train_step.beta.size, train_step.group, train_step.scorer.model
    grid = validation_grid(k)
    sums = np.zeros((len(grid), 3, k))
    shares = [_share(batch, group) for batch in batches]
    model.eval()
    try:
        for share, point in progress([(share, point) for share in shares for point in range(len(grid))]):
            if stopped():
                return None
            own = train_step.loss(share, mx.array(grid[point]))[1] if share else mx.zeros((3, k))
            sums[point] += np.array(group.sum(own))
    finally:
        model.train()
    return [_grid_point(alpha, objectives, train_step.smoothing, *at) for alpha, at in zip(grid, sums, strict=True)]


def _share(batch: Batch, group: Group) -> Batch | None:
    """The pairs of a batch that this process measures; None where there are too few for all."""
    if group.size == 1:
        return batch
    shares = batch.split(group.size)
    return shares[group.rank][0] if group.rank < len(shares) else None


def _grid_point(
    alpha: Alpha, objectives: Sequence[str], smoothing: float | None, losses: Values, correct: Values, labelled: Values
) -> GridPoint:
    count = np.where(labelled > 0, labelled, 1)
    means = losses / count
    loss = float(np.dot(alpha, means))
    if smoothing is not None:
        judged = mx.array(labelled > 0)
        loss = float(smooth_tchebycheff(mx.array(means.astype(np.float32)), mx.array(alpha), smoothing, judged))
    by_name = (dict(zip(objectives, values.tolist(), strict=True)) for values in (means, correct / count))
    return GridPoint(alpha, loss, *by_name)
