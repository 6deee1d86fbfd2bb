"""α bound for generation: all that depends on α alone is computed once, the rest with few operations per token.

The equation is that of :mod:`parm_mlx.kernels.lowrank`. Where its kernel runs, it computes the update as it stands.
Elsewhere layers that read the same input (query, key and value) have one A x: their A stand below each other, their
cores along a diagonal. For one α in all rows the core is folded into Bᵀ; a share of the update that differs from row to
row is a factor of A x then.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate

import mlx.core as mx

from parm_mlx.kernels.lowrank import fused_update, is_fused
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, core_shapes, scaled_core


@dataclass(frozen=True)
class _Group:
    """The adapters of layers that read one input, in its dtype, of r ranks in all."""

    a: mx.array  # (in, r)
    gate: mx.array | None  # (B, 1, 1), a factor of A x: a folded core cannot be zero in some rows
    core: mx.array | None  # (B, r, r) along the diagonal; None if folded
    b: list[mx.array]  # (ranks, out) of each layer: Bᵀ, or core · Bᵀ if folded
    ends: list[int]  # of the ranks of each layer but the last
    places: dict[int, int]  # of each layer by its index

    def read(self, x: mx.array) -> "_Read":
        """A x of all layers, times their cores; the first layer that reads x computes it."""
        z = x @ self.a
        if self.gate is not None:
            z = z * self.gate
        if self.core is not None:
            z = z @ self.core
        return _Read(x, self, list(mx.split(z, self.ends, axis=-1)) if self.ends else [z])


@dataclass(frozen=True)
class _Read:
    """What a group made of its input."""

    x: mx.array
    group: _Group
    z: list[mx.array]  # (B, L, ranks) of each layer


class BoundPreferences(Conditioning):
    """Conditioning on α for generation; no gradient reaches the adapter.

    Args:
        layers: Every adapted layer of the model, in the order of their index.
        alpha: (B, k), one preference vector per row.
        paired: Each preference vector has two rows, 2i for the plain model, whose core is zero, and 2i + 1.
        share: (B,), the share of its update that each row gets; all of it by default.
    """

    def __init__(
        self, layers: Sequence[PBLoRALinear], alpha: mx.array, paired: bool = False, share: mx.array | None = None
    ) -> None:
        self._layers = layers
        cores = _cores(layers, alpha)
        if paired:
            cores, share = mx.repeat(cores, 2, axis=1), mx.array([0.0, 1.0] * alpha.shape[0])
        self._cores = list(cores if share is None else share[:, None, None] * cores)
        self._gate: mx.array | None = None
        self._folded: mx.array | None = None
        if _are_equal(alpha):
            if share is None or _are_equal(share):
                self._folded = cores[:, 0] if share is None else share[0] * cores[:, 0]
            else:
                self._folded, self._gate = cores[:, 0], share[:, None, None]
        mx.eval(self._cores, self._folded, self._gate)  # here, for another thread cannot evaluate what this one built
        self._by_dtype: dict[mx.Dtype, dict[int, _Group]] = {}
        self._last: _Read | None = None

    def begin(self) -> "BoundPreferences":
        """Returns a copy for one pass: what layers share (``_last``) belongs to the pass, and so to one thread."""
        return copy(self)

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        read = self._last
        if read is None or read.x is not x or layer.index not in read.group.places:
            core = self._cores[layer.index]
            if is_fused(y, x, layer.a, core, layer.b):
                return fused_update(y, x, layer.a, core, layer.b)
            read = self._last = self._groups(x.dtype)[layer.index].read(x)
        place = read.group.places[layer.index]
        return mx.addmm(y, read.z[place], read.group.b[place])

    def _groups(self, dtype: mx.Dtype) -> dict[int, _Group]:
        """For every layer by index its group, evaluated like the cores."""
        if dtype in self._by_dtype:
            return self._by_dtype[dtype]
        groups: dict[object, list[PBLoRALinear]] = {}
        for layer in self._layers:
            groups.setdefault(layer.reads or layer.index, []).append(layer)
        gate = None if self._gate is None or self._folded is None else self._gate.astype(dtype)
        found: dict[int, _Group] = {}
        for layers in groups.values():
            joined = join(layers, dtype)
            core, b = None, joined.b
            if self._folded is None:
                core = _diagonal([self._cores[layer.index] for layer in layers]).astype(dtype)
            else:
                b = [(self._folded[layer.index] @ layer.b.T).astype(dtype) for layer in layers]
            ends = list(accumulate(layer.b.shape[1] for layer in layers))[:-1]
            places = {layer.index: place for place, layer in enumerate(layers)}
            found |= dict.fromkeys(places, _Group(joined.a, gate, core, b, ends, places))
        mx.eval([[group.a, group.core, group.b] for group in found.values()], gate)
        self._by_dtype[dtype] = found
        return found


def _diagonal(blocks: Sequence[mx.array]) -> mx.array:
    """Blocks (…, m_i, n_i) as one (…, Σ m_i, Σ n_i), each beside zeros."""
    rows, total = [], sum(block.shape[-1] for block in blocks)
    before = 0
    for block in blocks:
        width = block.shape[-1]
        rows.append(mx.pad(block, [(0, 0)] * (block.ndim - 1) + [(before, total - before - width)]))
        before += width
    return mx.concatenate(rows, axis=-2)


@dataclass(frozen=True)
class Joined:
    """What α does not change of layers that read one input; no tuple, which an nn.Module would walk.

    Attributes:
        parts: The tensors that they were made of, by identity.
        a: (in, r), the transposed A of all layers.
        b: (ranks, out), Bᵀ of each.
    """

    parts: list[mx.array]
    a: mx.array
    b: list[mx.array]


def join(layers: Sequence[PBLoRALinear], dtype: mx.Dtype) -> Joined:
    """Joins the adapters of layers that read one input; the first layer keeps them until one of them changes."""
    kept: Joined | None = getattr(layers[0], "_joined", None)
    parts = [tensor for layer in layers for tensor in (layer.a, layer.b)]
    if kept is None or kept.a.dtype != dtype or list(map(id, kept.parts)) != list(map(id, parts)):
        a = mx.contiguous(mx.concatenate([layer.a for layer in layers]).T.astype(dtype))
        b = [mx.contiguous(layer.b.T.astype(dtype)) for layer in layers]
        mx.eval(a, b)  # another thread cannot evaluate what this one built
        kept = layers[0]._joined = Joined(parts, a, b)
    return kept


def _are_equal(rows: mx.array) -> bool:
    return rows.shape[0] == 1 or bool(mx.all(rows == rows[:1]).item())


def _cores(layers: Sequence[PBLoRALinear], alpha: mx.array) -> mx.array:
    """The scaled cores of every layer and row: (layers, B, r1 + r2, r1 + r2)."""
    config = layers[0].config
    tensors = {name: mx.stack([layer[name] for layer in layers]) for name in core_shapes(config)}
    cores = scaled_core(tensors, config, alpha)
    return mx.broadcast_to(cores, (len(layers), *cores.shape[-3:]))
