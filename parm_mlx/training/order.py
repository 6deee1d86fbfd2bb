"""The order of the training pairs: which are in the next batch, with a position that can be saved."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW = 32


class DataOrder:
    """Gives the indices of each batch without end.

    Every data set gives an equal share of each batch, and each of its pairs comes once per epoch of that set, in a new
    order every epoch; batches run on across epochs. Batches hold pairs of similar length, so that there is little
    padding: 32 batches' worth of pairs at a time are sorted by length, and the batches cut from them are shuffled.

    The position is where each epoch stands and how its order was drawn: a few numbers, however many pairs there are.

    Args:
        lengths: Length of each pair.
        size: Pairs per batch.
        rng: Draws the orders.
        sets: The data sets, as indices of pairs; a pair may be in several.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        size: int,
        rng: np.random.Generator,
        sets: Sequence[NDArray[np.int_]],
    ) -> None:
        self.lengths, self.size, self.rng = lengths, size, rng
        self.epochs = [_Epochs(one, generator) for one, generator in zip(sets, rng.spawn(len(sets)), strict=True)]
        self.batches = 0
        self._window: list[list[int]] = []
        self._begun = self._position()

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from here on."""
        return self

    def __next__(self) -> list[int]:
        """The indices of the next batch."""
        if not self._window:
            self._open_window()
        self.batches += 1
        return self._window.pop()

    def state(self) -> dict[str, Any]:
        """The position, as plain values: the number of batches done, and where the window of batches was opened."""
        return {"batches": self.batches, "window": self._begun}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to the position that :meth:`state` gave."""
        begun = state["window"]
        self.rng.bit_generator.state = begun["rng"]
        for epochs, position in zip(self.epochs, begun["epochs"], strict=True):
            epochs.restore(position)
        self.batches = begun["batches"]
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
        self._begun = self._position()
        share = self.size / len(self.epochs)
        count = min(WINDOW, *(max(1, int(epochs.left // share)) for epochs in self.epochs))
        window: list[list[int]] = [[] for _ in range(count)]
        for number, epochs in enumerate(self.epochs):
            sizes = [self._share(self.batches + i, number) for i in range(count)]
            taken = sorted(epochs.take(sum(sizes)), key=self.lengths.__getitem__)
            for batch, size in zip(window, sizes, strict=True):
                batch += taken[:size]
                del taken[:size]
        self._window = [window[i] for i in self.rng.permutation(count)]

    def _share(self, batch: int, number: int) -> int:
        """How many pairs of a batch come from set ``number``: the sets take turns."""
        count = len(self.epochs)
        first, last = batch * self.size, (batch + 1) * self.size
        return (last - number + count - 1) // count - (first - number + count - 1) // count


class _Epochs:
    """The members of one set, again and again, in a new order every time."""

    def __init__(self, members: NDArray[np.int_], rng: np.random.Generator) -> None:
        self.members, self.rng = members, rng
        self._done = 0
        self._draw()

    @property
    def left(self) -> int:
        """Members that are left of the epoch, which is never finished: the next one begins at once."""
        return len(self._order) - self._done

    def take(self, count: int) -> list[int]:
        """The next members."""
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
