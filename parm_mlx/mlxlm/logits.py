"""Scaling a plain model's logits by its final norm, so that any mlx-lm tool computes them scaled."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import ModelError

CAP = "final_logit_softcapping"
TOKENS = 8  # that the scaled logits are checked on
TOLERANCE = {mx.float32: 1e-3, mx.bfloat16: 3e-2, mx.float16: 1e-2}  # of the largest logit


def scale_logits(model: nn.Module, factor: float) -> None:
    """Multiplies all logits of a model by a factor, in place, by changing the weights of its final norm.

    The output layer is linear in what the final norm gives, tied to the embedding or not. Some norms multiply by
    1 + weight. Which norm it is and which kind is found by computing logits, and so the result is checked as well.

    Raises:
        ModelError: The logits of this model do not scale with a norm's weights, for instance as they are capped.
    """
    if any(getattr(module, CAP, None) for module in model.modules()):
        raise ModelError(f"the logits of this model are capped ({CAP}), so they cannot be scaled")
    ids = mx.arange(TOKENS)[None]
    wanted = factor * model(ids).astype(mx.float32)
    head: Any = model.get("lm_head") or {}
    if "bias" in head:
        head.bias = factor * head.bias
    for norm in _norms(model):
        before = dict(norm.parameters())
        for weight in (factor * norm.weight, factor * (1 + norm.weight) - 1):
            norm.weight = weight.astype(before["weight"].dtype)
            if "bias" in norm:
                norm.bias = factor * before["bias"]
            found = model(ids)
            error = mx.abs(found.astype(mx.float32) - wanted).max()
            if error <= TOLERANCE.get(found.dtype, 1e-3) * mx.abs(wanted).max():
                return
            norm.update(before)
    raise ModelError("the logits of this model do not scale with the weights of its final norm")


def _norms(model: nn.Module) -> Iterator[Any]:
    """The norms outside of the model's blocks."""
    inside = {id(module) for block in model.layers for module in block.modules()}
    norms = [module for module in model.modules() if "Norm" in type(module).__name__ and "weight" in module]
    yield from (module for module in norms if id(module) not in inside)
