"""What a guide of another vocabulary has read of every sequence, as an entry of its prompt cache."""

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, _BaseCache


class ReadSequence:
    """One sequence: the symbols that were read, and the guide's keys and values of its own tokens for them.

    Attributes:
        symbols: Tokens of the guide's own, and of the base's, told apart by their size.
        tokens: The guide's tokens that ``entries`` hold.
        entries: Keys and values, one entry per layer.
        points: What the symbols came to, one for each; fewer after loading, and to be found again then.
        committed: The guide's tokens that the symbols came to for good.
        known: What was computed after tokens, by their index.
        fork: What was computed after the tokens beside them.
    """

    def __init__(self, entries: Sequence[Any]) -> None:
        self.symbols: list[int] = []
        self.tokens: list[int] = []
        self.entries = list(entries)
        self.points: list[Any] = []
        self.committed: list[int] = []
        self.known: dict[int, Any] = {}
        self.fork: Any = None

    def trim(self, n: int) -> None:
        """Takes back the last n symbols; keys and values stay until others take their place."""
        if n:
            del self.symbols[-n:]
            del self.points[len(self.symbols) :]
            del self.committed[self.points[-1].committed if self.points else 0 :]
            self.known, self.fork = {}, None

    def keep(self, tokens: int) -> None:
        """Drops the keys and values of all but the first tokens."""
        for entry in self.entries:
            entry.trim(len(self.tokens) - tokens)
        del self.tokens[tokens:]
        self.known = {i: each for i, each in self.known.items() if i < tokens}

    def __deepcopy__(self, memo: Any) -> "ReadSequence":
        other = ReadSequence(deepcopy(self.entries, memo))
        other.symbols, other.tokens = [*self.symbols], [*self.tokens]
        other.points, other.committed, other.known = [*self.points], [*self.committed], {**self.known}
        return other


class AcrossCache(_BaseCache):
    """The sequences of a batch, each with keys and values of its own, for mlx-lm to merge, filter and take out."""

    def __init__(self, sequences: Sequence[ReadSequence]) -> None:
        self.sequences = list(sequences)
        self.bound: dict[Any, Any] = {}

    @property
    def state(self) -> list[Any]:
        """For each sequence its symbols, its tokens, and the states of its entries."""
        return [
            [
                mx.array([0, *each.symbols], mx.int32),
                mx.array([0, *each.tokens], mx.int32),
                [e.state for e in each.entries],
            ]
            for each in self.sequences
        ]

    @state.setter
    def state(self, value: Sequence[Any]) -> None:
        self.sequences, self.bound = [], {}
        for symbols, tokens, entries in value:
            sequence = ReadSequence([KVCache.from_state(state) for state in entries])
            sequence.symbols, sequence.tokens = symbols.tolist()[1:], tokens.tolist()[1:]
            self.sequences.append(sequence)

    def is_trimmable(self) -> bool:
        """True: every symbol can be taken back."""
        return True

    def trim(self, n: int) -> int:
        """Takes back n symbols of every sequence."""
        for sequence in self.sequences:
            sequence.trim(n)
        return n

    def size(self) -> int:
        """Symbols read."""
        return max((len(sequence.symbols) for sequence in self.sequences), default=0)

    def empty(self) -> bool:
        """Returns True if nothing was read yet."""
        return self.size() == 0

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return int(sum(entry.nbytes for sequence in self.sequences for entry in sequence.entries))

    def filter(self, batch_indices: Any) -> None:
        """Keeps the sequences at these indices, in place."""
        indices: Any = batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices
        self.sequences, self.bound = [self.sequences[i] for i in indices], {}

    def extend(self, other: "AcrossCache") -> None:
        """Adds the sequences of another entry, in place."""
        self.sequences, self.bound = [*self.sequences, *other.sequences], {}

    def extract(self, idx: int) -> "AcrossCache":
        """The entry of one sequence, without what was computed beside its tokens."""
        sequence = copy(self.sequences[idx])
        sequence.known, sequence.fork = {}, None
        return AcrossCache([sequence])

    @classmethod
    def merge(cls, caches: "Sequence[AcrossCache]") -> "AcrossCache":
        """One entry for the sequences of all."""
        return cls([sequence for cache in caches for sequence in cache.sequences])

    def prepare(self, **_: Any) -> None:
        """Does nothing: there is no padding."""

    def finalize(self) -> None:
        """Does nothing: there is no padding."""

    def __deepcopy__(self, memo: Any) -> "AcrossCache":
        return AcrossCache([deepcopy(each, memo) for each in self.sequences])


class ForkedEntry:
    """One layer's keys and values for rows that go on after the first tokens of sequences, which are left as they are.

    Args:
        entries: For each row, the entry of its sequence.
        lengths: For each row, the number of tokens of it that the row follows.

    Attributes:
        keys, values: Of the rows themselves, once they are read.
    """

    def __init__(self, entries: Sequence[KVCache], lengths: Sequence[int]) -> None:
        self._entries, self._lengths = entries, lengths
        self._longest = max(lengths)
        self._even = min(lengths) == self._longest
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token, or of the next token of each row."""
        return self._longest if self._even else mx.array([*self._lengths])

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None, **_: Any
    ) -> str | mx.array | None:
        """The attention mask for N tokens: causal, and blind to the padding on the left."""
        if self._even and not return_array and window_size is None:
            return "causal" if N > 1 else None
        padding = None if self._even else mx.array([self._longest - length for length in self._lengths])
        mask: mx.array = create_causal_mask(N, self._longest, window_size=window_size, left_padding=padding)
        return mask

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values that the rows attend to; (rows, heads, tokens, dimensions) in and out."""
        self.keys, self.values = keys, values
        return self._after("keys", keys), self._after("values", values)

    def _after(self, name: str, new: mx.array) -> mx.array:
        if not self._longest:
            return new
        first = self._entries[0]
        if all(entry is first for entry in self._entries):
            held = getattr(first, name)[..., : self._longest, :]
            return mx.concatenate([mx.broadcast_to(held, (len(self._entries), *held.shape[1:])), new], axis=2)
        rows = []
        for entry, length in zip(self._entries, self._lengths, strict=True):
            held = getattr(entry, name)
            held = new[:1, :, :0] if held is None else held[..., :length, :]
            padding = [(0, 0), (0, 0), (self._longest - length, 0), (0, 0)]
            rows.append(held if length == self._longest else mx.pad(held, padding))
        return mx.concatenate([mx.concatenate(rows), new], axis=2)

    def write(self, row: int, start: int, stop: int) -> None:
        """Adds what a row has read from one of its tokens to another to the entry of its sequence."""
        assert self.keys is not None
        assert self.values is not None
        part = (slice(row, row + 1), slice(None), slice(start, stop))
        self._entries[row].update_and_fetch(self.keys[part], self.values[part])


def are_plain(cache: Sequence[Any]) -> bool:
    """Returns True if all entries are plain keys and values, which rows can be forked from and tokens taken back."""
    return all(type(entry) is KVCache for entry in cache)
