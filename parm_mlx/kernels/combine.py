"""Base and guide as one distribution (PARM, Eq. 13): log π̃ = log π_base + (1/β) · log π_θ(α) − log Z, from logits.

Constants in the logits of a row cancel in Z, so neither needs to be normalised first.
"""

from functools import lru_cache
from typing import cast

import mlx.core as mx

from parm_mlx.kernels import widened
from parm_mlx.kernels.launcher import DTYPES, STRIP, load, runs, threads_for

THREADS = 1024


def combine_logits(base: mx.array, guide: mx.array, strength: float | mx.array) -> mx.array:
    """Computes Eq. 13 up to a constant per row: base + guide / β. For decoding: the kernel has no gradient.

    Args:
        base: Logits (B, …, V_base), of any floating type.
        guide: Logits (B, …, V_guide), with the same leading axes.
        strength: 1/β ≥ 0, for all or as (B,).

    Returns:
        (…, min(V_base, V_guide)) float32, over the tokens that both know; normalised where the kernel runs.
    """
    if runs("combine", base.dtype) and guide.dtype in DTYPES:
        rows = base.size // base.shape[-1]
        scales = (
            mx.repeat(strength, rows // strength.size) if isinstance(strength, mx.array) else _scales(strength, rows)
        )
        guided = launch(base.reshape(rows, -1), guide.reshape(rows, -1), scales)
        return guided.reshape(*base.shape[:-1], guided.shape[-1])
    if isinstance(strength, mx.array):
        strength = strength.reshape(-1, *[1] * (base.ndim - 1))
    return combine_logits_ops(base, guide, strength)


def combine_logits_ops(base: mx.array, guide: mx.array, scale: mx.array | float) -> mx.array:
    """Computes base + scale · guide in float32: in 16 bits the sum would round away what tells likely tokens apart."""
    base, guide = over_common_tokens(base, guide)
    return base + guide * scale


def guided_logprobs_ops(base: mx.array, guide: mx.array, scale: mx.array) -> mx.array:
    """The kernel's twin: Eq. 13 with log Z, for scales 1/β (N,) of the rows (N, V)."""
    combined = combine_logits_ops(base, guide, scale[:, None])
    return combined - mx.logsumexp(combined, axis=-1, keepdims=True)


def over_common_tokens(*logits: mx.array) -> list[mx.array]:
    """Returns logits (…, V_i) in float32, cut to the smallest V_i: what the others have more is padding."""
    vocabulary = min(x.shape[-1] for x in logits)
    return [widened(x if x.shape[-1] == vocabulary else x[..., :vocabulary]) for x in logits]


@lru_cache(maxsize=16)
def _scales(strength: float, rows: int) -> mx.array:
    return mx.full((rows,), strength)


def launch(base: mx.array, guide: mx.array, scale: mx.array) -> mx.array:
    """The kernel's log-softmax(base + scale · guide): (N, V_base), (N, V_guide), (N,) -> (N, V)."""
    rows, base_v, guide_v = *base.shape, guide.shape[-1]
    vocabulary = min(base_v, guide_v)
    threads = threads_for(vocabulary, THREADS)
    sizes = {"V": vocabulary, "BASE_V": base_v, "GUIDE_V": guide_v, "THREADS": threads, "STRIP": STRIP}
    kernel = load("combine", ("base", "guide", "scale"), ("guided",), header="softmax")
    (guided,) = kernel(
        inputs=[base, guide, scale],
        template=list(sizes.items()),
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(rows, vocabulary)],
        output_dtypes=[mx.float32],
    )
    return cast(mx.array, guided)
