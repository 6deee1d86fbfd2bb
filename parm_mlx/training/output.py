"""Log-probabilities of tokens without ever holding (tokens × vocabulary) logits.

log p(y | h) = z_y − log Σ_v exp z_v with z = W h, and its gradient in h is W_y − Σ_v softmax(z)_v · W_v = Wᵀ (1_y − p),
as large as h itself. Both are computed for one chunk of tokens after another, and only they are kept.
"""

from typing import Any

import mlx.core as mx

from parm_mlx.kernels.logprob import logprobs_and_residual
from parm_mlx.mlxlm import Layer
from parm_mlx.training.loss import token_logprobs

CHUNK = 128


def chunked_logprobs(output_layer: Layer, hidden: mx.array, targets: mx.array, chunk: int = CHUNK) -> mx.array:
    """The log-probability of each target, chunk by chunk, without a gradient of its own.

    Args:
        output_layer: Linear, plain, tied or quantised, and frozen.
        hidden: (N, H).
        targets: (N,).
        chunk: Tokens whose logits are held at a time.

    Returns:
        (N,) float32.
    """
    done: list[mx.array] = []
    for h, y in _chunks(hidden, targets, chunk):
        done.append(token_logprobs(output_layer(_after(h, done)), y))
    return mx.concatenate(done)


def chunked_logprobs_with_grad(
    output_layer: Layer, hidden: mx.array, targets: mx.array, chunk: int = CHUNK
) -> mx.array:
    """The same numbers, for use inside ``value_and_grad``: d log p / d h is computed along and kept, (N, H).

    It costs as much as a forward and a backward pass of the output layer, also where no gradient is taken.
    """

    @mx.custom_function
    def scored(hidden: mx.array) -> tuple[mx.array, mx.array]:
        done: list[mx.array] = []
        slopes: list[mx.array] = []
        for h, y in _chunks(hidden, targets, chunk):
            logprobs, slope = _logprobs_and_slope(output_layer, _after(h, done), y)
            (finished,) = mx.depends([logprobs], [slope])
            done.append(finished)
            slopes.append(slope)
        return mx.concatenate(done), mx.concatenate(slopes)

    @scored.vjp
    def scored_vjp(primals: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        slope = outputs[1]
        return cotangents[0][:, None].astype(slope.dtype) * slope

    outputs: Any = scored(hidden)
    logprobs: mx.array = outputs[0]
    return logprobs


def _logprobs_and_slope(output_layer: Layer, h: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    logprobs, p_minus_y = logprobs_and_residual(output_layer(h), y)
    _, (slope,) = mx.vjp(output_layer, [h], [p_minus_y])
    return logprobs, -slope


def _chunks(hidden: mx.array, targets: mx.array, chunk: int) -> list[tuple[mx.array, mx.array]]:
    return [(hidden[i : i + chunk], targets[i : i + chunk]) for i in range(0, hidden.shape[0], chunk)]


def _after(h: mx.array, done: list[mx.array]) -> mx.array:
    """H, but not before the chunk that went before: MLX would hold the logits of several chunks at once."""
    return mx.depends([h], [done[-1]])[0] if done else h
