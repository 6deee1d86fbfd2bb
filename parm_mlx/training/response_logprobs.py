"""Log-probabilities of responses under a PARM: prompts are read once per pair, logits are held chunk by chunk.

Where a model's attention allows it, the keys and values of a prompt serve both responses. Values and gradients are
those of 2B separate rows; only dropout differs: both rows see a prompt with the same numbers dropped. The output layer,
the largest matrix of many models, is applied to response tokens only, a chunk at a time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.kernels.logprob import logprobs_and_residual, target_logprobs
from parm_mlx.mlxlm import Layer, PrefixCache, attention_windows, trunk_and_output_layer
from parm_mlx.pblora.layer import Preferences, conditioned
from parm_mlx.training.batching import Batch, PackedBatch, pack_rows, pack_shared

CHUNK = 128
Trunk = Callable[..., mx.array]


class ResponseScorer:
    """Scores the responses of a batch with a model that has adapters attached.

    Args:
        model: An mlx-lm model with adapters; the scores are differentiable in them.
        k: Number of objectives.
        share: Read prompts once for both responses where the model allows it and it saves enough.

    Attributes:
        trunk_and_head: The model up to its last hidden states, and its output layer; None where the model does not come
            apart and is run whole.
        shares: True if the model allows ``share``.
    """

    def __init__(self, model: nn.Module, k: int, share: bool = True) -> None:
        self.model = model
        was_training = model.training
        model.eval()
        with self.conditioned(mx.full((k,), 1 / k)):
            self.trunk_and_head = split_output_layer(model)
            self.shares = share and self.trunk_and_head is not None and can_share(model, self.trunk_and_head[0])
        model.train(was_training)

    def conditioned(self, alpha: mx.array) -> AbstractContextManager[None]:
        """Runs the block under α, (k,) or (B, k); a backward pass that computes layers again needs it too."""
        return conditioned(Preferences(alpha))

    def __call__(self, batch: Batch, alpha: mx.array) -> mx.array:
        """Returns Σ_t log π_θ(α)(y_t | x, y_<t) of every response, its end of sequence included: (2, B) float32."""
        packed = self.pack(batch)
        with self.conditioned(alpha):
            logprobs = packed.members @ self.token_logprobs(packed)
        return logprobs.reshape(2, -1)

    def pack(self, batch: Batch) -> PackedBatch:
        """Returns the arrays of a batch as they are read."""
        return (batch.shared if self.shares else None) or batch.rows

    def token_logprobs(self, packed: PackedBatch) -> mx.array:
        """Returns the log-probability of every response token, (N,) float32."""
        if self.trunk_and_head is None:
            return target_logprobs(_flat(self.model(packed.inputs))[packed.positions], packed.targets)
        trunk, head = self.trunk_and_head
        hidden = hidden_states(trunk, packed, _caches(self.model, packed))[packed.positions]
        score = chunked_logprobs_with_grad if self.model.training else chunked_logprobs
        return score(head, hidden, packed.targets)


def corner_distance(scorer: ResponseScorer, batches: Sequence[Batch], k: int) -> float | None:
    """Returns how far apart the model is at two corners of the preference simplex: those furthest apart.

    That is the mean over response tokens of |log π_θ(α_i)(y_t) − log π_θ(α_j)(y_t)|, in nats; None for k = 1.
    """
    model, corners = scorer.model, mx.eye(k)
    was_training = model.training
    model.eval()
    apart, tokens = np.zeros((k, k)), 0.0
    try:
        for batch in batches:
            packed = scorer.pack(batch)
            at = []
            for corner in corners:
                with scorer.conditioned(corner):
                    at.append(scorer.token_logprobs(packed))
            responses = np.array(packed.members.sum(0))  # of how many responses a token is one: none where it fills up
            logprobs = np.array(mx.stack(at))
            apart += (np.abs(logprobs[:, None] - logprobs[None]) * responses).sum(-1)
            tokens += float(responses.sum())
    finally:
        model.train(was_training)
    return float(apart.max()) / tokens if k > 1 and tokens else None


def split_output_layer(model: nn.Module) -> tuple[Layer, Layer] | None:
    """Splits a model, in evaluation mode and under some preference, into trunk and output layer.

    Families differ in what they do after the output layer (soft caps, scaling): None is returned where trunk and head
    do not reproduce the model's logits on a few tokens.
    """
    if (found := trunk_and_output_layer(model)) is None:
        return None
    trunk, head = found
    ids = mx.arange(4)[None]
    whole, joined = model(ids), head(trunk(ids))
    same = whole.shape == joined.shape and mx.allclose(whole, joined, rtol=1e-4, atol=1e-4).item()
    return found if same else None


def hidden_states(trunk: Trunk, packed: PackedBatch, caches: Sequence[PrefixCache]) -> mx.array:
    """Returns the hidden state after every input, (B · P + 2B · R, H); the caches, one per layer, keep the prefixes."""
    if not packed.prefixes.size:
        return _flat(trunk(packed.inputs))
    prefixes = _flat(trunk(packed.prefixes, cache=list(caches)))
    if not packed.inputs.size:
        return prefixes
    return mx.concatenate([prefixes, _flat(trunk(packed.inputs, cache=[cache.fork() for cache in caches]))])


def can_share(model: nn.Module, trunk: Trunk) -> bool:
    """Returns whether a model, in evaluation mode and under some preference, gives the same when prefixes are shared.

    It does if its layers keep keys and values alone, and if it takes positions and masks from its caches. That is tried
    out on pairs of different lengths, and every attention window must have been asked of the caches.
    """
    windows = attention_windows(model)
    if windows is None:
        return False
    pairs = _probe()
    shared, rows = pack_shared(pairs), pack_rows(pairs)
    assert shared is not None
    caches = _caches(model, shared)
    try:
        apart = _flat(trunk(rows.inputs))[rows.positions]
        together = hidden_states(trunk, shared, caches)[shared.positions]
        same = apart.shape == together.shape and _close(apart, together)
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError):
        return False
    asked = set[int | None]().union(*(cache.windows for cache in caches))
    return same and windows <= asked


def chunked_logprobs(head: Layer, hidden: mx.array, targets: mx.array, chunk: int = CHUNK) -> mx.array:
    """Returns the log-probability of each target, (N,) float32; the logits of ``chunk`` tokens are held at a time.

    Args:
        head: The output layer: plain, tied or quantised, and frozen.
        hidden: (N, H).
        targets: (N,).
        chunk: Number of tokens.
    """
    done: list[mx.array] = []
    for h, y in _chunks(hidden, targets, chunk):
        done.append(target_logprobs(head(_after(h, done)), y))
    return mx.concatenate(done)


def chunked_logprobs_with_grad(head: Layer, hidden: mx.array, targets: mx.array, chunk: int = CHUNK) -> mx.array:
    """Returns the same numbers, for use inside ``value_and_grad``: d log p / d h is computed along and kept, (N, H).

    With z = W h, log p(y | h) = z_y − log Σ_v exp z_v, and its gradient in h is Wᵀ (1_y − p), as large as h itself. So
    the logits of a chunk need not outlive the forward pass. Also where no gradient is taken, it costs a forward and a
    backward pass of the output layer.
    """

    @mx.custom_function
    def scored(hidden: mx.array) -> tuple[mx.array, mx.array]:
        done: list[mx.array] = []
        slopes: list[mx.array] = []
        for h, y in _chunks(hidden, targets, chunk):
            h = _after(h, done)
            logprobs, p_minus_y = logprobs_and_residual(head(h), y)
            _, (slope,) = mx.vjp(head, [h], [p_minus_y])
            slopes.append(-slope)
            done += mx.depends([logprobs], [slopes[-1]])
        return mx.concatenate(done), mx.concatenate(slopes)

    @scored.vjp
    def scored_vjp(primals: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        slope = outputs[1]
        return cotangents[0][:, None].astype(slope.dtype) * slope

    outputs: Any = scored(hidden)
    logprobs: mx.array = outputs[0]
    return logprobs


def _chunks(hidden: mx.array, targets: mx.array, chunk: int) -> list[tuple[mx.array, mx.array]]:
    return [(hidden[i : i + chunk], targets[i : i + chunk]) for i in range(0, hidden.shape[0], chunk)]


def _after(h: mx.array, done: list[mx.array]) -> mx.array:
    """Makes h wait for the chunk before it: MLX would hold the logits of several chunks at once."""
    return mx.depends([h], [done[-1]])[0] if done else h


def _caches(model: nn.Module, packed: PackedBatch) -> list[PrefixCache]:
    return [PrefixCache(packed.lengths) for _ in model.layers]


def _close(a: mx.array, b: mx.array) -> bool:
    """Compares but for rounding; a wrong position or mask shows as a difference of a tenth and more."""
    tolerance = 3e-2 if a.dtype in (mx.float16, mx.bfloat16) else 1e-3
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return bool((mx.linalg.norm(a - b) <= tolerance * mx.linalg.norm(a)).item())


def _probe() -> list[TokenPair]:
    """Three pairs whose prefixes and responses differ in length."""

    def row(prefix: int, response: int, first: int) -> TokenRow:
        ids = [1 + i % 7 for i in range(prefix)] + [first + i % 5 for i in range(response)]
        return TokenRow(np.array(ids, np.int32), prefix)

    sizes = ((19, 2, 5), (7, 4, 1), (13, 3, 3))
    return [TokenPair((row(p, a, 8), row(p, b, 9)), np.zeros(1, np.int8), "") for p, a, b in sizes]


def _flat(hidden: mx.array) -> mx.array:
    return hidden.reshape(-1, hidden.shape[-1])
