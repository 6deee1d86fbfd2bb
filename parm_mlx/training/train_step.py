"""One training step: loss, gradients, update."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from numpy.typing import NDArray

from parm_mlx.distributed import Group
from parm_mlx.training.batching import Batch
from parm_mlx.training.grad_checkpoint import random_state, set_random_state
from parm_mlx.training.loss import preference_loss, smooth_tchebycheff, tchebycheff_weights
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer


@dataclass(frozen=True)
class StepResult:
    """Measurements of a step, before its update.

    Attributes:
        loss: The total loss.
        sums: (3, k): for each objective the summed loss, the correct pairs and the labelled pairs.
        grad_norm: Norm of the gradient before clipping.
        learning_rate: Rate of the update.
        pairs: Pairs of the batch.
        tokens: Tokens of both sequences of its pairs.
        inputs: Positions that the model read, without padding.
        cells: Positions that the model read, padding included.
    """

    loss: float
    sums: NDArray[np.float32]
    grad_norm: float
    learning_rate: float
    pairs: int
    tokens: int
    inputs: int
    cells: int

    @property
    def finite(self) -> bool:
        """True where neither loss nor gradient norm is NaN or infinite."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))


class TrainStep:
    """Updates the adapters of a model.

    Args:
        scorer: Scores responses with the model.
        beta: (k,) β_i.
        gamma: γ.
        optimizer: Updates the model's trainable tensors.
        micro_batches: The batch of a step is computed in so many micro-batches, one after another, in the memory of
            one; the result is the same.
        group: The processes that share the micro-batches out among them, this one alone by default.
        smoothing: μ of the smooth Tchebycheff scalarisation, which needs one α per step; None is the weighted sum.
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
    ) -> None:
        self.scorer, self.beta, self.gamma, self.optimizer = scorer, beta, gamma, optimizer
        self.smoothing = smoothing
        self.group = group or Group()
        self.micro_batches = -(-micro_batches // self.group.size) * self.group.size
        self._value_and_grad = nn.value_and_grad(scorer.model, self.loss)

    def __call__(self, step: int, batch: Batch, alpha: mx.array) -> StepResult:
        """Does step ``step`` (from 0) on a batch; α is (k,) or (B, k)."""
        (total, sums, read), grads = self.value_and_grad(batch, alpha)
        rate, norm = self.optimizer.update(step, grads)
        mx.eval(total, sums, norm, self.scorer.model.trainable_parameters(), self.optimizer.state)
        inputs, cells = np.array(read).tolist()
        return StepResult(
            loss=float(total),
            sums=np.array(sums),
            grad_norm=float(norm),
            learning_rate=rate,
            pairs=len(batch.pairs),
            tokens=batch.tokens,
            inputs=inputs,
            cells=cells,
        )

    def value_and_grad(self, batch: Batch, alpha: mx.array) -> tuple[tuple[mx.array, mx.array, mx.array], Any]:
        """Computes loss and gradients of a batch, in micro-batches and on all processes.

        Args:
            batch: B pairs.
            alpha: (k,) or (B, k).

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
        computed = (self.compute(micro_batch, own_alpha, count, weights) for micro_batch, own_alpha in own)
        (total, sums, read), grads = self.group.sum(reduce(_add, computed) if own else self._nothing())
        if self.smoothing is not None:
            total = smooth_tchebycheff(_means(sums[0], count), alpha, self.smoothing, count > 0)
        return (total, sums, read), grads

    def compute(
        self, micro_batch: Batch, alpha: mx.array, count: mx.array | None = None, weights: mx.array | None = None
    ) -> Any:
        """Computes one micro-batch in this process: what :meth:`value_and_grad` returns, evaluated."""
        packed = self.scorer.pack(micro_batch)
        with self.scorer.conditioned(alpha):
            (total, sums), grads = self._value_and_grad(micro_batch, alpha, count, weights)
        result = (total, sums, mx.array([packed.tokens, packed.cells])), grads
        mx.eval(result)
        return result

    def loss(
        self, batch: Batch, alpha: mx.array, count: mx.array | None = None, weights: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """The total loss, and (3, k) summed loss, correct pairs and labelled pairs per objective.

        Args:
            batch: B pairs.
            alpha: (k,) or (B, k).
            count: (k,) labelled pairs of the whole batch, if this is a micro-batch.
            weights: (k,) the weights of the losses in the total, if they are not to be computed from this batch.
        """
        logprobs = self.scorer(batch, alpha)
        count = batch.labelled.sum(axis=0) if count is None else count
        linear = alpha if weights is None else weights
        loss = preference_loss(logprobs, batch.preferred, batch.labelled, linear, self.beta, self.gamma, count)
        total = loss.total
        if self.smoothing is not None and weights is None:
            total = smooth_tchebycheff(loss.per_objective, alpha, self.smoothing, count > 0)
        return total, mx.stack([loss.per_objective * count, loss.correct, loss.labelled])

    def _objective_weights(self, own: Sequence[Batch], alpha: mx.array, count: mx.array) -> mx.array | None:
        """The weights of the objectives in micro-batches; None where they are α, or where there is one micro-batch.

        The smooth Tchebycheff loss of a batch is not a sum over micro-batches. Its gradient is, with weights that the
        losses of the whole batch decide: these are measured first, with the dropout of the pass that follows.
        """
        if self.smoothing is None or self.micro_batches == 1:
            return None
        key = mx.array(random_state())
        losses = mx.zeros(self.beta.size)
        for micro_batch in own:
            losses = losses + self.loss(micro_batch, alpha, count)[1][0]
            mx.eval(losses)
        set_random_state(key)
        return tchebycheff_weights(_means(self.group.sum(losses), count), alpha, self.smoothing, count > 0)

    def _nothing(self) -> Any:
        """The result of a process that got no pairs."""
        grads = tree_map(mx.zeros_like, self.scorer.model.trainable_parameters())
        return (mx.array(0.0), mx.zeros((3, self.beta.size)), mx.zeros(2, mx.int32)), grads


def _add(a: Any, b: Any) -> Any:
    total = tree_map(mx.add, a, b)
    mx.eval(total)
    return total


def _means(sums: mx.array, count: mx.array) -> mx.array:
    """(k,) the mean losses; 0 where no pair is labelled."""
    return sums / mx.where(count > 0, count, 1)
