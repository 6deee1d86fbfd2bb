"""Log-probabilities of tokens from their logits: log p(y) = z_y − log Σ_v exp z_v, with gradient 1_y − softmax(z).

The kernel reads the logits once, where plain operations convert them to float32 and write intermediate results.
"""

from typing import cast

import mlx.core as mx

from parm_mlx.kernels import exp, widened
from parm_mlx.kernels.launcher import STRIP, load, runs, threads_for

THREADS = 512


def target_logprobs(logits: mx.array, targets: mx.array) -> mx.array:
    """Computes the log-probability of each target, (N,) float32, differentiable in the logits.

    Args:
        logits: (N, V), of any floating type.
        targets: (N,) token ids in [0, V).
    """
    if runs("logprob", logits.dtype):
        return cast(list[mx.array], _fused(logits, targets.astype(mx.int32)))[0]
    return target_logprobs_ops(logits, targets)


def target_logprobs_ops(logits: mx.array, targets: mx.array) -> mx.array:
    """The same in plain operations."""
    logits = widened(logits)
    return mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)


def logprobs_and_residual(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Computes :func:`target_logprobs`, and the negative of its gradient in the logits, softmax − 1_y.

    Returns:
        (N,) float32, and (N, V) in the dtype of the logits.
    """
    if runs("logprob", logits.dtype):
        targets = targets.astype(mx.int32)
        logprobs, largest, total = launch(logits, targets)
        return logprobs, launch_slope(logits, targets, largest, total, mx.full(targets.shape, -1.0))
    return logprobs_and_residual_ops(logits, targets)


def logprobs_and_residual_ops(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """The same in plain operations, with one exponential per logit."""
    z = widened(logits)
    largest = z.max(axis=-1, keepdims=True)
    weights = exp(z - largest)
    total = weights.sum(axis=-1, keepdims=True)
    logprobs = mx.take_along_axis(z, targets[:, None], axis=-1) - largest - mx.log(total)
    p = weights / total
    residual = mx.put_along_axis(p, targets[:, None], mx.exp(logprobs) - 1, axis=-1)
    return logprobs[:, 0], residual.astype(logits.dtype)


def weighted_slope_ops(
    logits: mx.array, targets: mx.array, largest: mx.array, total: mx.array, weight: mx.array
) -> mx.array:
    """The gradient of weight · log p in the logits, weight · (1_y − softmax), for total = Σ_v exp(z_v − largest)."""
    p = mx.exp(widened(logits) - largest[:, None]) / total[:, None]
    hit = mx.arange(logits.shape[-1]) == targets[:, None]
    return (weight[:, None] * (hit - p)).astype(logits.dtype)


@mx.custom_function
def _fused(logits: mx.array, targets: mx.array) -> list[mx.array]:
    return launch(logits, targets)


@_fused.vjp
def _fused_vjp(primals: list[mx.array], cotangents: list[mx.array], outputs: list[mx.array]) -> list[mx.array]:
    logits, targets = primals
    _, largest, total = outputs
    return [launch_slope(logits, targets, largest, total, cotangents[0]), mx.zeros_like(targets)]


def launch(logits: mx.array, targets: mx.array) -> list[mx.array]:
    """The kernel's log-probabilities, largest logits and sums of exp(logit − largest), each (N,) float32."""
    rows, vocabulary = logits.shape
    threads = threads_for(vocabulary, THREADS)
    kernel = load("logprob", ("logits", "targets"), ("logprob", "largest", "total"), header="softmax")
    outputs = kernel(
        inputs=[logits, targets],
        template=[("V", vocabulary), ("THREADS", threads), ("STRIP", STRIP)],
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[(rows,)] * 3,
        output_dtypes=[mx.float32] * 3,
    )
    return cast(list[mx.array], outputs)


def launch_slope(logits: mx.array, targets: mx.array, largest: mx.array, total: mx.array, weight: mx.array) -> mx.array:
    """The kernel's weight · (1_y − softmax), (N, V) in the dtype of the logits."""
    rows, vocabulary = logits.shape
    threads = threads_for(vocabulary, THREADS)
    kernel = load("logprob_grad", ("logits", "targets", "largest", "total", "weight"), ("slope",))
    (slope,) = kernel(
        inputs=[logits, targets, largest, total, weight],
        template=[("T", logits.dtype), ("V", vocabulary), ("STRIP", STRIP)],
        grid=(-(-vocabulary // (STRIP * threads)) * threads, rows, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[logits.shape],
        output_dtypes=[logits.dtype],
    )
    return cast(mx.array, slope)
