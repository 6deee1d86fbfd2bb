"""Adapters of other kinds with as many trainable numbers as a PBLoRA adapter, for a fair comparison."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import mlx.nn as nn

from parm_mlx.pblora.config import Kind, PBLoRAConfig
from parm_mlx.pblora.layer import tensor_shapes


def trainable_numbers(config: PBLoRAConfig, linears: Sequence[nn.Module]) -> int:
    """How many numbers an adapter on these layers trains."""
    return sum(prod(shape) for linear in linears for shape in tensor_shapes(linear, config).values())


def matched(config: PBLoRAConfig, kind: Kind, lora_alpha: float, linears: Sequence[nn.Module]) -> PBLoRAConfig:
    """An adapter of another kind, of the rank at which it comes nearest to a PBLoRA adapter in trainable numbers.

    That is r1 + r2, unless the PBLoRA adapter's cores, r1² + k · r2² numbers in each layer, are worth another rank.

    Args:
        config: The PBLoRA adapter.
        kind: The kind wanted.
        lora_alpha: The update is scaled by lora_alpha / rank, or by lora_alpha / r2 for PBLoRA itself.
        linears: The layers to adapt.
    """
    if kind == "pblora":
        return config
    r2 = {"lora": 0, "svd-lora": config.k}[kind]

    def of_rank(rank: int) -> PBLoRAConfig:
        return replace(config, kind=kind, r1=rank - r2, r2=r2, scale=lora_alpha / rank)

    lowest = max(1, r2)
    smallest, next_one = (trainable_numbers(of_rank(rank), linears) for rank in (lowest, lowest + 1))
    missing = trainable_numbers(config, linears) - smallest
    return of_rank(lowest + max(0, round(missing / (next_one - smallest))))
