import numpy as np

from parm_mlx.training.batches import fixed_batches, make_batch, training_batches, training_order
from parm_mlx.training.tokenize import TokenPair, TokenRow


def pair(prompt: int, first: int, second: int, where: str = "x", preferred: tuple[int, ...] = (0, 1)) -> TokenPair:
    """Prompt and response lengths; prompt tokens are 1, responses 10, 11, … and 20, 21, …"""
    rows = [
        TokenRow(np.array([1] * prompt + list(range(base, base + length)), np.int32), prompt)
        for base, length in ((10, first), (20, second))
    ]
    return TokenPair((rows[0], rows[1]), np.array(preferred, np.int8), where)


def test_a_batch_knows_its_pairs() -> None:
    batch = make_batch([pair(2, 3, 1, "a"), pair(3, 1, 2, "b", (1, -1))])
    assert batch.preferred.tolist() == [[0, 1], [1, 0]]
    assert batch.labelled.tolist() == [[1, 1], [1, 0]]
    assert batch.where == ("a", "b")
    assert batch.tokens == 5 + 4 + 3 + 5


def test_parts_are_nearly_equal_and_hold_every_pair_in_order() -> None:
    batch = make_batch([pair(2, 1, 1, str(i), (i % 2, 1)) for i in range(7)])
    parts = batch.parts(3)
    assert ["".join(part.where) for part, _ in parts] == ["01", "23", "456"]
    assert all(part.preferred.tolist() == batch.preferred[s].tolist() for part, s in parts)
    assert [part.where for part, _ in batch.parts(20)] == [(str(i),) for i in range(7)]


def test_every_pair_comes_once_per_epoch_in_full_batches() -> None:
    pairs = [pair(2, 1, 1, str(i)) for i in range(7)]
    batches = training_batches(pairs, 3, np.random.default_rng(0))
    seen = [where for _ in range(14) for where in next(batches).where]
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list("0123456") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_batches_hold_pairs_of_similar_length() -> None:
    """Of 512 lengths from 1 to 512, sorted within 256: eight neighbours are about 16 apart, not 400."""
    lengths = (1 + np.random.default_rng(1).permutation(512)).tolist()
    order = training_order(lengths, 8, np.random.default_rng(0))
    batches = [next(order) for _ in range(64)]
    assert sorted(i for batch in batches for i in batch) == list(range(512))
    spans = [lengths[batch[-1]] - lengths[batch[0]] for batch in batches]
    assert max(spans) < 60
    longest = [lengths[batch[-1]] for batch in batches]
    assert longest[:32] != sorted(longest[:32])  # the batches themselves are shuffled


def test_the_seed_decides_the_order() -> None:
    lengths = [5, 9, 2, 7, 7, 1, 3]

    def first(seed: int) -> list[list[int]]:
        order = training_order(lengths, 3, np.random.default_rng(seed))
        return [next(order) for _ in range(10)]

    assert first(0) == first(0) != first(1)


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    order = training_order([1, 2, 3], 7, np.random.default_rng(0))
    seen = [i for _ in range(3) for i in next(order)]
    assert len(seen) == 21
    assert all(seen.count(i) == 7 for i in range(3))


def test_validation_batches_are_sorted_by_length_and_limited() -> None:
    pairs = [pair(2, 1 + i % 5, 1, str(i)) for i in range(10)]
    batches = fixed_batches(pairs, 4, -1, np.random.default_rng(0))
    assert [len(batch.where) for batch in batches] == [4, 4, 2]
    assert sorted(w for batch in batches for w in batch.where) == sorted(p.where for p in pairs)
    lengths = [len(pairs[int(w)]) for batch in batches for w in batch.where]
    assert lengths == sorted(lengths)
    assert sum(len(batch.where) for batch in fixed_batches(pairs, 4, 2, np.random.default_rng(0))) == 8
    assert fixed_batches([], 4, -1, np.random.default_rng(0)) == []
