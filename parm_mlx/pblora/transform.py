"""Adapters as something else: fused into a plain model, with more objectives, mixed, or of another kind."""

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
from parm_mlx.pblora.layer import PBLoRALinear, core_matrix, core_shapes, tensor_shapes
from parm_mlx.pblora.targets import linear_dims
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


def soup(adapters: Sequence[tuple[PBLoRAConfig, Mapping[str, mx.array]]]) -> tuple[PBLoRAConfig, Tensors]:
    """Mixes adapters of one objective each into one whose weights α interpolates: ΔW(α) = Σ_i α_i · ΔW_i.

    This is what rewarded soups (arXiv 2306.04488) do with fine-tuned weights. The result is a PBLoRA adapter with
    r1 = 0 and s = 1: all A_i stand below each other, all B_i beside each other, and row i of W2 has s_i · M_i in block
    i of the diagonal. So α may differ from row to row of a batch, as for any adapter.

    Args:
        adapters: Settings and tensors of each, in the order that α has; of any kind and rank, on the same layers.

    Raises:
        AdapterError: One has several objectives, or two have the same objective, other layers, target modules or
            another chat template.
    """
    configs = [config for config, _ in adapters]
    first, rank = configs[0], sum(config.rank for config in configs)
    layers = [{name.rpartition(".")[0] for name in tensors} for _, tensors in adapters]
    for config, own in zip(configs, layers, strict=True):
        names = ", ".join(config.objectives)
        if config.k != 1:
            raise AdapterError(f"adapters of one objective each can be mixed; one of these has {names}")
        for what in ("target_modules", "chat_template"):
            if getattr(config, what) != getattr(first, what):
                both = f"{getattr(first, what)} for {first.objectives[0]}, {getattr(config, what)} for {names}"
                raise AdapterError(f"adapters that are mixed need the same {what}; they have {both}")
        if own != layers[0]:
            raise AdapterError(f"the adapters for {first.objectives[0]} and {names} are on different layers")
    betas = [config.objective_betas for config in configs]
    config = replace(
        first,
        kind="pblora",
        objectives=tuple(name for each in configs for name in each.objectives),
        r1=0,
        r2=rank,
        scale=1.0,
        objective_betas=tuple(beta[0] for beta in betas if beta) if all(betas) else None,
        beta=None,
        training={},
    )
    mixed: Tensors = {}
    for layer in sorted(layers[0]):
        rows, before = [], 0
        for own_config, tensors in adapters:
            shapes = core_shapes(own_config)
            own_core = {name: tensors.get(f"{layer}.{name}", mx.zeros(shape)) for name, shape in shapes.items()}
            core, after = core_matrix(own_core, own_config, mx.ones((1, 1)))[0], rank - before - own_config.rank
            rows.append(own_config.scale * mx.pad(core, [(before, after)] * 2).reshape(-1))
            before += own_config.rank
        mixed[f"{layer}.a"] = mx.concatenate([tensors[f"{layer}.a"] for _, tensors in adapters])
        mixed[f"{layer}.b"] = mx.concatenate([tensors[f"{layer}.b"] for _, tensors in adapters], axis=1)
        mixed[f"{layer}.w2"] = mx.stack(rows)
    return config, mixed


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
    a_rank = sum(map(sum, map(linear_dims, linears)))  # the least that one more of rank adds
    above = lowest + bisect_left(range(lowest, lowest + wanted // a_rank + 1), wanted, key=numbers)
    return of_rank(min(above, max(lowest, above - 1), key=lambda rank: abs(numbers(rank) - wanted)))
