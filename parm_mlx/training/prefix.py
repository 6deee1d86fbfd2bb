"""The last hidden states of a batch, with what the two sequences of a pair begin with computed once.

The prefixes are read first; the layers keep their keys and values, which both rows of a pair then attend to. Positions
and masks are those of the whole sequences, so that values and gradients are those of 2B separate rows. Only dropout
differs: both rows of a pair see a prefix with the same numbers dropped.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.mlxlm import PrefixCache, attention_windows
from parm_mlx.training.packing import Layout, separate_rows, shared_prefixes

Trunk = Callable[..., mx.array]


def hidden_states(trunk: Trunk, layout: Layout, layers: int) -> mx.array:
    """The hidden state after every input, (B · P + 2B · R, H), in the order that ``layout.positions`` counts in.

    Args:
        trunk: A model up to its last hidden states.
        layout: The batch.
        layers: Number of the model's layers.
    """
    if not layout.prefixes.size:
        return _flat(trunk(layout.inputs))
    return _read(trunk, layout, [PrefixCache(layout.lengths) for _ in range(layers)])


def shares_prefixes(model: nn.Module, trunk: Trunk) -> bool:
    """Whether a model gives the same hidden states when prefixes are shared.

    It does if all that its layers keep are keys and values, and if it takes positions and masks from its caches. That
    is tried out on pairs of different lengths, and every attention window must have been asked of the caches.

    Args:
        model: An mlx-lm model with adapters attached, in evaluation mode, under some preference.
        trunk: The model up to its last hidden states.
    """
    windows = attention_windows(model)
    if windows is None:
        return False
    pairs = _probe()
    shared, rows = shared_prefixes(pairs), separate_rows(pairs)
    assert shared is not None
    caches = [PrefixCache(shared.lengths) for _ in model.layers]
    try:
        apart = _flat(trunk(rows.inputs))[rows.positions]
        together = _read(trunk, shared, caches)[shared.positions]
        same = apart.shape == together.shape and _close(apart, together)
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError):
        return False
    asked = set[int | None]().union(*(cache.windows for cache in caches))
    return same and windows <= asked


def _read(trunk: Trunk, layout: Layout, caches: Sequence[PrefixCache]) -> mx.array:
    prefixes = _flat(trunk(layout.prefixes, cache=list(caches)))
    if not layout.inputs.size:
        return prefixes
    return mx.concatenate([prefixes, _flat(trunk(layout.inputs, cache=[cache.fork() for cache in caches]))])


def _close(a: mx.array, b: mx.array) -> bool:
    """Whether b is a but for rounding; a wrong position or mask shows as a difference of a tenth and more."""
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
