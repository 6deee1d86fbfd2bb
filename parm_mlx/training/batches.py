"""Batches: which pairs, in which order, laid out as arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from parm_mlx.training.tokenize import UNLABELLED, TokenPair

PAD_TOKENS = 8
PAD_TARGETS = 32


@dataclass(frozen=True)
class Batch:
    """B pairs as arrays. Rows 0 … B-1 are the first responses, rows B … 2B-1 the second ones of the same pairs.

    Only response tokens are predicted; they are listed flat, N of them (padded, with weight 0 on padding).

    Attributes:
        inputs: Token ids (2B, L), right-padded; the last token of a sequence is never an input.
        positions: (N,) index into the flattened (2B · L) inputs after which each response token comes.
        targets: (N,) the response tokens.
        members: (2B, N) float32, 1 where a target belongs to a row.
        preferred: (B, k) float32, 0 or 1: the response each objective prefers.
        labelled: (B, k) float32, 1 where the objective judged the pair.
        where: File and line of each pair.
        tokens: Number of tokens in the sequences, without padding.
    """

    inputs: mx.array
    positions: mx.array
    targets: mx.array
    members: mx.array
    preferred: mx.array
    labelled: mx.array
    where: tuple[str, ...]
    tokens: int


def make_batch(pairs: Sequence[TokenPair]) -> Batch:
    """Lays out pairs as arrays."""
    rows = [pair.rows[side] for side in (0, 1) for pair in pairs]
    length = _round_up(max(len(row) for row in rows) - 1, PAD_TOKENS)
    count = sum(len(row) - row.start for row in rows)
    padded = _round_up(count, PAD_TARGETS)
    inputs = np.zeros((len(rows), length), np.int32)
    positions, targets = np.zeros(padded, np.int32), np.zeros(padded, np.int32)
    members = np.zeros((len(rows), padded), np.float32)
    done = 0
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = row.ids[:-1]
        end = done + len(row) - row.start
        positions[done:end] = i * length + np.arange(row.start - 1, len(row) - 1)
        targets[done:end] = row.ids[row.start :]
        members[i, done:end] = 1
        done = end
    preferred = np.stack([pair.preferred for pair in pairs])
    return Batch(
        inputs=mx.array(inputs),
        positions=mx.array(positions),
        targets=mx.array(targets),
        members=mx.array(members),
        preferred=mx.array((preferred == 1).astype(np.float32)),
        labelled=mx.array((preferred != UNLABELLED).astype(np.float32)),
        where=tuple(pair.where for pair in pairs),
        tokens=sum(len(row) for row in rows),
    )


def training_batches(pairs: Sequence[TokenPair], order: Iterator[list[int]]) -> Iterator[Batch]:
    """Yields the batches of an order without end; nothing is drawn ahead."""
    for chosen in order:
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


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
