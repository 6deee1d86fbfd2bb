"""AdamW with linear warm-up, cosine decay and a clipped gradient norm, as PyTorch with transformers' schedule.

W2, the part of the core that α reaches, may have a learning rate of its own: W1 learns faster and moves all α alike.
The rows of W2 of objectives that are added to a trained adapter learn faster still. Such a row begins near the mean of
the others, so much of what A and B learn for its objective, they do for the others too, until the row has left their
span.
"""

import math
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map_with_path

from parm_mlx.errors import CheckpointError

MAX_GRAD_NORM = 1.0
ADDED_RATIO = 5.0  # of the learning rate of W2, for rows of objectives that are added


def auto_learning_rate(width: int) -> float:
    """Returns a highest learning rate for a backbone of this hidden size: 5e-4 · (4096 / width)^0.8.

    The paper's 5e-4 is for 7B models. Small backbones hardly learn with it: an update of an adapter moves their outputs
    less, as the sums over their width are of fewer terms.
    """
    return float(f"{5e-4 * (4096 / width) ** 0.8:.2g}")


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Returns the rate of a step, from 0: linear up to the peak in the warm-up, then half a cosine down to 0."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """AdamW (0.9, 0.999, ε = 1e-8, bias-corrected) on the trainable tensors of a model, on :func:`learning_rate`.

    ``peak`` is the highest learning rate, ``w2_peak`` that of every W2, by default the same. The last ``added`` rows of
    W2 have ADDED_RATIO times that of the others.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        peak: float,
        warmup: int,
        steps: int,
        weight_decay: float,
        w2_peak: float | None = None,
        added: int = 0,
    ) -> None:
        self.model = model
        self.w2_ratio, self.added = 1.0 if w2_peak is None else w2_peak / peak, added
        self.rate = partial(learning_rate, peak=peak, warmup=warmup, steps=steps)
        self.adamw = optim.AdamW(peak, betas=[0.9, 0.999], eps=1e-8, weight_decay=weight_decay, bias_correction=True)
        self.adamw.init(model.trainable_parameters())

    def tensors(self) -> dict[str, mx.array]:
        """Returns the state by name."""
        return dict(tree_flatten(self.adamw.state))

    def restore(self, tensors: dict[str, mx.array]) -> None:
        """Takes the state of :meth:`tensors`; raises CheckpointError if it is of another model."""
        expected = {name: tensor.shape for name, tensor in self.tensors().items()}
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            raise CheckpointError("the optimizer's state does not fit the model")
        self.adamw.state = tree_map_with_path(lambda name, _: tensors[name], self.adamw.state)

    def update(self, step: int, grads: Any) -> tuple[float, mx.array]:
        """Updates the model, lazily, and returns the learning rate and the gradient norm before clipping."""
        clipped, norm = optim.clip_grad_norm(grads, MAX_GRAD_NORM)
        self.adamw.learning_rate = rate = self.rate(step)
        before = self.model.trainable_parameters()
        after = self.adamw.apply_gradients(clipped, before)
        if self.w2_ratio != 1 or self.added:
            after = tree_map_with_path(self._faster_w2, before, after)
        self.model.update(after)
        return rate, norm

    def _faster_w2(self, name: str, before: mx.array, after: mx.array) -> mx.array:
        """The tensor after its update; steps of AdamW, weight decay included, are proportional to the learning rate."""
        if not name.endswith(".w2"):
            return after
        ratio = mx.full((before.shape[0], *[1] * (before.ndim - 1)), self.w2_ratio)
        if self.added:
            ratio[-self.added :] *= ADDED_RATIO
        return before + ratio * (after - before)
