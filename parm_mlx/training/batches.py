"""Batches: which pairs, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import mlx.core as mx
import numpy as np

from parm_mlx.training.layout import Layout, separate_rows, shared_prefixes
from parm_mlx.training.tokenize import UNLABELLED, TokenPair

BUCKET_BATCHES = 32


@dataclass(frozen=True)
class Batch:
    """B pairs; their arrays are laid out when first asked for.

    Attributes:
        pairs: The pairs.
        preferred: (B, k) float32, 0 or 1: the response each objective prefers.
        labelled: (B, k) float32, 1 where the objective judged the pair.
    """

    pairs: tuple[TokenPair, ...]
    preferred: mx.array
    labelled: mx.array

    @property
    def where(self) -> tuple[str, ...]:
        """File and line of each pair."""
        return tuple(pair.where for pair in self.pairs)

    @property
    def tokens(self) -> int:
        """Number of tokens in the 2B sequences, without padding."""
        return sum(len(row) for pair in self.pairs for row in pair.rows)

    @cached_property
    def rows(self) -> Layout:
        """The pairs as 2B separate sequences."""
        return separate_rows(self.pairs)

    @cached_property
    def shared(self) -> Layout | None:
        """The pairs with what both responses begin with read once, where that saves enough."""
        return shared_prefixes(self.pairs)

    def parts(self, count: int) -> "list[tuple[Batch, slice]]":
        """Splits the batch into at most ``count`` batches of nearly equal size, each with the pairs it holds."""
        bounds = [len(self.pairs) * i // count for i in range(count + 1)]
        slices = [slice(begin, end) for begin, end in pairwise(bounds) if begin < end]
        return [(Batch(self.pairs[s], self.preferred[s], self.labelled[s]), s) for s in slices]


def make_batch(pairs: Sequence[TokenPair]) -> Batch:
    """Makes a batch of pairs."""
    preferred = np.stack([pair.preferred for pair in pairs])
    return Batch(
        pairs=tuple(pairs),
        preferred=mx.array((preferred == 1).astype(np.float32)),
        labelled=mx.array((preferred != UNLABELLED).astype(np.float32)),
    )


def training_order(lengths: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yields the pairs of each batch without end: each pair once per epoch, in a new order every epoch.

    Batches hold pairs of similar length, so that there is little padding: 32 batches' worth of pairs at a time are
    sorted by length, and the batches cut from them are shuffled. What an epoch leaves over runs on into the next one.

    Args:
        lengths: Length of each pair.
        size: Pairs per batch, shortest first.
        rng: Decides the order.
    """
    left_over: list[int] = []
    while True:
        order = rng.permutation(len(lengths)).tolist()
        if left_over:
            missing = size - len(left_over)
            left_over, order = left_over + order[:missing], order[missing:]
            if len(left_over) < size:
                continue
            yield _by_length(left_over, lengths)
        full = len(order) // size * size
        order, left_over = order[:full], order[full:]
        for begin in range(0, full, BUCKET_BATCHES * size):
            window = _by_length(order[begin : begin + BUCKET_BATCHES * size], lengths)
            for batch in rng.permutation(len(window) // size):
                yield window[batch * size : (batch + 1) * size]


def training_batches(pairs: Sequence[TokenPair], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yields batches without end, in the order of :func:`training_order`."""
    for chosen in training_order([len(pair) for pair in pairs], size, rng):
        yield make_batch([pairs[i] for i in chosen])


def fixed_batches(pairs: Sequence[TokenPair], size: int, limit: int, rng: np.random.Generator) -> list[Batch]:
    """Batches for validation: the same pairs at every evaluation, those of similar length together.

    Args:
        pairs: The validation pairs.
        size: Pairs per batch; the last batch may be smaller.
        limit: Most batches, -1 for all.
        rng: Chooses the pairs when not all are used.
    """
    chosen = rng.permutation(len(pairs))[: limit * size if limit >= 0 else None]
    ordered = sorted((pairs[i] for i in chosen), key=len)
    return [make_batch(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def _by_length(indices: list[int], lengths: Sequence[int]) -> list[int]:
    return sorted(indices, key=lambda i: lengths[i])
