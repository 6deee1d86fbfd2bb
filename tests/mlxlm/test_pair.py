"""Pairs of rows as entries of a prompt cache, and the taking back of tokens in every kind of entry."""

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    _BaseCache,
)

from parm_mlx.mlxlm import PairCache, PreferenceCache, Snapshot, bears_padding, can_batch, rewind
from parm_mlx.mlxlm.caches import joined, row_of

KNOWN = {
    "KVCache",
    "QuantizedKVCache",
    "ConcatenateKVCache",
    "RotatingKVCache",
    "ArraysCache",
    "ChunkedKVCache",
    "CacheList",
    "BatchKVCache",
    "BatchRotatingKVCache",
}


def feed(entry: Any, start: int, tokens: int, rows: int = 1) -> Any:
    """Reads keys and values that say which token and row they are of: token + row / 10."""
    if isinstance(entry, ArraysCache):
        entry[0] = mx.full((rows, 3), float(start + tokens))
        return entry
    if isinstance(entry, CacheList):
        for part in entry.caches:
            feed(part, start, tokens, rows)
        return entry
    if isinstance(entry, ChunkedKVCache):
        entry.maybe_trim_front()
    values = mx.arange(start, start + tokens)[None, None, :, None] + mx.arange(rows)[:, None, None, None] / 10
    values = mx.broadcast_to(values, (rows, 1, tokens, 32))
    entry.update_and_fetch(values, values)
    return entry


def held(entry: Any) -> list[list[float]]:
    """The tokens that each row of an entry of keys and values holds, in order of time where it does not rotate."""
    keys = entry.keys_and_values()[0]
    if isinstance(keys, tuple):
        keys = mx.dequantize(*keys, group_size=entry.group_size, bits=entry.bits)
    return [[round(float(x), 1) for x in row] for row in keys[:, 0, :, 0].tolist()]


def test_every_kind_of_entry_is_known() -> None:
    """A new kind in mlx-lm needs a look: can it be trimmed, padded, cut into rows?"""
    kinds = {name for name, kind in vars(mlx_cache).items() if isinstance(kind, type) and issubclass(kind, _BaseCache)}
    assert kinds - {"_BaseCache", "AcrossCache", "PairCache", "PreferenceCache"} <= KNOWN


ENTRIES = [
    lambda: KVCache(),
    lambda: QuantizedKVCache(32, 8),
    lambda: RotatingKVCache(6),
    lambda: ChunkedKVCache(6),
]


@pytest.mark.parametrize("make", ENTRIES)
@pytest.mark.parametrize("tokens", [1, 5, 9])
def test_rows_are_joined_and_taken_out_again(make: Any, tokens: int) -> None:
    base, guide = feed(make(), 0, tokens), feed(make(), 100, tokens)
    both = joined([base, guide])
    assert type(both) is type(base)
    assert held(both) == held(base) + held(guide)
    feed(both, 50, 1, rows=2)
    for row, alone in ((0, base), (1, guide)):
        taken = row_of(both, row)
        assert [int(x) for x in held(taken)[0]] == [int(x) for x in held(feed(alone, 50, 1))[0]]
        assert taken.offset == alone.offset


def test_rows_of_different_lengths_are_padded_where_mlx_lm_can() -> None:
    for make, kind in ((KVCache, BatchKVCache), (lambda: RotatingKVCache(6), BatchRotatingKVCache)):
        both = joined([feed(make(), 0, 2), feed(make(), 100, 4)])
        assert type(both) is kind
        assert [held(row_of(both, row))[0] for row in (0, 1)] == [[0, 1], [100, 101, 102, 103]]
    assert joined([feed(ChunkedKVCache(6), 0, 2), feed(ChunkedKVCache(6), 0, 4)]) is None
    lists = [CacheList(feed(ArraysCache(1), 0, n), feed(KVCache(), 0, n)) for n in (2, 4)]
    both = joined(lists)
    assert [type(part) for part in both.caches] == [ArraysCache, BatchKVCache]
    assert both.caches[0][0][:, 0].tolist() == [2, 4]
    assert held(row_of(both, 1).caches[1]) == [[0, 1, 2, 3]]


def test_room_that_was_allocated_ahead_does_not_keep_rows_apart() -> None:
    """255 tokens at once take room for 256; one after the other they took another path to the same content."""
    base, guide = feed(KVCache(), 0, 300), KVCache()
    for start in range(0, 300, 20):
        feed(guide, start, 20)
    guide.trim(10)
    feed(guide, 290, 10)
    assert type(joined([base, guide])) is KVCache


