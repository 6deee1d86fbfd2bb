"""α bound for generation: what depends on α alone is computed once, the rest with few operations per token.

    y + ((x Aᵀ) · core) Bᵀ,    core = s · M(α)ᵀ

A of layers that read the same input (query, key and value) are one matrix. For one α in all rows, the core is folded
into Bᵀ. Where :mod:`parm_mlx.kernels` has a kernel for all of it, that runs instead.
"""

from collections.abc import Sequence

import mlx.core as mx

from parm_mlx.kernels.lowrank import is_fused, lowrank_update
from parm_mlx.pblora.core import CORES
from parm_mlx.pblora.layer import PBLoRALinear


class BoundPreferences:
    """Conditioning on α for generation; no gradient reaches the adapter.

    Args:
        layers: Every adapted layer of the model, in the order of their index.
        alpha: (B, k), one preference vector per row.
        paired: Whether two rows stand for each preference vector, 2i for the plain model and 2i + 1 for the guide. The
            core of a plain row is zero.
    """

    def __init__(self, layers: Sequence[PBLoRALinear], alpha: mx.array, paired: bool = False) -> None:
        cores = _cores(layers, alpha)
        fold = alpha.shape[0] == 1 or bool(mx.all(alpha == alpha[:1]).item())
        gate = mx.array([0.0, 1.0] * alpha.shape[0])[:, None, None] if paired else None
        rows = cores if gate is None else gate * mx.repeat(cores, 2, axis=1)
        members: dict[object, list[_Member]] = {}
        for i, layer in enumerate(layers):
            out = cores[i, 0] @ layer.b.T if fold else layer.b.T
            members.setdefault(layer.reads or layer.index, []).append(_Member(layer, rows[i], out, fold))
        self._groups: dict[int, _Group] = {}
        for together in members.values():
            group = _Group(together, gate if fold else None)
            self._groups.update((member.layer.index, group) for member in together)

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        return self._groups[layer.index].add_update(layer.index, x, y)


class _Member:
    """One layer: its cores (B, r, r), and Bᵀ or, folded, core · Bᵀ."""

    def __init__(self, layer: PBLoRALinear, core: mx.array, out: mx.array, folded: bool) -> None:
        self.layer = layer
        self.core = core
        self.out = out
        self.folded = folded

    def use_dtype(self, dtype: mx.Dtype) -> None:
        self.core, self.out = self.core.astype(dtype), self.out.astype(dtype)


class _Group:
    """The adapters of layers that read one input.

    Args:
        members: The layers.
        gate: (B, 1, 1), what A x is multiplied with, for cores that are folded and still zero in some rows.
    """

    def __init__(self, members: Sequence[_Member], gate: mx.array | None) -> None:
        layers = [member.layer for member in members]
        rank = layers[0].a.shape[0]
        self._members = {member.layer.index: member for member in members}
        self._parts = {layer.index: slice(i * rank, (i + 1) * rank) for i, layer in enumerate(layers)}
        self._a = layers[0].a if len(layers) == 1 else mx.concatenate([layer.a for layer in layers])
        self._gate = gate
        self._x: mx.array | None = None
        self._z: mx.array | None = None
        self._left = 0

    def add_update(self, index: int, x: mx.array, y: mx.array) -> mx.array:
        member = self._members[index]
        layer = member.layer
        if is_fused(y, x, layer.a, member.core, layer.b):
            return lowrank_update(y, x, layer.a, member.core, layer.b)
        z = self._down(x)
        if len(self._parts) > 1:
            z = z[..., self._parts[index]]
        if not member.folded:
            z = z @ member.core
        return mx.addmm(y, z, member.out)

    def _down(self, x: mx.array) -> mx.array:
        """A x of all layers, computed when the first of them asks; it is not kept longer than they need it."""
        if x is not self._x or self._z is None:
            self._use_dtype(x.dtype)
            z = x @ self._a.T
            self._x, self._z, self._left = x, z if self._gate is None else z * self._gate, len(self._members)
        z = self._z
        self._left -= 1
        if self._left == 0:
            self._x = self._z = None
        return z

    def _use_dtype(self, dtype: mx.Dtype) -> None:
        if self._a.dtype != dtype or any(member.out.dtype != dtype for member in self._members.values()):
            self._a = self._a.astype(dtype)
            self._gate = None if self._gate is None else self._gate.astype(dtype)
            for member in self._members.values():
                member.use_dtype(dtype)


def _cores(layers: Sequence[PBLoRALinear], alpha: mx.array) -> mx.array:
    """The cores of every layer and row, s · M(α)ᵀ: (layers, B, r1 + r2, r1 + r2)."""
    config = layers[0].config
    tensors = {name: mx.stack([layer[name] for layer in layers]) for name in CORES[config.kind].shapes(config)}
    cores = config.scale * CORES[config.kind].matrix(tensors, config, alpha).swapaxes(-1, -2)
    return mx.broadcast_to(cores, (len(layers), *cores.shape[-3:]))
