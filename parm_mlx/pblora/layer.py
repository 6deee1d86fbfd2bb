"""The layer of every adapter: a frozen linear layer, a low-rank update, and a core matrix that the preference sets.

For a frozen weight W (out, in), ranks r1 and r2, and a preference vector α (k,):

    y = W x + s · B · M(α) · A · x

:mod:`parm_mlx.pblora.core` has the M(α) of each kind of adapter. ΔW = s · B · M(α) · A is never built while the model
runs. A row whose core is zero is a row of the plain model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import InputError, PreferenceError
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.core import CORES, uniform
from parm_mlx.pblora.targets import linear_dims


class Conditioning(Protocol):
    """What a forward pass runs under: it gives every layer its update."""

    def add_update(self, layer: "PBLoRALinear", x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        ...


_active: ContextVar[Conditioning | None] = ContextVar("parm_mlx_conditioning", default=None)


@contextmanager
def conditioned(conditioning: Conditioning) -> Iterator[None]:
    """Runs the forward passes inside the block under one conditioning; nests, and is private to its thread."""
    token = _active.set(conditioning)
    try:
        yield
    finally:
        _active.reset(token)


class Unconditioned:
    """The plain model: no layer has an update."""

    def add_update(self, layer: "PBLoRALinear", x: mx.array, y: mx.array) -> mx.array:
        """Returns y."""
        return y


class Preferences:
    """Conditioning on α that stays differentiable in all tensors of the adapter.

    Args:
        alpha: (k,) for all rows, or (B, k) with one preference vector per row.
    """

    def __init__(self, alpha: mx.array) -> None:
        self.alpha = alpha if alpha.ndim == 2 else alpha[None]

    def add_update(self, layer: "PBLoRALinear", x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x to y; in training with dropout on x."""
        z = layer.dropout(x).astype(layer.a.dtype) @ layer.a.T
        return y + self.update(layer, z).astype(y.dtype)

    def update(self, layer: "PBLoRALinear", z: mx.array) -> mx.array:
        """Maps z = A x to s · B · M(α) · z."""
        z = z @ layer.core(self.alpha).swapaxes(-1, -2)
        update: mx.array = layer.scale * (z @ layer.b.T)
        return update


class PBLoRALinear(nn.Module):
    """A linear layer, plain or quantised, with an adapter.

    Args:
        linear: The frozen layer.
        config: Kind of adapter, ranks, scale, dropout, number of objectives.
        index: Position among the adapted layers of its model.
        reads: Layers that read the same input have the same value here; None where that is not known.
    """

    def __init__(
        self, linear: nn.Module, config: PBLoRAConfig, index: int = 0, reads: tuple[object, ...] | None = None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.index = index
        self.reads = reads
        self.scale = config.scale
        self.r1, self.r2 = config.r1, config.r2
        self.dropout = nn.Dropout(p=config.dropout)
        self._config = config
        shapes = tensor_shapes(linear, config)
        self._tensors = frozenset(shapes)
        self.a, self.b = uniform(shapes["a"], shapes["a"][1]), mx.zeros(shapes["b"])
        for name in CORES[config.kind].shapes(config):
            self[name] = CORES[config.kind].start(shapes[name])

    @property
    def config(self) -> PBLoRAConfig:
        """The adapter's settings."""
        return self._config

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of the adapter: a, b and what the core is made of."""
        return sorted(self._tensors)

    def core(self, alpha: mx.array) -> mx.array:
        """M(α).

        Args:
            alpha: (B, k).

        Returns:
            (B, r1 + r2, r1 + r2).
        """
        return CORES[self._config.kind].matrix(self, self._config, alpha)

    def delta(self, alpha: mx.array) -> mx.array:
        """ΔW(α) = s · B · M(α) · A, for one α (k,): (out, in). For inspection and fusing only."""
        delta: mx.array = self.scale * (self.b @ self.core(alpha[None])[0] @ self.a)
        return delta

    def fuse(self, alpha: mx.array, dequantize: bool = False) -> nn.Linear:
        """The plain linear layer with weight W + ΔW(α).

        Args:
            alpha: (k,).
            dequantize: Allow a quantised layer, which then becomes a plain one. Quantising the sum again would swallow
                updates smaller than a quantisation step, so that is not offered.

        Raises:
            InputError: The layer is quantised and ``dequantize`` is not set.
        """
        weight = _plain_weight(self.linear, dequantize)
        out_dims, in_dims = weight.shape
        fused = nn.Linear(in_dims, out_dims, bias="bias" in self.linear)
        fused.weight = (weight.astype(mx.float32) + self.delta(alpha)).astype(weight.dtype)
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        return fused

    def __call__(self, x: mx.array) -> mx.array:
        """Computes W x + s · B · M · A · x for x (B, L, in), under the conditioning of the running pass."""
        conditioning = _active.get()
        if conditioning is None:
            raise PreferenceError("a model with a PARM adapter was run without a preference vector")
        y: mx.array = self.linear(x)
        return conditioning.add_update(self, x, y)


def tensor_shapes(linear: nn.Module, config: PBLoRAConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of A, B and the tensors of the core for a linear layer."""
    out_dims, in_dims = linear_dims(linear)
    return {"a": (config.rank, in_dims), "b": (out_dims, config.rank), **CORES[config.kind].shapes(config)}


def _plain_weight(linear: nn.Module, dequantize: bool) -> mx.array:
    if not isinstance(linear, nn.QuantizedLinear):
        plain: mx.array = linear.weight
        return plain
    if not dequantize:
        raise InputError(
            "the model is quantised; quantising again after fusing would swallow small updates",
            hint="fuse into plain weights with --dequantize",
        )
    return mx.dequantize(
        linear.weight,
        scales=linear.scales,
        biases=linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )
