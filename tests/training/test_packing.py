import mlx.core as mx
import numpy as np

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.training.batching import common_prefix, pack_rows, pack_shared


def pair(prompt: list[int], first: list[int], second: list[int]) -> TokenPair:
    rows = tuple(TokenRow(np.array(prompt + ids, np.int32), len(prompt)) for ids in (first, second))
    return TokenPair((rows[0], rows[1]), np.array([0, 1], np.int8), "x")


PAIRS = [pair([1, 1], [10, 11, 12], [20]), pair([1, 1, 1], [10], [20, 21])]


def test_pack_rows() -> None:
    """Pair a: 2 + 3 and 2 + 1 tokens. Pair b: 3 + 1 and 3 + 2. Inputs are padded to 8, targets to 32."""
    packed = pack_rows(PAIRS)
    assert packed.prefixes.shape == (2, 0)
    assert packed.inputs.tolist() == [
        [1, 1, 10, 11, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 20, 0, 0, 0, 0],
    ]
    assert packed.targets.tolist() == [10, 11, 12, 10, 20, 20, 21] + [0] * 25
    assert packed.positions.tolist() == [1, 2, 3, 8 + 2, 16 + 1, 24 + 2, 24 + 3] + [0] * 25
    assert packed.members.sum(axis=1).tolist() == [3, 1, 1, 2]
    assert (packed.members @ packed.targets.astype(mx.float32)).tolist() == [33, 10, 20, 41]
    assert packed.cells == 32


def test_pack_shared() -> None:
    """Prefixes of 20 and 19 tokens; what is left is 2, 0, 1 and 2 inputs, from position 2 · 20 on."""
    packed = pack_shared([pair([1] * 20, [10, 11, 12], [20, 21]), pair([2] * 19, [10], [20, 21, 22])])
    assert packed is not None
    assert packed.lengths == (20, 19)
    assert packed.prefixes.tolist() == [[1] * 20, [2] * 19 + [0]]
    assert packed.inputs[:, :3].tolist() == [[10, 11, 0], [0, 0, 0], [20, 0, 0], [20, 21, 0]]
    assert packed.targets[:9].tolist() == [10, 11, 12, 10, 20, 21, 20, 21, 22]
    assert packed.positions[:9].tolist() == [19, 40, 41, 38, 19, 56, 38, 64, 65]
    assert packed.cells == 2 * 20 + 4 * 8


def test_a_joined_boundary_shares_what_comes_before_it() -> None:
    """The tokenizer joins the end of the prompt to one response; the response that it did not join starts later."""
    joined = TokenRow(np.array([1, 2, 3, 99, 5], np.int32), 3)
    plain = TokenRow(np.array([1, 2, 3, 4, 6, 5], np.int32), 4)
    assert common_prefix(TokenPair((joined, plain), np.array([0], np.int8), "x")) == 3


def test_responses_that_begin_alike_share_that_too() -> None:
    """All inputs of the shorter row may be shared, but never its last token, which is no input."""
    assert common_prefix(pair([1, 2], [7, 8, 9], [7, 8, 5])) == 4
    assert common_prefix(pair([1, 2], [7, 8], [7, 8, 5])) == 3
    assert common_prefix(pair([1, 2], [7], [7])) == 2
    packed = pack_shared([pair([1, 2], [7, 8], [7, 8])])
    assert packed is not None
    assert packed.inputs.shape == (2, 0)
    assert packed.positions[:4].tolist() == [1, 2, 1, 2]


def test_short_prompts_are_not_worth_sharing() -> None:
    assert pack_shared([pair([1], list(range(2, 40)), list(range(50, 90)))]) is None
    assert pack_shared([pair([1, 1], [2, 3, 4], [4, 5, 6])]) is not None  # 2 + 2 · 2 positions instead of 8
    assert pack_shared([pair([1], [2, 3, 4, 5], [4, 5, 6, 7]), pair([1] * 5, [2], [3])]) is None
