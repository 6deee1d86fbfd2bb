"""Batches: which pairs, in which order, and as which arrays.

Where objectives were judged on different pairs, each has a data set D_i of its own. Every set gives an equal share of
each batch and begins a new order with every epoch; batches run on across epochs. For little padding, 32 batches' worth
of pairs at a time are sorted by length, and the batches cut from them are shuffled.

A batch becomes arrays in one of two forms. Every token of a sequence but the last is an input once; with sharing, the
tokens that both sequences of a pair begin with (the prompt, and more where they agree) are inputs once per pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.tokenize import UNLABELLED, TokenPair

WINDOW = 32
PAD_TOKENS = 8
PAD_TARGETS = 32
WORTH_SHARING = 0.9


@dataclass(frozen=True)
class PackedBatch:
    """B pairs as arrays: shared prefixes (B, P), then the rest of their 2B sequences (2B, R), padded on the right.

    Rows 0 … B-1 are the first responses, rows B … 2B-1 the second ones of the same pairs. Only response tokens are
    predicted; they are listed flat, N of them.

    Attributes:
        prefixes: Token ids (B, P); P is 0 where nothing is shared.
        lengths: Length of each prefix, without padding.
        inputs: Token ids (2B, R) after the prefix; R may be 0.
        positions: (N,) index of the hidden state that predicts each target, among the B · P of the prefixes and the
            2B · R that follow.
        targets: (N,) the response tokens; padded.
        members: (2B, N) float32, 1 where a target belongs to a row; 0 for padding.
        tokens: Input positions that are not padding.
    """

    prefixes: mx.array
    lengths: tuple[int, ...]
    inputs: mx.array
    positions: mx.array
    targets: mx.array
    members: mx.array
    tokens: int

    @property
    def cells(self) -> int:
        """Input positions, padding included."""
        return self.prefixes.size + self.inputs.size


@dataclass(frozen=True)
class Batch:
    """B pairs; they are packed into arrays when first asked for.

    Attributes:
        preferred: (B, k) float32, 0 or 1: the response each objective prefers.
        labelled: (B, k) float32, the weight of the pair in each objective's mean; 0 where the objective did not judge.
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
    def response_tokens(self) -> mx.array:
        """Number of tokens of each response, (2, B) float32."""
        return mx.array([[float(len(pair.rows[i]) - pair.rows[i].start) for pair in self.pairs] for i in (0, 1)])

    @cached_property
    def rows(self) -> PackedBatch:
        """The pairs as 2B separate sequences."""
        return pack_rows(self.pairs)

    @cached_property
    def shared(self) -> PackedBatch | None:
        """The pairs with their common prefixes read once; None where that does not save enough."""
        return pack_shared(self.pairs)

    def split(self, count: int) -> "list[tuple[Batch, slice]]":
        """Splits the batch into at most ``count`` micro-batches of nearly equal size, each with the pairs it holds."""
        bounds = [len(self.pairs) * i // count for i in range(count + 1)]
        slices = [slice(begin, end) for begin, end in pairwise(bounds) if begin < end]
        return [(Batch(self.pairs[s], self.preferred[s], self.labelled[s]), s) for s in slices]


def make_batch(pairs: Sequence[TokenPair], weights: NDArray[np.float64] | None = None) -> Batch:
    """Makes a batch of pairs, each with its weight if they are not all the same."""
    preferred = np.stack([pair.preferred for pair in pairs])
    labelled = (preferred != UNLABELLED).astype(np.float32)
    return Batch(
        pairs=tuple(pairs),
        preferred=mx.array((preferred == 1).astype(np.float32)),
        labelled=mx.array(labelled if weights is None else labelled * weights[:, None].astype(np.float32)),
    )


def objective_sets(pairs: Sequence[TokenPair]) -> list[NDArray[np.int_]]:
    """The data sets D_i of the objectives: the indices of the pairs that each judged; equal sets are one."""
    sets = [np.flatnonzero(judged) for judged in np.array([pair.preferred != UNLABELLED for pair in pairs]).T]
    return list({one.tobytes(): one for one in sets}.values())


def pair_weights(sets: Sequence[NDArray[np.int_]], count: int) -> NDArray[np.float64]:
    """The weights (count,) of pairs, where every set gives an equal share of a batch.

    A pair of several sets is drawn as often as all of them draw it: Σ 1 / |D_i|. With the inverse as its weight, here
    with mean 1, the mean over the pairs of a batch that an objective judged estimates the mean over its D_i.
    """
    drawn = np.zeros(count)
    for one in sets:
        drawn[one] += 1 / len(one)
    weights = 1 / drawn
    mean: NDArray[np.float64] = weights / weights.mean()
    return mean


class TrainingBatches:
    """The batches of a training run, without end; ``done`` counts them."""

    def __init__(self, pairs: Sequence[TokenPair], size: int, rng: np.random.Generator) -> None:
        self.pairs, self.done = pairs, 0
        sets = objective_sets(pairs)
        self._order = data_order([len(pair) for pair in pairs], size, rng, sets)
        self._weights = pair_weights(sets, len(pairs)) if len(sets) > 1 else None

    def __next__(self) -> Batch:
        chosen = next(self._order)
        self.done += 1
        return make_batch([self.pairs[i] for i in chosen], None if self._weights is None else self._weights[chosen])

    def skip_to(self, done: int) -> None:
        """Passes over the batches until so many are done."""
        while self.done < done:
            next(self._order)
            self.done += 1


def fixed_batches(pairs: Sequence[TokenPair], size: int, limit: int, rng: np.random.Generator) -> list[Batch]:
    """Batches for validation, sorted by length: at most ``limit`` of them, of pairs that ``rng`` chooses; -1 is all."""
    chosen = rng.permutation(len(pairs))[: limit * size if limit >= 0 else None]
    ordered = sorted((pairs[i] for i in chosen), key=len)
    return [make_batch(ordered[i : i + size]) for i in range(0, len(ordered), size)]


def data_order(
    lengths: Sequence[int], size: int, rng: np.random.Generator, sets: Sequence[NDArray[np.int_]]
) -> Iterator[list[int]]:
    """Yields the indices of the pairs of each batch, without end; a pair may be in several of the ``sets``."""
    k = len(sets)
    epochs = [_epochs(members, generator) for members, generator in zip(sets, rng.spawn(k), strict=True)]
    taken = [0] * k
    done = 0
    while True:
        # The batches of a window end with the first epoch that ends.
        left = [len(members) - count % len(members) for members, count in zip(sets, taken, strict=True)]
        count = min(WINDOW, *(max(1, int(number // (size / k))) for number in left))
        window: list[list[int]] = [[] for _ in range(count)]
        for i, epoch in enumerate(epochs):
            # The sets take turns: set i has given ⌈(n · size − i) / k⌉ pairs after n batches.
            ends = [(n * size - i + k - 1) // k - taken[i] for n in range(done, done + count + 1)]
            drawn = sorted(islice(epoch, ends[-1]), key=lengths.__getitem__)
            for batch, (first, last) in zip(window, pairwise(ends), strict=True):
                batch += drawn[first:last]
            taken[i] += ends[-1]
        done += count
        yield from (window[i] for i in reversed(rng.permutation(count)))


def _epochs(members: NDArray[np.int_], rng: np.random.Generator) -> Iterator[int]:
    """The members of a set, again and again, in a new order every time."""
    while True:
        yield from members[rng.permutation(len(members))].tolist()


def pack_rows(pairs: Sequence[TokenPair]) -> PackedBatch:
    """Packs pairs as 2B whole sequences; nothing is shared."""
    return _pack(pairs, [0] * len(pairs))


def pack_shared(pairs: Sequence[TokenPair]) -> PackedBatch | None:
    """Packs pairs with common prefixes read once; None where that saves less than a tenth of the input positions."""
    lengths = [common_prefix(pair) for pair in pairs]
    rest = max(len(pair) - length for pair, length in zip(pairs, lengths, strict=True)) - 1
    whole = 2 * (max(len(pair) for pair in pairs) - 1)
    if max(lengths) + 2 * rest > WORTH_SHARING * whole:
        return None
    return _pack(pairs, lengths)


def common_prefix(pair: TokenPair) -> int:
    """The number of input tokens that the two sequences of a pair begin with in common.

    It can be less than the prompt: a tokenizer may join its end to the beginning of a response.
    """
    first, second = (row.ids[:-1] for row in pair.rows)
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if different.size else length


def _pack(pairs: Sequence[TokenPair], lengths: Sequence[int]) -> PackedBatch:
    rows = [pair.rows[side] for side in (0, 1) for pair in pairs]
    shared = [*lengths, *lengths]
    reads = [len(row) - 1 - skipped for row, skipped in zip(rows, shared, strict=True)]
    width, rest = max(lengths), _round_up(max(reads), PAD_TOKENS)
    count = _round_up(sum(len(row) - row.start for row in rows), PAD_TARGETS)
    prefixes = np.zeros((len(pairs), width), np.int32)
    inputs = np.zeros((len(rows), rest), np.int32)
    positions, targets = np.zeros(count, np.int32), np.zeros(count, np.int32)
    members = np.zeros((len(rows), count), np.float32)
    for i, length in enumerate(lengths):
        prefixes[i, :length] = rows[i].ids[:length]
    done = 0
    for i, (row, skipped) in enumerate(zip(rows, shared, strict=True)):
        inputs[i, : reads[i]] = row.ids[skipped:-1]
        end = done + len(row) - row.start
        before = np.arange(row.start - 1, len(row) - 1)
        in_prefix = (i % len(pairs)) * width + before
        in_rest = prefixes.size + i * rest + before - skipped
        positions[done:end] = np.where(before < skipped, in_prefix, in_rest)
        targets[done:end] = row.ids[row.start :]
        members[i, done:end] = 1
        done = end
    return PackedBatch(
        prefixes=mx.array(prefixes),
        lengths=tuple(lengths),
        inputs=mx.array(inputs),
        positions=mx.array(positions),
        targets=mx.array(targets),
        members=mx.array(members),
        tokens=sum(lengths) + sum(reads),
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
