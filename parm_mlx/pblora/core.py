"""The kinds of adapter: all are LoRA with a core matrix M(α), and differ in the core alone.

    pblora      M(α) = blockdiag(W1, W2(α)),  W2(α) = reshape(αᵀ W2, (r2, r2))       PARM
    lora        M = I, whatever α is; r2 = 0                                          plain LoRA, GenARM
    svd-lora    M(α) = diag(σ_1, …, σ_r1, c · α_1, …, c · α_k), r2 = k                Panacea (arXiv 2402.02030)

σ and c, a factor that brings α to the size of σ, are learned in every layer. They start at 1; Panacea's σ and α stand
where the singular values of ΔW would.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mlx.core as mx

from parm_mlx.pblora.config import PBLoRAConfig

if TYPE_CHECKING:
    from parm_mlx.pblora.layer import PBLoRALinear

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Core:
    """How a kind of adapter makes M(α).

    Attributes:
        shapes: The tensors that M(α) is made of, by name, for the settings of an adapter.
        start: An initial value of such a tensor.
        matrix: M(α) of a layer, (B, r1 + r2, r1 + r2) for α (B, k).
    """

    shapes: Callable[[PBLoRAConfig], dict[str, Shape]]
    start: Callable[[Shape], mx.array]
    matrix: Callable[["PBLoRALinear", mx.array], mx.array]


def uniform(shape: Shape, bound: int) -> mx.array:
    """Numbers uniform in ± 1 / √bound."""
    limit = 1 / math.sqrt(bound) if bound else 0.0
    return mx.random.uniform(-limit, limit, shape) if limit and 0 not in shape else mx.zeros(shape)


def _blocks(layer: "PBLoRALinear", alpha: mx.array) -> mx.array:
    rows, r1, r2 = alpha.shape[0], layer.r1, layer.r2
    w1 = mx.broadcast_to(layer.w1, (rows, r1, r1))
    w2 = (alpha.astype(layer.w2.dtype) @ layer.w2).reshape(rows, r2, r2)
    upper = mx.pad(w1, [(0, 0), (0, 0), (0, r2)])
    lower = mx.pad(w2, [(0, 0), (0, 0), (r1, 0)])
    return mx.concatenate([upper, lower], axis=1)


def _identity(layer: "PBLoRALinear", alpha: mx.array) -> mx.array:
    return mx.broadcast_to(mx.eye(layer.r1, dtype=layer.a.dtype), (alpha.shape[0], layer.r1, layer.r1))


def _diagonal(layer: "PBLoRALinear", alpha: mx.array) -> mx.array:
    sigma = mx.broadcast_to(layer.sigma, (alpha.shape[0], layer.r1))
    values = mx.concatenate([sigma, layer.factor * alpha.astype(layer.factor.dtype)], axis=1)
    return values[:, None] * mx.eye(layer.r1 + layer.r2, dtype=values.dtype)


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
