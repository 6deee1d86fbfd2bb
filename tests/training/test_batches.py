import mlx.core as mx
import numpy as np

from parm_mlx.training.batches import fixed_batches, make_batch, training_batches
from parm_mlx.training.order import DataOrder
from parm_mlx.training.tokenize import TokenPair, TokenRow


def pair(prompt: int, first: int, second: int, where: str = "x", preferred: tuple[int, ...] = (0, 1)) -> TokenPair:
    """Prompt and response lengths; prompt tokens are 1, responses 10, 11, … and 20, 21, …"""
    rows = [
        TokenRow(np.array([1] * prompt + list(range(base, base + length)), np.int32), prompt)
        for base, length in ((10, first), (20, second))
    ]
    return TokenPair((rows[0], rows[1]), np.array(preferred, np.int8), where)


def test_layout_of_a_batch() -> None:
    """Pair a: 2 + 3 and 2 + 1 tokens. Pair b: 3 + 1 and 3 + 2. Inputs are padded to 8, targets to 32."""
    batch = make_batch([pair(2, 3, 1, "a"), pair(3, 1, 2, "b", (1, -1))])
    assert batch.inputs.tolist() == [
        [1, 1, 10, 11, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 20, 0, 0, 0, 0],
    ]
    assert batch.targets.tolist() == [10, 11, 12, 10, 20, 20, 21] + [0] * 25
    assert batch.positions.tolist() == [1, 2, 3, 8 + 2, 16 + 1, 24 + 2, 24 + 3] + [0] * 25
    assert batch.members.sum(axis=1).tolist() == [3, 1, 1, 2]
    assert (batch.members @ batch.targets.astype(mx.float32)).tolist() == [33, 10, 20, 41]
    assert batch.preferred.tolist() == [[0, 1], [1, 0]]
    assert batch.labelled.tolist() == [[1, 1], [1, 0]]
    assert batch.where == ("a", "b")
    assert batch.tokens == 5 + 4 + 3 + 5


def test_every_pair_comes_once_per_epoch_in_full_batches() -> None:
    pairs = [pair(2, 1, 1, str(i)) for i in range(7)]
    batches = training_batches(pairs, DataOrder(7, 3, np.random.default_rng(0)))
    seen = [where for _ in range(14) for where in next(batches).where]
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list("0123456") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_validation_batches_are_sorted_by_length_and_limited() -> None:
    pairs = [pair(2, 1 + i % 5, 1, str(i)) for i in range(10)]
    batches = fixed_batches(pairs, 4, -1, np.random.default_rng(0))
    assert [len(batch.where) for batch in batches] == [4, 4, 2]
    assert sorted(w for batch in batches for w in batch.where) == sorted(p.where for p in pairs)
    lengths = [len(pairs[int(w)]) for batch in batches for w in batch.where]
    assert lengths == sorted(lengths)
    assert sum(len(batch.where) for batch in fixed_batches(pairs, 4, 2, np.random.default_rng(0))) == 8
    assert fixed_batches([], 4, -1, np.random.default_rng(0)) == []
