"""One layer's entry in the prompt caches of base and guide, where both are rows of the same model."""

from collections.abc import Sequence
from typing import Any

from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import _BaseCache

from parm_mlx.mlxlm.caches import batched, joined, row_of

STEP = 64  # positions that a batch's keys and values grow by: all of them are copied when a sequence ends or joins


class PairCache(_BaseCache):
    """One layer's keys and values (or states) for the base and the guide of every sequence.

    Held together, it is one of mlx-lm's entries with two rows per sequence: 2i for the base and 2i + 1 for the guide of
    sequence i. Held apart, which only one sequence can be, it is an entry for each. A model that runs both rows at once
    needs pairs together; a model that reads into one of them, apart. To mlx-lm's generators a pair is an entry like any
    other, and sequences are what it counts.

    Attributes:
        parts: The entry for both, or that of the base and that of the guide.
    """

    def __init__(self, *parts: Any) -> None:
        self.parts = parts
        self._never_together = False
        self._in_batch = False

    @property
    def together(self) -> Any:
        """The entry with the rows of both; the pair must be held together."""
        assert len(self.parts) == 1
        return self.parts[0]

    def is_alone(self) -> bool:
        """Returns True if this is the pair of one sequence that is not in a batch."""
        return not self._in_batch

    def part(self) -> tuple[Any, ...]:
        """Holds the pair apart, and returns the base's and the guide's entry, which may be read into."""
        if len(self.parts) == 1:
            self.parts = (row_of(self.parts[0], 0), row_of(self.parts[0], 1))
        self._never_together = False
        return self.parts

    @staticmethod
    def join(pairs: Sequence["PairCache"]) -> bool:
        """Holds the pairs of all layers together and returns True, if that is possible.

        If not, all are held apart: mlx-lm has no entry for two rows of this kind and of different lengths.
        """
        if all(len(pair.parts) == 1 for pair in pairs):
            return True
        if all(pair._never_together for pair in pairs):
            return False
        both = [joined(pair.part()) for pair in pairs]
        possible = all(entry is not None for entry in both)
        for pair, entry in zip(pairs, both, strict=True):
            pair._never_together = not possible
            if possible:
                pair.parts = (entry,)
        return possible

    @property
    def state(self) -> list[Any]:
        """The states of the entries that the pair consists of, each with its kind."""
        return [(entry.state, type(entry).__name__) for entry in self.parts]

    @state.setter
    def state(self, value: Sequence[Any]) -> None:
        self.parts = tuple(getattr(mlx_cache, kind).from_state(state) for state, kind in value)
        self._never_together = False

    @property
    def offset(self) -> Any:
        """Position of the next token of the base."""
        return self.parts[0].offset

    @property
    def to_quantized(self) -> Any:
        """Makes a pair of quantised entries; missing where the entries have no quantised form."""
        convert = [entry.to_quantized for entry in self.parts]

        return lambda **settings: PairCache(*(each(**settings) for each in convert))

    def is_trimmable(self) -> bool:
        """Returns True if tokens can be taken back."""
        return all(entry.is_trimmable() for entry in self.parts)

    def trim(self, n: int) -> int:
        """Takes back n tokens of both; returns how many there were."""
        return int(min(entry.trim(n) for entry in self.parts))

    def size(self) -> int:
        """Tokens held."""
        return int(max(entry.size() for entry in self.parts))

    def empty(self) -> bool:
        """Returns True if nothing was read yet."""
        return all(entry.empty() for entry in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return int(sum(entry.nbytes for entry in self.parts))

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keeps the sequences at these indices, in place."""
        self.together.filter([row for i in batch_indices for row in (2 * i, 2 * i + 1)])

    def extend(self, other: "PairCache") -> None:
        """Adds the sequences of another pair, in place."""
        self.together.extend(other.together)

    def extract(self, idx: int) -> "PairCache":
        """The pair of one sequence."""
        return PairCache(row_of(self.together, 2 * idx), row_of(self.together, 2 * idx + 1))

    @classmethod
    def merge(cls, caches: Sequence["PairCache"]) -> "PairCache":
        """One pair for the sequences of all, of one sequence each."""
        rows = [entry for pair in caches for entry in pair.part()]
        together = batched(rows)
        if together is None:
            raise ValueError(f"{type(rows[0]).__name__} holds one sequence only, so it cannot be batched")
        if isinstance(together, mlx_cache.BatchKVCache):
            together.step = STEP
        batch = cls(together)
        batch._in_batch = True
        return batch

    def prepare(self, **lists: Any) -> None:
        """Announces padding, given per sequence."""
        double = {
            name: None if values is None else [v for v in values for _ in (0, 1)] for name, values in lists.items()
        }
        self.together.prepare(**double)

    def finalize(self) -> None:
        """Ends what :meth:`prepare` announced."""
        self.together.finalize()
