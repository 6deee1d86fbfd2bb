"""Base and guide as one distribution (PARM, Eq. 13): log π̃ = log π_base + (1/β) · log π_θ(α) − log Z, from logits.

Constants in the logits of a row cancel in Z, so neither needs to be normalised first.
"""

from functools import lru_cache
from typing import cast

import mlx.core as mx

from parm_mlx.kernels import widened
from parm_mlx.kernels.launcher import DTYPES, STRIP, load, runs, threads_for

THREADS = 1024


def combine_logits(base: mx.array, guide: mx.array, beta: float) -> mx.array:
    """Computes Eq. 13 up to a constant per row: base + guide / β. For decoding: the kernel has no gradient.

    Args:
        base: Logits (…, V_base), of any floating type.
        guide: Logits (…, V_guide), with the same leading axes.
        beta: β > 0.

    Returns:
        (…, min(V_base, V_guide)) float32, over the tokens that both know; normalised where the kernel runs.
    """
    if runs("combine", base.dtype) and guide.dtype in DTYPES:
        guided = launch(base.reshape(-1, base.shape[-1]), guide.reshape(-1, guide.shape[-1]), _scale(beta))
        return guided.reshape(*base.shape[:-1], guided.shape[-1])
    return combine_logits_ops(base, guide, 1 / beta)


def combine_logits_ops(base: mx.array, guide: mx.array, scale: mx.array | float) -> mx.array:
    """Computes base + scale · guide in float32: in 16 bits the sum would round away what tells likely tokens apart."""
    base, guide = over_common_tokens(base, guide)
    return base + (guide if isinstance(scale, float) and scale == 1 else guide * scale)


def guided_logprobs_ops(base: mx.array, guide: mx.array, scale: mx.array | float) -> mx.array:
    """The kernel's twin: Eq. 13 with log Z, for scale 1/β."""
    combined = combine_logits_ops(base, guide, scale)
    return combined - mx.logsumexp(combined, axis=-1, keepdims=True)


def over_common_tokens(*logits: mx.array) -> list[mx.array]:
    """Returns logits (…, V_i) in float32, cut to the smallest V_i: what the others have more is padding."""
    vocabulary = min(x.shape[-1] for x in logits)
    return [widened(x if x.shape[-1] == vocabulary else x[..., :vocabulary]) for x in logits]


@lru_cache(maxsize=16)
def _scale(beta: float) -> mx.array:
    return mx.array([1 / beta], dtype=mx.float32)


def launch(base: mx.array, guide: mx.array, scale: mx.array) -> mx.array:
    """The kernel's log-softmax(base + scale · guide): (N, V_base), (N, V_guide), (1,) -> (N, V)."""
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
