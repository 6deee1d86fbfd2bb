"""Keys and values of prefixes that several rows continue, for training."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import mlx.core as mx


class PrefixCache:
    """Keys and values of one layer for prefixes that several rows continue, for use inside ``value_and_grad``.

    The first pass reads the prefixes of B pairs, right-padded. The second pass, with the :meth:`fork` of the cache,
    reads what follows them: rows b and B + b continue prefix b at its own position and see nothing of its padding.
    ``lengths`` are those of the prefixes without padding.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self.forked = False
        self.windows: set[int | None] = set()

    def fork(self) -> "PrefixCache":
        """The cache for the rows that continue the prefixes that this one holds."""
        rows = copy(self)
        rows.forked = True
        return rows

    @property
    def even(self) -> bool:
        """Returns True if all prefixes have one length, so that there is no padding to hide."""
        return len(set(self.lengths)) == 1

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token, or of the next token of each row."""
        if not self.forked:
            return 0
        return self.lengths[0] if self.even else mx.array(self.lengths * 2)

    @property
    def state(self) -> list[mx.array]:
        """The keys and values of the prefixes."""
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    @state.setter
    def state(self, value: Sequence[mx.array]) -> None:
        self.keys, self.values = value or (None, None)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values that a pass attends to; (rows, heads, tokens, dimensions) in and out."""
        if not self.forked:
            self.keys, self.values = keys, values
            return keys, values
        assert self.keys is not None
        assert self.values is not None
        return _continued(self.keys, keys), _continued(self.values, values)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any
    ) -> str | mx.array | None:
        """The attention mask for N tokens: causal, within the window, and blind to the padding of prefixes."""
        self.windows.add(window_size)
        if window_size is None and not return_array and (self.even or not self.forked):
            return "causal"
        if not self.forked:
            at = mx.arange(N)
            return _visible(at[:, None], at[None], window_size)
        lengths = mx.array(self.lengths * 2)[:, None, None, None]
        padded = max(self.lengths)
        before, after = mx.arange(padded), lengths + mx.arange(N)
        shape = (*lengths.shape[:3], padded)
        seen = mx.concatenate([mx.broadcast_to(before, shape), after], axis=-1)
        real = mx.concatenate([before < lengths, mx.ones(after.shape, mx.bool_)], axis=-1)
        return _visible(after.swapaxes(-1, -2), seen, window_size) & real


def _visible(query: mx.array, key: mx.array, window_size: int | None) -> mx.array:
    mask = query >= key
    return mask if window_size is None else mask & (query < key + window_size)


def _continued(prefix: mx.array, rest: mx.array) -> mx.array:
    """Prefixes (B, H, P, D) before the rest of two rows each (2B, H, R, D): (2B, H, P + R, D)."""
    return mx.concatenate([mx.concatenate([prefix, prefix]), rest], axis=2)
