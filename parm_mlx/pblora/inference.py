"""α bound for generation: all that depends on α alone is computed once, the rest with few operations per token.

The equation is that of :mod:`parm_mlx.kernels.lowrank`. Where its kernel runs, it computes the update as it stands.
Elsewhere the A of layers that read the same input (query, key and value) are one matrix, and for one α in all rows the
core is folded into Bᵀ.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from parm_mlx.kernels.lowrank import add_projection, fused_update, is_fused
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, core_shapes, scaled_core


class _Factors(NamedTuple):
    """The matrices of one layer in the dtype of its input."""

    a: mx.array  # of all layers that read its input
    rows: slice  # of A that are its own
    gate: mx.array | None  # (B, 1, 1), a factor of A x: a folded core cannot be zero in some rows
    core: mx.array | None  # (B, r, r); None if folded
    b: mx.array  # Bᵀ, or core · Bᵀ if folded


class BoundPreferences(Conditioning):
    """Conditioning on α for generation; no gradient reaches the adapter.

    Args:
        layers: Every adapted layer of the model, in the order of their index.
        alpha: (B, k), one preference vector per row.
        paired: Each preference vector has two rows, 2i for the plain model, whose core is zero, and 2i + 1.
    """

    def __init__(self, layers: Sequence[PBLoRALinear], alpha: mx.array, paired: bool = False) -> None:
        self._layers = layers
        cores = _cores(layers, alpha)
        self._gate = mx.array([0.0, 1.0] * alpha.shape[0])[:, None, None] if paired else None
        self._cores = list(cores if self._gate is None else self._gate * mx.repeat(cores, 2, axis=1))
        one_alpha = alpha.shape[0] == 1 or bool(mx.all(alpha == alpha[:1]).item())
        self._folded = cores[:, 0] if one_alpha else None
        mx.eval(self._cores, self._folded, self._gate)  # here, for another thread cannot evaluate what this one built
        self._by_dtype: dict[mx.Dtype, dict[int, _Factors]] = {}
        self._last: tuple[mx.array, mx.array, mx.array] | None = None

    def begin(self) -> "BoundPreferences":
        """Returns a copy for one pass: what layers share (``_last``) belongs to the pass, and so to one thread."""
        return copy(self)

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        core = self._cores[layer.index]
        if is_fused(y, x, layer.a, core, layer.b):
            return fused_update(y, x, layer.a, core, layer.b)
        factors = self._factors(x.dtype)[layer.index]
        return add_projection(y, self._projected(x, factors)[..., factors.rows], factors.core, factors.b)

    def _projected(self, x: mx.array, factors: _Factors) -> mx.array:
        """A x, which the first layer that reads x computes for all of them."""
        if self._last is None or self._last[0] is not x or self._last[1] is not factors.a:
            z = x @ factors.a.T
            self._last = x, factors.a, z if factors.gate is None else z * factors.gate
        return self._last[2]

    def _factors(self, dtype: mx.Dtype) -> dict[int, _Factors]:
        """The matrices of every layer by index, evaluated like the cores."""
        if dtype in self._by_dtype:
            return self._by_dtype[dtype]
        groups: dict[object, list[PBLoRALinear]] = {}
        for layer in self._layers:
            groups.setdefault(layer.reads or layer.index, []).append(layer)
        gate = None if self._gate is None or self._folded is None else self._gate.astype(dtype)
        factors = {}
        for group in groups.values():
            a, rank = joined_a(group, dtype), group[0].config.rank
            for i, layer in enumerate(group):
                core, b = None, layer.b.T
                if self._folded is None:
                    core = self._cores[layer.index].astype(dtype)
                else:
                    b = self._folded[layer.index] @ b
                factors[layer.index] = _Factors(a, slice(i * rank, (i + 1) * rank), gate, core, b.astype(dtype))
        mx.eval(factors)
        self._by_dtype[dtype] = factors
        return factors


@dataclass(frozen=True)
class _JoinedA:
    """A matrix and the A that it was made of; no tuple, which an nn.Module would take for parameters."""

    parts: list[mx.array]
    whole: mx.array


def joined_a(layers: Sequence[PBLoRALinear], dtype: mx.Dtype) -> mx.array:
    """Returns the A of layers that read one input as one matrix; the first layer keeps it until one of them changes."""
    kept: _JoinedA | None = getattr(layers[0], "_joined_a", None)
    parts = [layer.a for layer in layers]
    if kept is None or kept.whole.dtype != dtype or list(map(id, kept.parts)) != list(map(id, parts)):
        kept = layers[0]._joined_a = _JoinedA(parts, mx.concatenate(parts).astype(dtype))
    return kept.whole


def _cores(layers: Sequence[PBLoRALinear], alpha: mx.array) -> mx.array:
    """The scaled cores of every layer and row: (layers, B, r1 + r2, r1 + r2)."""
    config = layers[0].config
    tensors = {name: mx.stack([layer[name] for layer in layers]) for name in core_shapes(config)}
    cores = scaled_core(tensors, config, alpha)
    return mx.broadcast_to(cores, (len(layers), *cores.shape[-3:]))
