"""The layer of every adapter: a frozen linear layer, a low-rank update, and a core matrix that the preference sets.

For a frozen weight W (out, in), ranks r1 and r2, and a preference vector α (k,):

    y = W x + s · B · M(α) · A · x

The line of code is in :func:`parm_mlx.kernels.lowrank.lowrank_update_ops`. The kinds of adapter differ in M(α) alone:

    pblora      M(α) = blockdiag(W1, W2(α)),  W2(α) = reshape(αᵀ W2, (r2, r2))       PARM
    lora        M = I, whatever α is; r2 = 0                                          plain LoRA, GenARM
    svd-lora    M(α) = diag(σ_1, …, σ_r1, c · α_1, …, c · α_k), r2 = k                Panacea (arXiv 2402.02030)
    moslora     M(α) = M0 + W2(α),  W2(α) = reshape(αᵀ W2, (r2, r2)),  r1 = 0         after MoSLoRA and UniARM

σ and c, a factor that brings α to the size of σ, are learned in every layer; they start at 1. ΔW = s · B · M(α) · A is
never built while the model runs. A row whose core is zero is a row of the plain model.

moslora shares all of A and B between the preferences. Its mixer M0 between A and B is that of MoSLoRA (arXiv
2406.11909, ΔW = B · W · A), and W2(α) makes the mixer an affine function of α, the most general one. It stands for
UniARM (arXiv 2602.09538), which modulates features that preferences share by affine transformations. Only the abstract
and reviews of that paper were at hand: by them, it computes the modulation from embeddings of what the objectives mean,
which is not done here. So it is not a reproduction of UniARM.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import InputError, PreferenceError
from parm_mlx.kernels.lowrank import lowrank_update
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.shard import part_of_product
from parm_mlx.pblora.targets import CUT_ALONG_INPUTS, linear_dims

Shape = tuple[int, ...]


def core_shapes(config: PBLoRAConfig) -> dict[str, Shape]:
    """Returns the shapes of the tensors that M(α) is made of, by name."""
    match config.kind:
        case "pblora":
            return {"w1": (config.r1, config.r1), "w2": (config.k, config.r2**2)}
        case "lora":
            return {}
        case "svd-lora":
            return {"sigma": (config.r1,), "factor": (1,)}
        case "moslora":
            return {"mixer": (config.r2, config.r2), "w2": (config.k, config.r2**2)}


def core_matrix(tensors: Mapping[str, mx.array], config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    """Computes M(α), (…, B, r1 + r2, r1 + r2), for α (B, k) and the tensors of :func:`core_shapes`.

    Their leading axes (…) stand for several layers.
    """
    match config.kind:
        case "pblora":
            return _block_diagonal(tensors["w1"][..., None, :, :], _weighted(tensors["w2"], config, alpha))
        case "lora":
            return mx.broadcast_to(mx.eye(config.r1), (alpha.shape[0], config.r1, config.r1))
        case "svd-lora":
            sigma, factor = tensors["sigma"][..., None, :], tensors["factor"][..., None, :]
            scaled = factor * alpha.astype(factor.dtype)
            diagonal = mx.concatenate([mx.broadcast_to(sigma, (*scaled.shape[:-1], config.r1)), scaled], axis=-1)
            return diagonal[..., None, :] * mx.eye(config.rank, dtype=diagonal.dtype)
        case "moslora":
            return tensors["mixer"][..., None, :, :] + _weighted(tensors["w2"], config, alpha)


def scaled_core(tensors: Mapping[str, mx.array], config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    """Computes core = s · M(α)ᵀ, which the update takes; arguments and shape as of :func:`core_matrix`."""
    return config.scale * core_matrix(tensors, config, alpha).swapaxes(-1, -2)


def _weighted(w2: mx.array, config: PBLoRAConfig, alpha: mx.array) -> mx.array:
    """Computes W2(α), (…, B, r2, r2), of W2 (…, k, r2²) and α (B, k)."""
    weighted = alpha.astype(w2.dtype) @ w2
    return weighted.reshape(*weighted.shape[:-1], config.r2, config.r2)


def _block_diagonal(upper: mx.array, lower: mx.array) -> mx.array:
    """(…, m, m) and (…, n, n) to (…, m + n, m + n); the leading axes of ``upper`` may be 1."""
    batch, m, n = lower.shape[:-2], upper.shape[-1], lower.shape[-1]
    left = mx.pad(mx.broadcast_to(upper, (*batch, m, m)), [(0, 0)] * len(batch) + [(0, 0), (0, n)])
    return mx.concatenate([left, mx.pad(lower, [(0, 0)] * len(batch) + [(0, 0), (m, 0)])], axis=-2)


def tensor_shapes(linear: nn.Module, config: PBLoRAConfig) -> dict[str, Shape]:
    """Returns the shapes of A, B and the tensors of the core for a linear layer."""
    out_dims, in_dims = linear_dims(linear)
    return {"a": (config.rank, in_dims), "b": (out_dims, config.rank), **core_shapes(config)}


def _initial(name: str, shape: Shape) -> mx.array:
    """B is zero, σ and c are one; A, W1, W2 and M0 are uniform in ± 1/√(length of their rows)."""
    if name in ("sigma", "factor"):
        return mx.ones(shape)
    if name == "b" or 0 in shape:
        return mx.zeros(shape)
    return mx.random.uniform(-1 / math.sqrt(shape[1]), 1 / math.sqrt(shape[1]), shape)


class PBLoRALinear(nn.Module):
    """A linear layer, plain or quantised, with an adapter.

    Args:
        linear: The frozen layer.
        config: The adapter's settings: kind, ranks, scale, dropout, objectives.
        index: Position among the adapted layers of its model.
        reads: The same value for layers that read the same input; None where that is not known.
    """

    def __init__(
        self, linear: nn.Module, config: PBLoRAConfig, index: int = 0, reads: tuple[object, ...] | None = None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.index = index
        self.reads = reads
        self.dropout = nn.Dropout(p=config.dropout)
        self.config = config
        for name, shape in tensor_shapes(linear, config).items():
            self[name] = _initial(name, shape)

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of the adapter: a, b and those of the core."""
        return sorted(("a", "b", *core_shapes(self.config)))

    def __call__(self, x: mx.array) -> mx.array:
        """Computes W x + s · B · M(α) · A · x for x (B, L, in), under the conditioning of the running pass."""
        conditioning = _active.get()
        if conditioning is None:
            raise PreferenceError("a model with a PARM adapter was run without a preference vector")
        linear = self.linear
        if not isinstance(linear, CUT_ALONG_INPUTS):
            return conditioning.add_update(self, x, linear(x))
        # x is this process's part of the input: what W and the adapter make of the parts is summed together, once.
        y = mx.distributed.all_sum(conditioning.add_update(self, x, part_of_product(linear, x)), group=linear.group)
        return y + linear.bias if "bias" in linear else y

    def core(self, alpha: mx.array) -> mx.array:
        """Computes M(α) for α (B, k): (B, r1 + r2, r1 + r2). For inspection only."""
        return core_matrix(self, self.config, alpha)

    def delta(self, alpha: mx.array) -> mx.array:
        """Computes ΔW(α) = s · B · M(α) · A for one α (k,): (out, in). For inspection and fusing only."""
        delta: mx.array = self.b @ scaled_core(self, self.config, alpha[None])[0].T @ self.a
        return delta

    def fuse(self, alpha: mx.array, dequantize: bool = False, share: float = 1.0) -> nn.Linear:
        """Returns the plain linear layer with weight W + share · ΔW(α), for α (k,).

        Raises:
            InputError: The layer is quantised and ``dequantize`` is not set. Quantising the sum again would round
                away updates smaller than a quantisation step, so that is not offered.
        """
        linear, weight = self.linear, self.linear.weight
        if isinstance(linear, nn.QuantizedLinear):
            if not dequantize:
                raise InputError(
                    "the model is quantised; quantising again after fusing would round small updates away",
                    hint="fuse into plain weights with --dequantize; parm-mlx convert -q can quantise these again",
                )
            how = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
            weight = mx.dequantize(weight, scales=linear.scales, biases=linear.get("biases"), **how)
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in linear)
        fused.weight = (weight.astype(mx.float32) + share * self.delta(alpha)).astype(weight.dtype)
        if "bias" in linear:
            fused.bias = linear.bias
        return fused


