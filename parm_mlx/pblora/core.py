"""The kinds of adapter: all are LoRA with a core matrix M(α), and differ in the core alone.

    pblora      M(α) = blockdiag(W1, W2(α)),  W2(α) = reshape(αᵀ W2, (r2, r2))       PARM
    lora        M = I, whatever α is; r2 = 0                                          plain LoRA, GenARM
    svd-lora    M(α) = diag(σ_1, …, σ_r1, c · α_1, …, c · α_k), r2 = k                Panacea (arXiv 2402.02030)

σ and c, a factor that brings α to the size of σ, are learned in every layer. They start at 1; Panacea's σ and α stand
where the singular values of ΔW would.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from parm_mlx.pblora.config import PBLoRAConfig

Shape = tuple[int, ...]
Tensors = Mapping[str, mx.array]


@dataclass(frozen=True)
class Core:
    """How a kind of adapter makes M(α).

    Attributes:
        shapes: The tensors that M(α) is made of, by name, for the settings of an adapter.
        start: An initial value of such a tensor.
        matrix: M(α), (…, B, r1 + r2, r1 + r2), from the tensors of a layer by name and α (B, k). Leading axes of the
            tensors stand for several layers.
    """

    shapes: Callable[[PBLoRAConfig], dict[str, Shape]]
    start: Callable[[Shape], mx.array]
    matrix: Callable[[Tensors, PBLoRAConfig, mx.array], mx.array]


def uniform(shape: Shape, bound: int) -> mx.array:
    """Numbers uniform in ± 1 / √bound."""
    limit = 1 / math.sqrt(bound) if bound else 0.0
    return mx.random.uniform(-limit, limit, shape) if limit and 0 not in shape else mx.zeros(shape)


def _blocks(tensors: Tensors, config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    r1, r2 = config.r1, config.r2
    w1, w2 = tensors["w1"], tensors["w2"]
    w2 = alpha.astype(w2.dtype) @ w2
    shape = w2.shape[:-1]
    w2 = w2.reshape(*shape, r2, r2)
    w1 = mx.broadcast_to(w1[..., None, :, :], (*shape, r1, r1))
    whole = [(0, 0)] * len(shape)
    upper, lower = mx.pad(w1, [*whole, (0, 0), (0, r2)]), mx.pad(w2, [*whole, (0, 0), (r1, 0)])
    return mx.concatenate([upper, lower], axis=-2)


def _identity(_: Tensors, config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    return mx.broadcast_to(mx.eye(config.r1), (alpha.shape[0], config.r1, config.r1))


def _diagonal(tensors: Tensors, config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    sigma, factor = tensors["sigma"][..., None, :], tensors["factor"][..., None, :]
    scaled = factor * alpha.astype(factor.dtype)
    values = mx.concatenate([mx.broadcast_to(sigma, (*scaled.shape[:-1], config.r1)), scaled], axis=-1)
    return values[..., None, :] * mx.eye(config.rank, dtype=values.dtype)


CORES: dict[Literal["pblora", "lora", "svd-lora"], Core] = {
    "pblora": Core(
        shapes=lambda config: {"w1": (config.r1, config.r1), "w2": (config.k, config.r2**2)},
        start=lambda shape: uniform(shape, shape[1]),
        matrix=_blocks,
    ),
    "lora": Core(shapes=lambda _: {}, start=mx.zeros, matrix=_identity),
    "svd-lora": Core(
        shapes=lambda config: {"sigma": (config.r1,), "factor": (1,)},
        start=mx.ones,
        matrix=_diagonal,
    ),
}
