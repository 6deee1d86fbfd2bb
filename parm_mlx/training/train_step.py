"""One training step: loss, gradients, update; and validation, the same pairs at the same α every time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from numpy.typing import NDArray

from parm_mlx.distributed import Group
from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.training.batching import Batch
from parm_mlx.training.grad_checkpoint import random_state, set_random_state
from parm_mlx.training.loss import means, preference_loss, scalarise, tchebycheff_weights
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer

Item = tuple[Batch | None, int]


@dataclass(frozen=True)
class StepResult:
    """Measurements of a step, before its update.

    Attributes:
        sums: (3, k): for each objective the summed loss, the correct pairs and the labelled pairs.
        grad_norm: Norm of the gradient before clipping.
        tokens: Tokens of both sequences of every pair.
        inputs: Positions that the model read, without padding.
        cells: Positions that the model read, with padding.
    """

    loss: float
    sums: NDArray[np.float32]
    grad_norm: float
    learning_rate: float
    pairs: int
    tokens: int
    inputs: int
    cells: int


class TrainStep:
    """Updates the adapters of a model.

    Args:
        scorer: Scores responses with the model.
        beta: (k,) β_i.
        gamma: γ.
        optimizer: Updates the model's trainable tensors.
        micro_batches: Parts of a batch that are computed one after another; the result is the same.
        group: The processes that share the micro-batches; by default this one alone.
        smoothing: μ of the smooth Tchebycheff scalarisation, which needs one α per step; None is the weighted sum.
        nll_weight: λ.
    """

    def __init__(
        self,
        scorer: ResponseScorer,
        beta: mx.array,
        gamma: float,
        optimizer: Optimizer,
        micro_batches: int = 1,
        group: Group | None = None,
        smoothing: float | None = None,
        nll_weight: float = 0.0,
    ) -> None:
        self.scorer, self.beta, self.gamma, self.optimizer = scorer, beta, gamma, optimizer
        self.smoothing, self.nll_weight, self.group = smoothing, nll_weight, group or Group()
        self.micro_batches = -(-micro_batches // self.group.size) * self.group.size
        self._value_and_grad = nn.value_and_grad(scorer.model, self.loss)

    def __call__(self, step: int, batch: Batch, alpha: mx.array) -> StepResult:
        """Does step ``step`` (from 0) on a batch; α is (k,) or (B, k)."""
        (total, sums, read), grads = self.batch_gradients(batch, alpha)
        rate, norm = self.optimizer.update(step, grads)
        mx.eval(total, sums, norm, self.scorer.model.trainable_parameters(), self.optimizer.adamw.state)
        return StepResult(
            float(total), np.array(sums), float(norm), rate, len(batch.pairs), batch.tokens, *np.array(read).tolist()
        )

    def batch_gradients(self, batch: Batch, alpha: mx.array) -> tuple[tuple[mx.array, mx.array, mx.array], Any]:
        """Computes loss and gradient of a batch, in micro-batches and on all processes; α is (k,) or (B, k).

        Returns:
            The total loss, (3, k) sums as :meth:`loss` gives them, (2,) the positions that were read without and with
            padding; and the gradient of the total loss in the trainable tensors.
        """
        count = batch.labelled.sum(axis=0)
        own = [
            (micro_batch, alpha if alpha.ndim == 1 else alpha[pairs])
            for micro_batch, pairs in batch.split(self.micro_batches)[self.group.rank :: self.group.size]
        ]
        weights = self._objective_weights([micro_batch for micro_batch, _ in own], alpha, count)
        computed = (self.micro_batch_gradients(pairs, own_alpha, count, weights) for pairs, own_alpha in own)
        (total, sums, read), grads = self.group.sum(reduce(_add, computed) if own else self._nothing())
        if self.smoothing is not None:
            total = scalarise(means(sums[0], count), alpha, count > 0, self.smoothing)
        return (total, sums, read), grads

    def micro_batch_gradients(
        self, micro_batch: Batch, alpha: mx.array, count: mx.array | None = None, weights: mx.array | None = None
    ) -> Any:
        """Computes them of one micro-batch in this process; returns the same, evaluated."""
        packed = self.scorer.pack(micro_batch)
        with self.scorer.conditioned(alpha):
            (total, sums), grads = self._value_and_grad(micro_batch, alpha, count, weights)
        result = (total, sums, mx.array([packed.tokens, packed.cells])), grads
        mx.eval(result)
        return result

    def loss(
        self, batch: Batch, alpha: mx.array, count: mx.array | None = None, weights: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Returns the total loss, and (3, k) summed loss, correct pairs and labelled pairs per objective.

        Args:
            batch: B pairs.
            alpha: (k,) or (B, k).
            count: (k,) labelled pairs of the whole batch, if this is a micro-batch.
            weights: (k,) the weights of the losses in the total, if the whole batch decides them.
        """
        logprobs = self.scorer(batch, alpha)
        count = batch.labelled.sum(axis=0) if count is None else count
        linear = alpha if weights is None else weights
        anchor = (self.nll_weight, batch.response_tokens) if self.nll_weight else ()
        loss = preference_loss(logprobs, batch.preferred, batch.labelled, linear, self.beta, self.gamma, count, *anchor)
        total = loss.total
        if self.smoothing is not None and weights is None:
            total = scalarise(loss.per_objective, alpha, count > 0, self.smoothing)
        return total, mx.stack([loss.per_objective * count, loss.correct, loss.labelled])

    def _objective_weights(self, own: Sequence[Batch], alpha: mx.array, count: mx.array) -> mx.array | None:
        """The weights of the objectives in micro-batches; None where they are α, or where there is one micro-batch."""
        if self.smoothing is None or self.micro_batches == 1:
            return None
        # The smooth Tchebycheff loss is not a sum over micro-batches. Its gradient is, with weights that the losses of
        # the whole batch decide: these are measured first, with the dropout of the pass that follows.
        key = mx.array(random_state())
        losses = mx.zeros(self.beta.size)
        for micro_batch in own:
            losses = losses + self.loss(micro_batch, alpha, count)[1][0]
            mx.eval(losses)
        set_random_state(key)
        return tchebycheff_weights(means(self.group.sum(losses), count), alpha, self.smoothing, count > 0)

    def _nothing(self) -> Any:
        """The result of a process that got no pairs."""
        grads = tree_map(mx.zeros_like, self.scorer.model.trainable_parameters())
        return (mx.array(0.0), mx.zeros((3, self.beta.size)), mx.zeros(2, mx.int32)), grads


