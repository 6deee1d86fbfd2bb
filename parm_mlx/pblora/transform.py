"""Adapters as something else: fused into a plain model, with more objectives, or another kind of the same size."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from parm_mlx.errors import AdapterError
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.pblora.config import Kind, PBLoRAConfig
from parm_mlx.pblora.layer import PBLoRALinear, tensor_shapes
from parm_mlx.preference import Alpha


def fuse_model(model: nn.Module, alpha: Alpha, dequantize: bool = False, share: float = 1.0) -> None:
    """Replaces every adapted layer by the plain layer W + share · ΔW(α), in place; see :meth:`PBLoRALinear.fuse`."""
    weights = mx.array(alpha, dtype=mx.float32)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, PBLoRALinear)]
    model.update_modules(tree_unflatten([(name, layer.fuse(weights, dequantize, share)) for name, layer in layers]))


def extend_objectives(
    config: PBLoRAConfig, tensors: Mapping[str, mx.array], names: Sequence[str]
) -> tuple[PBLoRAConfig, Tensors]:
    """Adds objectives after those of an adapter; for α without weight on them it is the same adapter.

    A new objective i gets a row W2_i in every layer, the mean of the rows that are there. With all weight on it, the
    adapter does what it did with equal weights: a start for training, where a zero row would lack the part that depends
    on α. A plain LoRA keeps its tensors. The β_i go if there are new objectives.

    Raises:
        AdapterError: A name cannot be used, or it is an SVD-LoRA: its rank is tied to the number of objectives.
    """
    if not names:
        return config, dict(tensors)
    if config.kind == "svd-lora":
        raise AdapterError(
            f"an svd-lora for {', '.join(config.objectives)} cannot get more objectives: they set its rank"
        )

    def extended(w2: mx.array) -> mx.array:
        return mx.concatenate([w2, mx.repeat(w2.mean(axis=0, keepdims=True), len(names), axis=0)])

    more = replace(config, objectives=(*config.objectives, *names), objective_betas=None)
    return more, {name: extended(tensor) if name.endswith(".w2") else tensor for name, tensor in tensors.items()}


def trainable_numbers(config: PBLoRAConfig, linears: Sequence[nn.Module]) -> int:
    """Counts the numbers that an adapter on these layers trains."""
    return sum(prod(shape) for linear in linears for shape in tensor_shapes(linear, config).values())


def matched(config: PBLoRAConfig, kind: Kind, lora_alpha: float, linears: Sequence[nn.Module]) -> PBLoRAConfig:
    """Returns an adapter of another kind with nearly as many trainable numbers, for a fair comparison.

    Its rank is r1 + r2, unless the cores, of the PBLoRA adapter r1² + k · r2² numbers in each layer, are worth another.
    Its update is scaled by lora_alpha / rank.
    """
    if kind == "pblora":
        return config
    lowest = config.k if kind == "svd-lora" else 1

    def of_rank(rank: int) -> PBLoRAConfig:
        r2 = {"lora": 0, "svd-lora": config.k, "moslora": rank}[kind]
        return replace(config, kind=kind, r1=rank - r2, r2=r2, scale=lora_alpha / rank)

    def numbers(rank: int) -> int:
        return trainable_numbers(of_rank(rank), linears)

    wanted = trainable_numbers(config, linears)
    above = lowest + bisect_left(
        range(lowest, lowest + wanted), wanted, key=numbers
    )  # a rank is worth a number or more
    return of_rank(min(above, max(lowest, above - 1), key=lambda rank: abs(numbers(rank) - wanted)))
