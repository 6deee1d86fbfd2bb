from collections.abc import Iterator

import numpy as np
import pytest

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.training.batching import (
    TrainingBatches,
    data_order,
    fixed_batches,
    make_batch,
    objective_sets,
    pair_weights,
)


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
    parts = batch.split(3)
    assert ["".join(part.where) for part, _ in parts] == ["01", "23", "456"]
    assert all(part.preferred.tolist() == batch.preferred[s].tolist() for part, s in parts)
    assert [part.where for part, _ in batch.split(20)] == [(str(i),) for i in range(7)]


def test_every_pair_comes_once_per_epoch_in_full_batches() -> None:
    pairs = [pair(2, 1, 1, str(i)) for i in range(7)]
    batches = TrainingBatches(pairs, 3, np.random.default_rng(0))
    seen = [where for _ in range(14) for where in next(batches).where]
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list("0123456") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_objectives_judged_by_the_same_pairs_have_one_data_set() -> None:
    both = [pair(2, 1, 1, str(i), (0, 1)) for i in range(3)]
    assert [one.tolist() for one in objective_sets(both)] == [[0, 1, 2]]
    apart = [*both, pair(2, 1, 1, "3", (0, -1)), pair(2, 1, 1, "4", (-1, 1))]
    assert [one.tolist() for one in objective_sets(apart)] == [[0, 1, 2, 3], [0, 1, 2, 4]]


def test_data_sets_of_different_sizes_give_equal_shares_of_a_batch() -> None:
    """90 pairs judged by the first objective and 10 by the second: four of each in a batch of eight."""
    pairs = [pair(2, 1, 1, str(i), (0, -1) if i < 90 else (-1, 0)) for i in range(100)]
    batches = TrainingBatches(pairs, 8, np.random.default_rng(0))
    drawn = [next(batches) for _ in range(50)]
    assert all(((batch.labelled > 0).sum(axis=0) == 4).all() for batch in drawn)
    rare = [where for batch in drawn for where in batch.where if int(where) >= 90]
    assert all(rare.count(str(i)) == 20 for i in range(90, 100))


def test_a_pair_of_two_data_sets_is_drawn_by_both_and_weighs_less() -> None:
    """D_1 = {0, 1}, D_2 = {1, 2}: pair 1 is drawn at 1/2 + 1/2, the others at 1/2; weights 1 : 1/2 : 1, mean 1."""
    weights = pair_weights([np.array([0, 1]), np.array([1, 2])], 3)
    assert np.allclose(weights, [1.2, 0.6, 1.2])


def test_batches_drawn_per_objective_estimate_the_mean_over_each_data_set() -> None:
    """Self-normalised means over many batches approach the mean over D_i, for data sets that overlap unevenly."""
    labels = [(0, 0)] * 30 + [(0, -1)] * 60 + [(-1, 0)] * 5
    pairs = [pair(2, 1, 1, str(i), label) for i, label in enumerate(labels)]
    value = np.random.default_rng(1).normal(size=len(pairs)) + (np.arange(len(pairs)) < 30)
    batches = TrainingBatches(pairs, 10, np.random.default_rng(0))
    sums, count = np.zeros(2), np.zeros(2)
    for _ in range(1900):
        batch = next(batches)
        weights = np.array(batch.labelled)
        sums += value[[int(where) for where in batch.where]] @ weights
        count += weights.sum(axis=0)
    expected = [value[:90].mean(), np.r_[value[:30], value[90:]].mean()]
    assert np.allclose(sums / count, expected, atol=0.01)


def test_validation_batches_are_sorted_by_length_and_limited() -> None:
    pairs = [pair(2, 1 + i % 5, 1, str(i)) for i in range(10)]
    batches = fixed_batches(pairs, 4, -1, np.random.default_rng(0))
    assert [len(batch.where) for batch in batches] == [4, 4, 2]
    assert sorted(w for batch in batches for w in batch.where) == sorted(p.where for p in pairs)
    lengths = [len(pairs[int(w)]) for batch in batches for w in batch.where]
    assert lengths == sorted(lengths)
    assert sum(len(batch.where) for batch in fixed_batches(pairs, 4, 2, np.random.default_rng(0))) == 8
    assert fixed_batches([], 4, -1, np.random.default_rng(0)) == []


def order(lengths: list[int], size: int, seed: int = 3, sets: list[list[int]] | None = None) -> Iterator[list[int]]:
    members = [np.array(one) for one in sets or [list(range(len(lengths)))]]
    return data_order(lengths, size, np.random.default_rng(seed), members)


@pytest.mark.parametrize(
    ("count", "size", "apart"),
    [(7, 3, False), (6, 3, False), (2, 5, False), (1, 1, False), (100, 1, False), (9, 5, True)],
)
def test_a_position_that_is_gone_to_has_the_same_batches(count: int, size: int, apart: bool) -> None:
    """Across windows and epochs, also when a batch is larger than an epoch; two data sets overlap in pair 5."""
    labels = [(0 if i <= 5 else -1, 0 if i >= 5 else -1) if apart else (0, 1) for i in range(count)]
    pairs = [pair(2, 1 + 7 * i % count, 1, str(i), label) for i, label in enumerate(labels)]

    def batches() -> TrainingBatches:
        return TrainingBatches(pairs, size, np.random.default_rng(3))

    whole = batches()
    expected = [next(whole).where for _ in range(50)]
    for done in range(50):
        later = batches()
        later.skip_to(done)
        assert later.done == done
        assert [next(later).where for _ in range(50 - done)] == expected[done:]


def test_batches_hold_pairs_of_similar_length() -> None:
    """Of 512 lengths from 1 to 512, sorted within 256: eight neighbours are about 16 apart, not 400."""
    lengths = (1 + np.random.default_rng(1).permutation(512)).tolist()
    source = order(lengths, 8)
    batches = [next(source) for _ in range(64)]
    assert sorted(i for batch in batches for i in batch) == list(range(512))
    spans = [lengths[batch[-1]] - lengths[batch[0]] for batch in batches]
    assert max(spans) < 60
    longest = [lengths[batch[-1]] for batch in batches]
    assert longest[:32] != sorted(longest[:32])  # the batches themselves are shuffled


def test_the_seed_decides_the_order() -> None:
    lengths = [5, 9, 2, 7, 7, 1, 3]

    def first(seed: int) -> list[list[int]]:
        batches = order(lengths, 3, seed)
        return [next(batches) for _ in range(10)]

    assert first(0) == first(0) != first(1)


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    batches = order([1, 2, 3], 7)
    seen = [i for _ in range(3) for i in next(batches)]
    assert len(seen) == 21
    assert all(seen.count(i) == 7 for i in range(3))


def test_every_set_has_its_turn_in_batches_smaller_than_their_number() -> None:
    batches = order([1, 1, 1], 1, sets=[[0], [1], [2]])
    seen = [next(batches)[0] for _ in range(12)]
    assert all(seen.count(i) == 4 for i in range(3))
