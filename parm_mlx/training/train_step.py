"""One training step: loss, gradients, update."""

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
    """What a step measured, before its update.

    Attributes:
        loss: The total loss.
        sums: (3, k): for each objective the summed loss, the correct pairs and the labelled pairs.
        grad_norm: Norm of the gradient before clipping.
        learning_rate: Rate of the update.
        pairs: Pairs of the batch.
        tokens: Tokens of both sequences of its pairs.
        inputs: Positions that the model read, padding left out.
        cells: Positions that the model read.
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
        """Whether loss and gradient are numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.grad_norm))


class Learner:
    """Updates the adapters of a model.

    Args:
        scorer: Scores responses with the model.
        beta: (k,) β_i.
        gamma: γ.
        optimizer: Updates the model's trainable tensors.
        parts: Parts that the batch of a step is computed in, one after another; the result is the same, and the memory
            is that of one part.
        group: The processes that share the parts out among them, this one alone by default.
        smoothing: μ of the smooth Tchebycheff scalarisation, which needs one α per step; None is the weighted sum.
    """

    def __init__(
        self,
        scorer: ResponseScorer,
        beta: mx.array,
        gamma: float,
        optimizer: Optimizer,
        parts: int = 1,
        group: Group | None = None,
        smoothing: float | None = None,
    ) -> None:
        self.scorer, self.beta, self.gamma, self.optimizer = scorer, beta, gamma, optimizer
        self.smoothing = smoothing
        self.group = group or Group()
        self.parts = -(-parts // self.group.size) * self.group.size
        self._value_and_grad = nn.value_and_grad(scorer.model, self.loss)

    def loss(
        self, batch: Batch, alpha: mx.array, count: mx.array | None = None, weights: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """The total loss, and (3, k) summed loss, correct pairs and labelled pairs per objective.

        Args:
            batch: B pairs.
            alpha: (k,) or (B, k).
            count: (k,) labelled pairs of the whole batch, if this is a part of one.
            weights: (k,) what the losses weigh in the total, if that is not to be computed from this batch.
        """
        logprobs = self.scorer(batch, alpha)
        count = batch.labelled.sum(axis=0) if count is None else count
        linear = alpha if weights is None else weights
        loss = preference_loss(logprobs, batch.preferred, batch.labelled, linear, self.beta, self.gamma, count)
        total = loss.total
        if self.smoothing is not None and weights is None:
            total = smooth_tchebycheff(loss.per_objective, alpha, self.smoothing, count > 0)
        return total, mx.stack([loss.per_objective * count, loss.correct, loss.labelled])

    def share(self, batch: Batch) -> Batch | None:
        """The pairs of a validation batch that this process measures; None where there are too few for all."""
        if self.group.size == 1:
            return batch
        parts = batch.parts(self.group.size)
        return parts[self.group.rank][0] if self.group.rank < len(parts) else None

    def measure(self, share: Batch | None, alpha: mx.array) -> mx.array:
        """(3, k) summed loss, correct pairs and labelled pairs of the batch that :meth:`share` took apart."""
        sums = self.loss(share, alpha)[1] if share else mx.zeros((3, self.beta.size))
        total: mx.array = self.group.sum(sums)
        return total

    def value_and_grad(self, batch: Batch, alpha: mx.array) -> tuple[tuple[mx.array, mx.array], Any]:
        """What :meth:`loss` returns, and the gradient of the total loss in the trainable tensors.

        Args:
            batch: B pairs.
            alpha: (k,) or (B, k).
        """
        parts, count = self._parts(batch), batch.labelled.sum(axis=0)
        weights = self._weights(parts, alpha, count)
        (total, sums), grads = self.group.sum(self._accumulate(parts, alpha, count, weights))
        return (self._total(total, sums, alpha, count), sums), grads

    def _parts(self, batch: Batch) -> list[tuple[Batch, slice]]:
        """The parts that this process computes; each process takes every ``size``-th."""
        return batch.parts(self.parts)[self.group.rank :: self.group.size]

    def _weights(self, parts: list[tuple[Batch, slice]], alpha: mx.array, count: mx.array) -> mx.array | None:
        """What the objectives weigh in the parts of a batch; None where that is α, or there is one part only.

        The smooth Tchebycheff loss of a batch is no sum over its parts. Its gradient is, with weights that the losses
        of the whole batch decide: these are measured first, with the dropout of the pass that follows.
        """
        if self.smoothing is None or self.parts == 1:
            return None
        key = mx.array(random_state())
        losses = mx.zeros(self.beta.size)
        for part, _ in parts:
            losses = losses + self.loss(part, alpha, count)[1][0]
            mx.eval(losses)
        set_random_state(key)
        return tchebycheff_weights(_means(self.group.sum(losses), count), alpha, self.smoothing, count > 0)

    def _total(self, total: mx.array, sums: mx.array, alpha: mx.array, count: mx.array) -> mx.array:
        """The total loss of a batch, from the added totals and sums of its parts."""
        if self.smoothing is None:
            return total
        return smooth_tchebycheff(_means(sums[0], count), alpha, self.smoothing, count > 0)

    def _accumulate(
        self, parts: list[tuple[Batch, slice]], alpha: mx.array, count: mx.array, weights: mx.array | None
    ) -> Any:
        if not parts:
            grads = tree_map(mx.zeros_like, self.scorer.model.trainable_parameters())
            return (mx.array(0.0), mx.zeros((3, self.beta.size))), grads
        own = ((part, alpha if alpha.ndim == 1 else alpha[s]) for part, s in parts)
        return reduce(_add, (self._part(part, own_alpha, count, weights) for part, own_alpha in own))

    def _part(self, part: Batch, alpha: mx.array, count: mx.array, weights: mx.array | None) -> Any:
        with self.scorer.conditioned(alpha):
            result = self._value_and_grad(part, alpha, count, weights)
        mx.eval(result)
        return result

    def step(self, step: int, batch: Batch, alpha: mx.array) -> StepResult:
        """Does step ``step`` (from 0) on a batch; α is (k,) or (B, k)."""
        parts, count = self._parts(batch), batch.labelled.sum(axis=0)
        own = self._accumulate(parts, alpha, count, self._weights(parts, alpha, count))
        layouts = [self.scorer.layout(part) for part, _ in parts]
        read = mx.array([sum(layout.tokens for layout in layouts), sum(layout.cells for layout in layouts)])
        ((total, sums), grads), read = self.group.sum((own, read))
        inputs, cells = np.array(read).tolist()
        total = self._total(total, sums, alpha, count)
        rate, norm = self.optimizer.update(step, grads)
        mx.eval(total, sums, norm, self.scorer.model.trainable_parameters(), self.optimizer.state)
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


def _add(a: Any, b: Any) -> Any:
    total = tree_map(mx.add, a, b)
    mx.eval(total)
    return total


def _means(sums: mx.array, count: mx.array) -> mx.array:
    """(k,) the mean losses; 0 where no pair is labelled."""
    return sums / mx.where(count > 0, count, 1)
