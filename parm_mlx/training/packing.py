"""How the pairs of a batch become arrays, with or without sharing what both responses begin with.

Every token of a sequence but the last is an input once. With sharing, the tokens that the two sequences of a pair have
in common (the prompt, and whatever both responses begin with) are inputs once per pair and not once per response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from parm_mlx.data.tokenize import TokenPair

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
