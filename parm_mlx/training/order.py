"""The order of the training pairs: which are in the next batch, with a position that can be saved."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class DataOrder:
    """Gives the indices of each batch without end.

    Each pair comes once per epoch, in a new order, and batches run on across epochs. The position is where the current
    epoch stands and how its order was drawn: a few numbers, however many pairs there are.

    Args:
        count: Number of pairs.
        size: Pairs per batch.
        rng: Draws the orders.
    """

    def __init__(self, count: int, size: int, rng: np.random.Generator) -> None:
        self.count, self.size, self.rng = count, size, rng
        self.epoch = 0
        self._drawn_from: Any = rng.bit_generator.state
        self._waiting: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from here on."""
        return self

    def __next__(self) -> list[int]:
        """The indices of the next batch."""
        while len(self._waiting) < self.size:
            self._waiting.extend(self._draw())
        chosen, self._waiting = self._waiting[: self.size], self._waiting[self.size :]
        return chosen

    def state(self) -> dict[str, Any]:
        """The position, as plain values: epoch (from 1), pairs of it done, and the random state that it started with.

        What is left over belongs to one epoch: a batch uses up every earlier one.
        """
        return {"epoch": self.epoch, "pairs_done": self.count - len(self._waiting), "rng": self._drawn_from}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to the position that :meth:`state` gave."""
        self.rng.bit_generator.state = state["rng"]
        self._waiting = self._draw()[state["pairs_done"] :] if state["epoch"] else []
        self.epoch = state["epoch"]

    def _draw(self) -> list[int]:
        self.epoch += 1
        self._drawn_from = self.rng.bit_generator.state
        order: list[int] = self.rng.permutation(self.count).tolist()
        return order
