"""Entries of mlx-lm's prompt caches, one per layer: taking back tokens, taking out rows and joining them."""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy, deepcopy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    _BaseCache,
    make_prompt_cache,
    trim_prompt_cache,
)

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm.across import AcrossCache
from parm_mlx.mlxlm.preference import PreferenceCache

SINKS = 4  # first tokens that a cache of limited size never drops, as in mlx-lm: attention leans on them
GROUP_SIZES = 64, 32  # numbers that are quantised together, the first that fits


def limit_caches(model: nn.Module, kv_bits: int | None = None, max_kv_size: int | None = None) -> None:
    """Makes the prompt caches that a model will have smaller: in quantised numbers, or of the last tokens only.

    Entries that are not plain keys and values stay as they are, as do all where both limits are None.

    Raises:
        ModelError: Its keys and values cannot be quantised.
    """
    if kv_bits is None and max_kv_size is None:
        return
    entries = make_prompt_cache(model)
    model(mx.array([[0]]), cache=entries)
    kept: list[Any] = [entry for entry in entries if type(entry) is KVCache]
    widths = {part.shape[-1] for entry in kept for part in (entry.keys, entry.values)}
    group = next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), None)
    if kv_bits is not None and (group is None or not widths):
        reason = f"heads have {min(widths)} numbers, not a multiple of 32" if widths else "there are none of this kind"
        raise ModelError(f"keys and values cannot be quantised: {reason}", hint="leave out --kv-bits")
    plain = model.make_cache if hasattr(model, "make_cache") else lambda: [KVCache() for _ in model.layers]

    def limited(entry: Any) -> Any:
        if type(entry) is not KVCache:
            return entry
        if kv_bits is not None:
            return QuantizedKVCache(group_size=group or GROUP_SIZES[0], bits=kv_bits)
        return RotatingKVCache(max_size=max_kv_size, keep=SINKS)

    model.make_cache = lambda: [limited(entry) for entry in plain()]


def rewind(cache: list[Any], tokens: int) -> bool:
    """Removes the last tokens from a prompt cache, in place; returns False and leaves one that cannot be trimmed."""
    if tokens == 0 or not cache:
        return True
    if any(isinstance(entry, ChunkedKVCache) and entry.start_position > 0 for entry in leaves(cache)):
        return False  # earlier positions would need tokens that were dropped
    trimmed: Any = trim_prompt_cache(cache, tokens)
    return bool(trimmed == tokens)


class Snapshot:
    """A prompt cache before at most ``tokens`` are read, so that the last of them can be taken back.

    Entries that only grow are trimmed. Others (recurrent states, sliding windows) are copied.
    """

    def __init__(self, cache: Sequence[Any], tokens: int) -> None:
        self._copies = [
            None if all(_can_trim_after(leaf, tokens) for leaf in leaves([entry])) else deepcopy(entry)
            for entry in cache
        ]

    def restore(self, cache: list[Any], read: int, keep: int) -> int:
        """Takes back all but the first ``keep`` of ``read`` tokens, in place; returns how many must be read again."""
        if read == keep:
            return 0
        again = 0 if all(entry is None for entry in self._copies) else keep
        for i, (entry, kept) in enumerate(zip(cache, self._copies, strict=True)):
            if kept is None:
                entry.trim(read - keep + again)
            else:
                cache[i] = kept
        return again


def leaves(entries: Iterable[Any]) -> Iterator[Any]:
    """The entries that hold arrays themselves, inside lists and pairs."""
    for entry in entries:
        inside = entry.caches if isinstance(entry, CacheList) else getattr(entry, "parts", None)
        if inside is None:
            yield entry
        else:
            yield from leaves(inside)


def _can_trim_after(entry: Any, tokens: int) -> bool:
    """Returns True if trimming takes back so many tokens exactly, once they are read."""
    if isinstance(entry, AcrossCache):
        return True
    if isinstance(entry, PreferenceCache):
        return entry.first_token is None
    if isinstance(entry, RotatingKVCache):
        return bool(entry.offset + tokens < entry.max_size)
    if isinstance(entry, BatchRotatingKVCache):
        return bool(entry._offset + tokens < entry.max_size)
    if isinstance(entry, ChunkedKVCache):
        return bool(entry.offset + tokens - entry.start_position <= entry.chunk_size)
    return isinstance(entry, KVCache | QuantizedKVCache | ConcatenateKVCache | BatchKVCache)