def test_a_pair_is_an_entry_to_mlx_lm() -> None:
    pair = PairCache(KVCache())
    assert pair.empty()
    feed(pair.together, 0, 3, rows=2)
    assert (pair.empty(), pair.size(), pair.offset, pair.trim(1), pair.size()) == (False, 3, 3, 1, 2)
    assert pair.is_trimmable()
    other = PairCache(feed(KVCache(), 7, 1), feed(KVCache(), 8, 2))
    batch = PairCache.merge([pair, other, PairCache(KVCache())])
    assert batch.together.offset.tolist() == [2, 2, 1, 2, 0, 0]
    batch.filter([1, 0])
    batch.extend(PairCache.merge([PairCache(feed(KVCache(), 1, 4), feed(KVCache(), 2, 4))]))
    base, guide = batch.extract(0).part()
    assert (held(base), held(guide)) == ([[7]], [[8, 9]])
    base, guide = batch.extract(2).part()
    assert (held(base), held(guide)) == ([[1, 2, 3, 4]], [[2, 3, 4, 5]])


def test_a_pair_has_a_quantised_form_where_its_entries_have_one() -> None:
    pair = PairCache(feed(KVCache(), 0, 4, rows=2))
    quantised = pair.to_quantized(group_size=32, bits=8)
    assert isinstance(quantised.together, QuantizedKVCache)
    apart = PairCache(feed(KVCache(), 0, 4), feed(KVCache(), 0, 2)).to_quantized(group_size=32, bits=8)
    assert [type(part) for part in apart.parts] == [QuantizedKVCache] * 2
    assert not hasattr(quantised, "to_quantized")
    assert not hasattr(PairCache(ArraysCache(1)), "to_quantized")


def test_pairs_are_held_together_all_or_none() -> None:
    even = PairCache(feed(ChunkedKVCache(6), 0, 2), feed(ChunkedKVCache(6), 9, 2))
    uneven = PairCache(feed(ChunkedKVCache(6), 0, 2), feed(ChunkedKVCache(6), 9, 3))
    assert not PairCache.join([even, uneven])
    assert [len(pair.parts) for pair in (even, uneven)] == [2, 2]
    assert not PairCache.join([even, uneven]), "nor when asked again"
    uneven.part()[1].trim(1)
    assert PairCache.join([even, uneven])
    assert held(even.together) == [[0, 1], [9, 10]]


@pytest.mark.parametrize(
    ("make", "read", "exact"),
    [
        (lambda: KVCache(), 4, True),
        (lambda: QuantizedKVCache(32, 8), 4, True),
        (lambda: RotatingKVCache(16), 4, True),
        (lambda: RotatingKVCache(6), 4, False),
        (lambda: ChunkedKVCache(16), 4, True),
        (lambda: ChunkedKVCache(6), 4, False),
        (lambda: ArraysCache(1), 4, False),
        (lambda: CacheList(ArraysCache(1), KVCache()), 4, False),
    ],
)
@pytest.mark.parametrize("keep", [1, 3, 4])
def test_the_last_tokens_can_be_taken_back(make: Any, read: int, exact: bool, keep: int) -> None:
    """After three tokens, four are read and all but some taken back: what stays is what reading only those leaves."""
    cache, reference = [feed(make(), 0, 3)], [feed(make(), 0, 3)]
    before = Snapshot(cache, read)
    for token in range(read):
        feed(cache[0], 3 + token, 1)
    again = before.restore(cache, read, keep)
    assert again == (0 if exact or keep == read else keep)
    for token in range(again):
        feed(cache[0], 3 + token, 1)
    for token in range(keep):
        feed(reference[0], 3 + token, 1)
    for entry, expected in zip(cache, reference, strict=True):
        parts = zip(*([e] if not isinstance(e, CacheList) else e.caches for e in (entry, expected)), strict=True)
        for part, whole in parts:
            if isinstance(part, ArraysCache):
                assert part[0].tolist() == whole[0].tolist()
            else:
                assert (held(part), part.offset) == (held(whole), whole.offset)


def test_a_first_token_of_the_guides_own_is_read_again() -> None:
    cache = [PreferenceCache(mx.array([[0.5, 0.5]]))]
    cache[0].replace_first_token(9)
    before = Snapshot(cache, 3)
    cache[0].take_inputs(mx.array([[1, 2, 3]]))
    assert before.restore(cache, 3, 2) == 2
    assert cache[0].take_inputs(mx.array([[1, 2]])).tolist() == [[9, 2]]


def test_dropped_chunks_cannot_be_rewound() -> None:
    entry = ChunkedKVCache(4)
    for token in range(7):
        feed(entry, token, 1)
    assert not rewind([entry], 2)
    assert entry.offset == 7
    fresh = feed(ChunkedKVCache(4), 0, 3)
    assert rewind([fresh], 2)
    assert fresh.offset == 1


def test_what_can_be_batched_and_padded_is_known() -> None:
    assert can_batch([KVCache(), PairCache(RotatingKVCache(4)), CacheList(ArraysCache(1), KVCache())])
    assert not can_batch([KVCache(), PairCache(ChunkedKVCache(4))])
    assert bears_padding([KVCache(), PairCache(ChunkedKVCache(4))])
    assert not bears_padding([CacheList(ArraysCache(1), KVCache())])
