"""Which rows are the same pair: found in one reading, with a few bytes for each row and none of the texts."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.pairs import Pair
from parm_mlx.data.tokenize import UNLABELLED

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Keys = NDArray[np.bytes_]


@dataclass(frozen=True)
class Merged:
    """N rows as P pairs. A pair's labels are those of all its rows.

    Two labels of one objective for one pair that contradict each other say nothing; both are dropped, and so is a pair
    without any label left.

    Attributes:
        keys: (N,) the key of each row's pair.
        prompts: (N,) the key of each row's prompt.
        pair: (N,) the number of each row's pair; -1 where both responses are equal.
        first: (N,) whether it is the first row of its pair.
        swapped: (N,) whether the row has the responses in the other order than its pair's labels count them in.
        labels: (P, k) int8: 0 or 1, the response that each objective prefers; -1 where none is left.
        clashes: (P, k) where the labels of a pair contradict each other.
        leads: (P, k) margins of the labels, of the first row that has one; NaN where none is known.
    """

    keys: Keys
    prompts: Keys
    pair: Numbers
    first: Mask
    swapped: Mask
    labels: NDArray[np.int8]
    clashes: Mask
    leads: NDArray[np.float64]

    @property
    def contradictions(self) -> Numbers:
        """(k,) of how many pairs the labels contradict each other."""
        count: Numbers = self.clashes.sum(axis=0)
        return count

    @property
    def equal(self) -> int:
        """Rows whose responses are equal."""
        return int(np.count_nonzero(self.pair < 0))

    @property
    def repeated(self) -> Mask:
        """(N,) the rows that are of the same pair as an earlier one, and merged with it."""
        mask: Mask = (self.pair >= 0) & ~self.first
        return mask

    @property
    def unlabelled(self) -> Mask:
        """(N,) the first rows of pairs without any label left."""
        return self._first_rows((self.labels == UNLABELLED).all(axis=1))

    @property
    def unjudged(self) -> Mask:
        """(N,) those of them that never had a label of the objectives."""
        return self._first_rows((self.labels == UNLABELLED).all(axis=1) & ~self.clashes.any(axis=1))

    def _first_rows(self, pairs: Mask) -> Mask:
        mask: Mask = self.first.copy()
        mask[self.first] = pairs
        return mask

    @property
    def kept(self) -> Mask:
        """(N,) the rows to read for the pairs that can be learned from: the first of each."""
        mask: Mask = self.first & ~self.unlabelled
        return mask

    def preferred(self, row: int, objectives: Sequence[str]) -> dict[str, int]:
        """The labels of a row's pair, in the row's own order of the responses."""
        swapped = int(self.swapped[row])
        labels = zip(objectives, self.labels[self.pair[row]].tolist(), strict=True)
        return {name: label ^ swapped for name, label in labels if label != UNLABELLED}

    def margins(self, row: int, objectives: Sequence[str]) -> dict[str, float]:
        """The margins of the labels of a row's pair, as far as they are known."""
        leads = zip(objectives, self.leads[self.pair[row]].tolist(), strict=True)
        return {name: lead for name, lead in leads if not math.isnan(lead)}


class Ledger:
    """Takes down what the rows are.

    Attributes:
        labels: For each objective, how many rows it judged.
    """

    def __init__(self) -> None:
        self._keys, self._prompts, self._equal, self._swapped = (bytearray() for _ in range(4))
        self._names: dict[str, int] = {}
        self._judged, self._codes, self._margins = array("q"), array("q"), array("d")
        self.labels: dict[str, int] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._equal)

    def add(self, pair: Pair) -> None:
        """Adds a row."""
        swapped = pair.swapped
        for name, label in pair.preferred.items():
            self.labels[name] = self.labels.get(name, 0) + 1
            self._judged.append(len(self))
            self._codes.append(2 * self._names.setdefault(name, len(self._names)) + (label ^ swapped))
            self._margins.append(pair.margins.get(name, math.nan))
        self._keys += pair.key
        self._prompts += pair.prompt_key
        self._equal.append(pair.undecidable)
        self._swapped.append(swapped)

    def merge(self, objectives: Sequence[str]) -> Merged:
        """Puts the rows together.

        Args:
            objectives: The k objectives; labels of others do not count.
        """
        keys = np.frombuffer(bytes(self._keys), "S16")
        equal, swapped = (np.frombuffer(bytes(flags), np.bool_) for flags in (self._equal, self._swapped))
        pair, first = np.full(len(self), -1), np.zeros(len(self), np.bool_)
        pair[~equal], begins = number(keys[~equal])
        first[np.flatnonzero(~equal)[begins]] = True

        rows, codes = (np.frombuffer(values, np.int64) for values in (self._judged.tobytes(), self._codes.tobytes()))
        column = np.array([objectives.index(name) if name in objectives else -1 for name in self._names], np.int64)
        counts = ~equal[rows] & (column[codes // 2] >= 0)
        rows, codes, margins = rows[counts], codes[counts], np.array(self._margins)[counts]
        votes = np.zeros((len(begins), len(objectives), 2), np.bool_)
        votes[pair[rows], column[codes // 2], codes % 2] = True
        labels = np.where(votes[..., 0] ^ votes[..., 1], votes[..., 1].astype(np.int8), np.int8(UNLABELLED))
        known = np.flatnonzero(~np.isnan(margins))[::-1]
        leads = np.full(labels.shape, np.nan)
        leads[pair[rows[known]], column[codes[known] // 2]] = margins[known]
        leads[labels == UNLABELLED] = np.nan
        prompts = np.frombuffer(bytes(self._prompts), "S16")
        return Merged(keys, prompts, pair, first, swapped, labels, votes[..., 0] & votes[..., 1], leads)


def number(keys: Keys) -> tuple[Numbers, Numbers]:
    """Numbers what occurs in order of first appearance.

    Args:
        keys: (N,).

    Returns:
        (N,) the number of each, and where each number occurs first.
    """
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse], first[order]


def merge_notes(equal: int, repeated: int, contradictions: Mapping[str, int], unjudged: int = 0) -> list[str]:
    """What a user should know about rows that are no pairs of their own, one line each.

    Args:
        equal: Rows whose responses are equal.
        repeated: Rows that are merged with an earlier one.
        contradictions: For each objective, of how many pairs the labels contradict each other.
        unjudged: Pairs without a label for any of the objectives.
    """
    notes = []
    if unjudged:
        notes.append(f"{unjudged} pairs are left out: they have no label for {', '.join(contradictions)}")
    if equal:
        notes.append(f"{equal} pairs are left out: both responses are equal")
    if repeated:
        notes.append(f"{repeated} rows are of the same pair as an earlier row and merged with it")
    if any(contradictions.values()):
        named = ", ".join(f"{name} ({count})" for name, count in contradictions.items() if count)
        notes.append(f"labels of one pair that contradict each other are dropped: {named}")
    return notes