def _add(a: Any, b: Any) -> Any:
    total = tree_map(mx.add, a, b)
    mx.eval(total)
    return total


@dataclass(frozen=True)
class GridPoint:
    """Loss and accuracies of the PARM at one preference vector.

    Attributes:
        alpha: The k weights.
        loss: Σ_i α_i · loss of objective i, or the smooth Tchebycheff loss where that is trained.
        objective_loss: Mean loss of each objective, not weighted by α.
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
        stopped: Asked between batches; if it returns True, validation ends and returns None.
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
    return [_grid_point(alpha, objectives, train_step.smoothing, at) for alpha, at in zip(grid, sums, strict=True)]


def _share(batch: Batch, group: Group) -> Batch | None:
    """The pairs of a batch that this process measures; None where there are too few for all."""
    if group.size == 1:
        return batch
    shares = batch.split(group.size)
    return shares[group.rank][0] if group.rank < len(shares) else None


def _grid_point(
    alpha: Alpha, objectives: Sequence[str], smoothing: float | None, sums: NDArray[np.float64]
) -> GridPoint:
    objective_loss, accuracy = by_objective(objectives, sums)
    losses = mx.array(list(objective_loss.values()))
    loss = scalarise(losses, mx.array(alpha), mx.array(sums[2] > 0), smoothing)
    return GridPoint(alpha, float(loss), objective_loss, accuracy)


def by_objective(objectives: Sequence[str], sums: NDArray[np.float64]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the mean loss and the accuracy of each objective, from sums as :meth:`TrainStep.loss` gives them."""
    losses, correct, labelled = sums
    count = np.where(labelled > 0, labelled, 1)
    loss, accuracy = (dict(zip(objectives, (values / count).tolist(), strict=True)) for values in (losses, correct))
    return loss, accuracy
