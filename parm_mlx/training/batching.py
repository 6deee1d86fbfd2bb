"""Batches: which pairs, and in which order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.tokenize import UNLABELLED, TokenPair
from parm_mlx.training.order import DataOrder
from parm_mlx.training.packing import Layout, separate_rows, shared_prefixes


@dataclass(frozen=True)
class Batch:
    """B pairs; their arrays are laid out when first asked for.

    Attributes:
        pairs: The pairs.
        preferred: (B, k) float32, 0 or 1: the response each objective prefers.
        labelled: (B, k) float32, the weight of the pair in each objective's mean, 0 where the objective did not judge
            it. Without data sets of their own, every weight is 1.
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
    """The weight of each pair where every set gives an equal share of a batch.

    A pair of several sets serves all its objectives, and is drawn as often as all of them draw it: Σ 1 / |D_i|. The
    inverse, here with mean 1, makes the mean over the pairs of a batch that an objective judged estimate the mean over
    its D_i.

    Args:
        sets: The sets, which together hold every pair.
        count: Number of pairs.

    Returns:
        (count,).
    """
    drawn = np.zeros(count)
    for one in sets:
        drawn[one] += 1 / len(one)
    weights = 1 / drawn
    mean: NDArray[np.float64] = weights / weights.mean()
    return mean


class TrainingBatches:
    """The batches of a training run, without end; nothing is drawn ahead.

    Args:
        pairs: The training pairs. Where objectives have different data sets, each set gives an equal share of a batch.
        size: Pairs per batch.
        rng: Draws the order.

    Attributes:
        order: Which pairs come when; its position can be saved.
    """

    def __init__(self, pairs: Sequence[TokenPair], size: int, rng: np.random.Generator) -> None:
        self.pairs = pairs
        sets = objective_sets(pairs)
        self.order = DataOrder([len(pair) for pair in pairs], size, rng, sets)
        self._weights = pair_weights(sets, len(pairs)) if len(sets) > 1 else None

    def __iter__(self) -> Iterator[Batch]:
        """The batches from here on."""
        return self

    def __next__(self) -> Batch:
        """The next batch."""
        chosen = next(self.order)
        return make_batch([self.pairs[i] for i in chosen], None if self._weights is None else self._weights[chosen])


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
