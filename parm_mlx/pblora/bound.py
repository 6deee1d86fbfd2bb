"""α bound for generation: what depends on α alone is computed once, the rest with few operations per token.

    y + ((x Aᵀ) · core) Bᵀ,    core = s · M(α)ᵀ

A of layers that read the same input (query, key and value) are one matrix. For a few rows, or one α for all of them,
the core is folded into Bᵀ. Where :mod:`parm_mlx.kernels` has a kernel for all of it, that runs instead.
"""

from collections.abc import Sequence

import mlx.core as mx

from parm_mlx.kernels.lowrank import is_fused, lowrank_update
from parm_mlx.pblora.core import CORES
from parm_mlx.pblora.layer import PBLoRALinear

FOLDED_ROWS = 2


class BoundPreferences:
    """Conditioning on α for generation; no gradient reaches the adapter.

    Args:
        layers: Every adapted layer of the model, in the order of their index.
        alpha: (B, k), one preference vector per row.
        paired: Whether two rows stand for each preference vector, 2i for the plain model and 2i + 1 for the guide. The
            core of a plain row is zero.
    """

    def __init__(self, layers: Sequence[PBLoRALinear], alpha: mx.array, paired: bool = False) -> None:
        cores = _cores(layers, alpha, paired)
        equal = not paired and _all_equal(alpha)
        if equal:
            cores = cores[:, 0]
        fold = equal or cores.shape[1] <= FOLDED_ROWS
        members: dict[object, list[tuple[PBLoRALinear, mx.array]]] = {}
        for layer, core in zip(layers, cores, strict=True):
            members.setdefault(layer.reads or layer.index, []).append((layer, core))
        self._groups: dict[int, _Group] = {}
        for together in members.values():
            group = _Group(together, fold)
            self._groups.update((layer.index, group) for layer, _ in together)

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        return self._groups[layer.index].add_update(layer, x, y)


class _Group:
    """The adapters of layers that read one input."""

    def __init__(self, members: Sequence[tuple[PBLoRALinear, mx.array]], fold: bool) -> None:
        layers = [layer for layer, _ in members]
        rank = layers[0].a.shape[0]
        self._full = {layer.index: core if core.ndim == 3 else core[None] for layer, core in members}
        self._a = layers[0].a if len(layers) == 1 else mx.concatenate([layer.a for layer in layers])
        self._parts = {layer.index: slice(i * rank, (i + 1) * rank) for i, layer in enumerate(layers)}
        self._cores = {} if fold else {layer.index: core for layer, core in members}
        self._out = {layer.index: core @ layer.b.T if fold else layer.b.T for layer, core in members}
        self._x: mx.array | None = None
        self._z: mx.array | None = None
        self._left = 0

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        core = self._full[layer.index]
        if is_fused(y, x, layer.a, core, layer.b):
            return lowrank_update(y, x, layer.a, core, layer.b)
        z = self._down(x)
        if len(self._parts) > 1:
            z = z[..., self._parts[layer.index]]
        if self._cores:
            z = z @ self._cores[layer.index]
        return mx.addmm(y, z, self._out[layer.index])

    def _down(self, x: mx.array) -> mx.array:
        """A x of all layers, computed when the first of them asks; it is not kept longer than they need it."""
        if x is not self._x or self._z is None:
            self._use_dtype(x.dtype)
            self._x, self._z, self._left = x, x @ self._a.T, len(self._parts)
        z = self._z
        self._left -= 1
        if self._left == 0:
            self._x = self._z = None
        return z

    def _use_dtype(self, dtype: mx.Dtype) -> None:
        if self._a.dtype != dtype:
            self._a = self._a.astype(dtype)
            self._cores = {index: core.astype(dtype) for index, core in self._cores.items()}
            self._out = {index: out.astype(dtype) for index, out in self._out.items()}


def _cores(layers: Sequence[PBLoRALinear], alpha: mx.array, paired: bool) -> mx.array:
    """S · M(α)ᵀ of every layer and row: (layers, B or 2B, r1 + r2, r1 + r2)."""
    config = layers[0].config
    tensors = {name: mx.stack([layer[name] for layer in layers]) for name in CORES[config.kind].shapes(config)}
    cores = config.scale * CORES[config.kind].matrix(tensors, config, alpha).swapaxes(-1, -2)
    cores = mx.broadcast_to(cores, (len(layers), *cores.shape[-3:]))
    if not paired:
        return cores
    both = mx.stack([mx.zeros_like(cores), cores], axis=2)
    return both.reshape(len(layers), -1, *cores.shape[-2:])


def _all_equal(alpha: mx.array) -> bool:
    return alpha.shape[0] == 1 or bool(mx.all(alpha == alpha[:1]).item())