def only_grows(cache: Sequence[Any]) -> bool:
    """Returns True if every entry gives back any number of tokens that it has read, however many those are."""
    plain = KVCache | QuantizedKVCache | ConcatenateKVCache | PreferenceCache
    return all(isinstance(entry, plain) for entry in leaves(cache))


def can_batch(cache: Sequence[Any]) -> bool:
    """Returns True if mlx-lm can put several sequences with prompt caches of this kind into one batch."""
    return all(hasattr(entry, "merge") and not getattr(entry, "keep", 0) for entry in leaves(cache))


def bears_padding(cache: Sequence[Any]) -> bool:
    """Returns True if prompts of different lengths may be read into a batch of such caches, padded.

    Recurrent states do not allow it: some families of mlx-lm read padding into them.
    """
    return not any(isinstance(entry, ArraysCache) for entry in leaves(cache))


def row_of(entry: Any, row: int) -> Any:
    """One row of an entry, as an entry of its own."""
    if isinstance(entry, CacheList):
        return CacheList(*(row_of(part, row) for part in entry.caches))
    if isinstance(entry, BatchKVCache | BatchRotatingKVCache | AcrossCache):
        return entry.extract(row)
    taken = copy(entry)
    for name, value in vars(entry).items():
        setattr(taken, name, _row_of(value, row))
    return taken


def _row_of(value: Any, row: int) -> Any:
    if isinstance(value, mx.array):
        return value[row : row + 1] if value.ndim else value
    if isinstance(value, list | tuple):
        return type(value)(_row_of(part, row) for part in value)
    return value


def joined(rows: Sequence[Any]) -> Any | None:
    """One entry for several sequences, from an entry of each; None where mlx-lm has no such entry.

    Entries that agree in all but their rows are joined as they are, others as a padded batch.
    """
    first = rows[0]
    if isinstance(first, AcrossCache):
        return AcrossCache.merge(rows)
    if isinstance(first, CacheList):
        parts = [joined(column) for column in zip(*(entry.caches for entry in rows), strict=True)]
        return None if any(part is None for part in parts) else CacheList(*parts)
    try:
        return _stacked([_without_spare_room(entry) for entry in rows])
    except _DifferError:
        return batched(rows)


def batched(rows: Sequence[Any]) -> Any | None:
    """One padded entry for several sequences, which mlx-lm can extend and filter; None where there is none."""
    first = rows[0]
    if isinstance(first, CacheList):
        parts = [batched(column) for column in zip(*(entry.caches for entry in rows), strict=True)]
        return None if any(part is None for part in parts) else CacheList(*parts)
    return type(first).merge(list(rows)) if can_batch([first]) else None


class _DifferError(Exception):
    """Entries differ in more than their rows."""


def _stacked(rows: Sequence[Any]) -> Any:
    together = copy(rows[0])
    for name in vars(together):
        setattr(together, name, _stacked_values([getattr(entry, name) for entry in rows]))
    return together


def _stacked_values(values: Sequence[Any]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise _DifferError
    if isinstance(first, mx.array):
        if any(value.shape != first.shape or value.ndim == 0 for value in values):
            raise _DifferError
        return mx.concatenate(list(values))
    if isinstance(first, list | tuple):
        return type(first)(_stacked_values(column) for column in zip(*values, strict=True))
    if any(value != first for value in values):
        raise _DifferError
    return first


def _without_spare_room(entry: _BaseCache) -> _BaseCache:
    """The entry without the room that was allocated ahead, which depends on how its tokens came in."""
    if not isinstance(entry, KVCache | QuantizedKVCache | ChunkedKVCache) or entry.keys is None:
        return entry
    trimmed = copy(entry)
    trimmed.keys, trimmed.values = entry.keys_and_values()
    return trimmed
