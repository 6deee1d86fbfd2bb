import json

import numpy as np
import pytest

from parm_mlx.training.order import DataOrder


def order(count: int, size: int, seed: int = 3) -> DataOrder:
    return DataOrder(count, size, np.random.default_rng(seed))


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_a_restored_position_goes_on_with_the_same_batches(count: int, size: int) -> None:
    """Across epochs, also when a batch is larger than an epoch."""
    whole = order(count, size)
    expected = [next(whole) for _ in range(12)]
    for done in range(12):
        first = order(count, size)
        for _ in range(done):
            next(first)
        state = json.loads(json.dumps(first.state()))
        second = order(count, size, seed=99)
        second.restore(state)
        assert second.epoch == first.epoch
        assert [next(second) for _ in range(12 - done)] == expected[done:]


def test_the_position_counts_epochs_and_pairs() -> None:
    """Batches of 3 of 7 pairs: the third takes the last pair of epoch 1 and two of epoch 2."""
    batches = order(7, 3)
    seen = []
    for _ in range(3):
        next(batches)
        seen.append((batches.epoch, batches.state()["pairs_done"]))
    assert seen == [(1, 3), (1, 6), (2, 2)]
