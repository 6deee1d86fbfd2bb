"""Scaling a plain model's logits by its final norm, so that any mlx-lm tool computes them scaled."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import ModelError

CAP = "final_logit_softcapping"
TOKENS = 8  # that the scaled logits are checked on
CLEAR = 4.0  # a factor by which both kinds of norm are told apart, also in 16 bits
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
    plain = model(ids).astype(mx.float32)
    head: Any = model.get("lm_head") or {}
    bias = head.get("bias")
    for norm in _norms(model):
        before = dict(norm.parameters())
        for is_offset in (False, True):

            def scale(by: float, norm: Any = norm, before: Any = before, is_offset: bool = is_offset) -> None:
                weight = before["weight"]
                scaled = by * (1 + weight) - 1 if is_offset else by * weight
                norm.weight = scaled.astype(weight.dtype)
                if "bias" in before:
                    norm.bias = by * before["bias"]
                if bias is not None:
                    head.bias = by * bias

            scale(CLEAR)
            found, wanted = model(ids), CLEAR * plain
            error = mx.abs(found.astype(mx.float32) - wanted).max()
            if error <= TOLERANCE.get(found.dtype, 1e-3) * mx.abs(wanted).max():
                scale(factor)
                return
            scale(1.0)
            norm.update(before)
    raise ModelError("the logits of this model do not scale with the weights of its final norm")


def _norms(model: nn.Module) -> Iterator[Any]:
    """The norms outside of the model's blocks."""
    inside = {id(module) for block in model.layers for module in block.modules()}
    norms = [module for module in model.modules() if "Norm" in type(module).__name__ and "weight" in module]
    yield from (module for module in norms if id(module) not in inside)
