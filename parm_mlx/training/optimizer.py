"""The optimizer: AdamW with linear warm-up, cosine decay and a clipped gradient norm.

Step for step what PyTorch's AdamW does with the cosine schedule of transformers.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map_with_path

from parm_mlx.errors import CheckpointError

MAX_GRAD_NORM = 1.0


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Learning rate of a step: linear from 0 to the peak, then half a cosine down to 0.

    Args:
        step: 0 for the first update, whose rate is 0 when there is a warm-up.
        peak: Highest rate.
        warmup: Steps of the linear part.
        steps: Steps in all.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """AdamW (0.9, 0.999, ε = 1e-8, bias-corrected) on the trainable tensors of a model, on :func:`learning_rate`."""

    def __init__(self, model: nn.Module, *, peak: float, warmup: int, steps: int, weight_decay: float) -> None:
        self.model = model
        self.schedule = {"peak": peak, "warmup": warmup, "steps": steps}
        self.adamw = optim.AdamW(peak, betas=[0.9, 0.999], eps=1e-8, weight_decay=weight_decay, bias_correction=True)
        self.adamw.init(model.trainable_parameters())

    @property
    def state(self) -> Any:
        """The moments and the step count."""
        return self.adamw.state

    def tensors(self) -> dict[str, mx.array]:
        """The state by name, as a checkpoint stores it."""
        return dict(tree_flatten(self.adamw.state))

    def restore(self, tensors: dict[str, mx.array]) -> None:
        """Takes the state that :meth:`tensors` gave; raises CheckpointError where it is of another model."""
        expected = {name: tensor.shape for name, tensor in self.tensors().items()}
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            raise CheckpointError("the optimizer's state does not fit the model")
        self.adamw.state = tree_map_with_path(lambda name, _: tensors[name], self.adamw.state)

    def update(self, step: int, grads: Any) -> tuple[float, mx.array]:
        """Updates the model with gradients of step ``step`` (from 0).

        Returns:
            The learning rate and the gradient norm before clipping; the arrays are not evaluated yet.
        """
        clipped, norm = optim.clip_grad_norm(grads, MAX_GRAD_NORM)
        rate = learning_rate(step, **self.schedule)  # type: ignore[arg-type]
        self.adamw.learning_rate = rate
        self.adamw.update(self.model, clipped)
        return rate, norm
