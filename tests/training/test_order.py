import json

import numpy as np
import pytest

from parm_mlx.training.order import DataOrder


def order(lengths: list[int], size: int, seed: int = 3, sets: list[list[int]] | None = None) -> DataOrder:
    members = [np.array(one) for one in sets or [list(range(len(lengths)))]]
    return DataOrder(lengths, size, np.random.default_rng(seed), members)


@pytest.mark.parametrize(
    ("count", "size", "sets"),
    [
        (7, 3, None),
        (6, 3, None),
        (2, 5, None),
        (1, 1, None),
        (100, 1, None),
        (9, 5, [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8]]),
    ],
)
def test_a_restored_position_goes_on_with_the_same_batches(count: int, size: int, sets: list[list[int]] | None) -> None:
    """Across windows and epochs, also when a batch is larger than an epoch."""
    lengths = [1 + 7 * i % count for i in range(count)]
    whole = order(lengths, size, sets=sets)
    expected = [next(whole) for _ in range(50)]
    for done in range(50):
        first = order(lengths, size, sets=sets)
        for _ in range(done):
            next(first)
        state = json.loads(json.dumps(first.state()))
        second = order(lengths, size, seed=99, sets=sets)
        second.restore(state)
        assert [next(second) for _ in range(50 - done)] == expected[done:]


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