class Conditioning:
    """Conditioning of a forward pass: adds the update of each layer."""

    def begin(self) -> "Conditioning":
        """Returns the conditioning of one forward pass: a copy if it keeps state during a pass."""
        return self

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x for x (B, L, in) to y (B, L, out)."""
        raise NotImplementedError


class Unconditioned(Conditioning):
    """The plain model: no layer has an update."""

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Returns y."""
        return y


class Preferences(Conditioning):
    """Conditioning on α that stays differentiable in all tensors of the adapter.

    α is (k,) for all rows; or (n, k), where row i of the input has preference vector i mod n.
    """

    def __init__(self, alpha: mx.array) -> None:
        self.alpha = alpha if alpha.ndim == 2 else alpha[None]

    def add_update(self, layer: PBLoRALinear, x: mx.array, y: mx.array) -> mx.array:
        """Adds s · B · M(α) · A · x to y; in training with dropout on x."""
        core = scaled_core(layer, layer.config, self.alpha)
        if core.shape[0] > 1:
            core = mx.tile(core, (x.shape[0] // core.shape[0], 1, 1))
        return lowrank_update(y, layer.dropout(x), layer.a, core, layer.b)


# mlx-lm's models call their layers with x alone, so the conditioning of a pass reaches them through the context.
_active: ContextVar[Conditioning | None] = ContextVar("parm_mlx_conditioning", default=None)


@contextmanager
def conditioned(conditioning: Conditioning) -> Iterator[None]:
    """Runs the forward pass inside the block under a conditioning; nests, and is private to its thread."""
    token = _active.set(conditioning.begin())
    try:
        yield
    finally:
        _active.reset(token)
