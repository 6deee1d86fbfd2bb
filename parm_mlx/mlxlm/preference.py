"""The preference of every sequence, and how strongly it is guided, as an entry of its prompt cache."""

from collections.abc import Callable, Sequence
from threading import Thread, current_thread
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import _BaseCache

NO_TOKEN = -1


class PreferenceCache(_BaseCache):
    """The preference vectors (B, k) of a batch of sequences, and 1/β of each, as an entry of their prompt cache.

    mlx-lm merges, extends, filters and splits it together with the key-value caches, so every sequence keeps its own.

    Attributes:
        alpha: (B, k).
        strength: 1/β of Eq. 13, (B,); where it is 0, the base answers alone. Setting it drops what is bound.
        first_token: What the guide reads in place of the next input token, (B,); None is the same.
    """

    alpha: mx.array
    first_token: mx.array | None
    _strength: mx.array
    _bound: dict[Any, Any]
    _bound_in: Thread | None

    def __init__(self, alpha: mx.array, strength: mx.array | None = None) -> None:
        self._set(alpha, mx.ones(alpha.shape[0]) if strength is None else strength, None)

    @property
    def strength(self) -> mx.array:
        """1/β of each sequence, (B,)."""
        return self._strength

    @strength.setter
    def strength(self, value: mx.array) -> None:
        self._strength, self._bound = value, {}

    def bound(self, bind: Callable[..., Any], with_strength: bool = False) -> Any:
        """Returns ``bind(alpha)``, or ``bind(alpha, strength)``.

        It is computed once and kept until the batch, the strength or the thread changes.
        """
        if self._bound_in is not (thread := current_thread()):  # lazy arrays belong to the thread that made them
            self._bound, self._bound_in = {}, thread
        if bind not in self._bound:
            self._bound[bind] = bind(self.alpha, self.strength) if with_strength else bind(self.alpha)
        return self._bound[bind]

    def replace_first_token(self, token: int) -> None:
        """Makes the guide read ``token`` in place of the next input token.

        Prompts of base and guide may end in different tokens; the generated tokens that follow are the same.
        """
        self.first_token = mx.array([token] * self.alpha.shape[0], dtype=mx.int32)

    def take_inputs(self, inputs: mx.array) -> mx.array:
        """The tokens that the guide reads where the base reads ``inputs`` (B, L)."""
        if self.first_token is None:
            return inputs
        token, self.first_token = self.first_token[:, None].astype(inputs.dtype), None
        first = mx.where(token == mx.array(NO_TOKEN).astype(inputs.dtype), inputs[:, :1], token)
        return mx.concatenate([first, inputs[:, 1:]], axis=1)

    def _set(self, alpha: mx.array, strength: mx.array, first_token: mx.array | None) -> None:
        self.alpha, self.strength, self.first_token = alpha, strength, first_token
        self._bound, self._bound_in = {}, None

    def _first_tokens(self) -> mx.array:
        if self.first_token is not None:
            return self.first_token
        return mx.full((self.alpha.shape[0],), NO_TOKEN, dtype=mx.int32)

    @property
    def state(self) -> list[mx.array]:
        """The arrays that describe the entry."""
        return [self.alpha, self.strength, *([] if self.first_token is None else [self.first_token])]

    @state.setter
    def state(self, value: Sequence[mx.array]) -> None:
        self._set(value[0], value[1], value[2] if len(value) > 2 else None)

    def is_trimmable(self) -> bool:
        """A preference holds for any number of tokens."""
        return True

    def trim(self, n: int) -> int:
        """Returns n, as if all n tokens were taken back: there are none here."""
        return n

    def filter(self, batch_indices: Any) -> None:
        """Keeps the sequences at these indices, in place."""
        rows = mx.array(batch_indices)
        self._set(self.alpha[rows], self.strength[rows], None if self.first_token is None else self.first_token[rows])

    def extend(self, other: "PreferenceCache") -> None:
        """Adds the sequences of another entry, in place."""
        merged = self.merge([self, other])
        self._set(merged.alpha, merged.strength, merged.first_token)

    def extract(self, idx: int) -> "PreferenceCache":
        """The entry of one sequence."""
        row = PreferenceCache(self.alpha[idx : idx + 1], self.strength[idx : idx + 1])
        row.first_token = None if self.first_token is None else self.first_token[idx : idx + 1]
        return row

    @classmethod
    def merge(cls, caches: "Sequence[PreferenceCache]") -> "PreferenceCache":
        """One entry for the sequences of all."""
        alpha, strength = ([getattr(cache, name) for cache in caches] for name in ("alpha", "strength"))
        merged = cls(mx.concatenate(alpha), mx.concatenate(strength))
        if any(cache.first_token is not None for cache in caches):
            merged.first_token = mx.concatenate([cache._first_tokens() for cache in caches])
        return merged

    def prepare(self, **_: Any) -> None:
        """Does nothing: padding has no preference."""

    def finalize(self) -> None:
        """Does nothing: padding has no preference."""

    def empty(self) -> bool:
        """False: there is always a preference."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of α and 1/β."""
        return int(self.alpha.nbytes + self.strength.nbytes)

    def __deepcopy__(self, memo: Any) -> "PreferenceCache":
        other = PreferenceCache(self.alpha, self.strength)  # without what is bound, which has no place in a kept cache
        other.first_token = self.first_token
        return other
