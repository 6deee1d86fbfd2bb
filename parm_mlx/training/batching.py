"""Batches: which pairs, and in which order.

Where objectives were judged on different pairs, each has a data set D_i of its own. Every set gives an equal share of
each batch, and each of its pairs comes once per epoch of that set, in a new order every epoch; batches run on across
epochs. Batches hold pairs of similar length, so that there is little padding: 32 batches' worth of pairs at a time are
sorted by length, and the batches cut from them are shuffled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.tokenize import UNLABELLED, TokenPair
from parm_mlx.training.packing import PackedBatch, pack_rows, pack_shared

WINDOW = 32


@dataclass(frozen=True)
class Batch:
    """B pairs; they are packed into arrays when first asked for.

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
    def rows(self) -> PackedBatch:
        """The pairs as 2B separate sequences."""
        return pack_rows(self.pairs)

    @cached_property
    def shared(self) -> PackedBatch | None:
        """The pairs with what both responses begin with read once, where that saves enough."""
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


def longest_batch(pairs: Sequence[TokenPair], size: int) -> Batch:
    """The batch of the longest pairs, again and again where there are fewer."""
    return make_batch(list(islice(cycle(sorted(pairs, key=len, reverse=True)), size)))


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
        pairs: The training pairs.
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


class DataOrder:
    """The indices of each batch, without end.

    The position is where each epoch stands and how its order was drawn: a few numbers, however many pairs there are.

    Args:
        lengths: Length of each pair.
        size: Pairs per batch.
        rng: Draws the orders.
        sets: The data sets, as indices of pairs; a pair may be in several.
    """

    def __init__(
        self, lengths: Sequence[int], size: int, rng: np.random.Generator, sets: Sequence[NDArray[np.int_]]
    ) -> None:
        self.lengths, self.size, self.rng = lengths, size, rng
        self.epochs = [_Epochs(one, generator) for one, generator in zip(sets, rng.spawn(len(sets)), strict=True)]
        self.batches = 0
        self._window: list[list[int]] = []
        self._opened_at = self._position()

    def __next__(self) -> list[int]:
        """The indices of the next batch."""
        if not self._window:
            self._open_window()
        self.batches += 1
        return self._window.pop()

    def state(self) -> dict[str, Any]:
        """The position, as plain values: the number of batches done, and where the window of batches was opened."""
        return {"batches": self.batches, "window": self._opened_at}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to the position that :meth:`state` gave."""
        opened_at = state["window"]
        self.rng.bit_generator.state = opened_at["rng"]
        for epochs, position in zip(self.epochs, opened_at["epochs"], strict=True):
            epochs.restore(position)
        self.batches = opened_at["batches"]
        self._open_window()
        while self.batches < state["batches"]:
            next(self)

    def _position(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "rng": self.rng.bit_generator.state,
            "epochs": [epochs.state() for epochs in self.epochs],
        }

    def _open_window(self) -> None:
        """Draws the batches up to the end of an epoch, at most WINDOW of them."""
        self._opened_at = self._position()
        share = self.size / len(self.epochs)
        count = min(WINDOW, *(max(1, int(epochs.left // share)) for epochs in self.epochs))
        window: list[list[int]] = [[] for _ in range(count)]
        for i, epochs in enumerate(self.epochs):
            sizes = [self._share(self.batches + batch, i) for batch in range(count)]
            taken = sorted(epochs.take(sum(sizes)), key=self.lengths.__getitem__)
            for batch, size in zip(window, sizes, strict=True):
                batch += taken[:size]
                del taken[:size]
        self._window = [window[i] for i in self.rng.permutation(count)]

    def _share(self, batch: int, i: int) -> int:
        """Returns how many pairs of a batch come from set i: the sets take turns."""
        count = len(self.epochs)
        first, last = batch * self.size, (batch + 1) * self.size
        return (last - i + count - 1) // count - (first - i + count - 1) // count


class _Epochs:
    """The members of one set, again and again, in a new order every time."""

    def __init__(self, members: NDArray[np.int_], rng: np.random.Generator) -> None:
        self.members, self.rng, self._done = members, rng, 0
        self._draw()

    @property
    def left(self) -> int:
        """Members that are left of the epoch; never 0, since the next epoch begins at once."""
        return len(self._order) - self._done

    def take(self, count: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < count:
            more = self._order[self._done : self._done + count - len(taken)]
            taken += more
            self._done += len(more)
            if not self.left:
                self._draw()
        return taken

    def state(self) -> dict[str, Any]:
        return {"done": self._done, "rng": self._drawn_from}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self._draw()
        self._done = state["done"]

    def _draw(self) -> None:
        self._drawn_from = self.rng.bit_generator.state
        self._order: list[int] = self.members[self.rng.permutation(len(self.members))].tolist()
        self._done = 0
