from dataclasses import replace

import pytest

from parm_mlx.data.pairs import Pair, Problems
from parm_mlx.errors import DataError

PAIR = Pair("Hi", ("a", "b"), {"x": 0}, "f:1")


def test_a_prompt_is_the_same_as_text_and_as_one_message() -> None:
    message = replace(PAIR, prompt=[{"role": "user", "content": "Hi "}])
    other = replace(PAIR, prompt=[{"role": "system", "content": "Hi"}])
    assert PAIR.prompt_key == message.prompt_key
    assert PAIR.prompt_key != other.prompt_key


def test_a_pair_is_the_same_in_either_order() -> None:
    assert PAIR.key == replace(PAIR, responses=("b", "a"), preferred={"y": 1}).key
    assert PAIR.key != replace(PAIR, responses=("a", "c")).key


def test_problems_are_counted_all_and_shown_up_to_twenty() -> None:
    problems = Problems()
    problems.raise_any("data")
    for i in range(33):
        problems.add(f"f:{i + 1}", "bad")
    with pytest.raises(DataError) as caught:
        problems.raise_any("data")
    lines = str(caught.value).splitlines()
    assert lines[0] == "data: 33 rows cannot be used"
    assert lines[1] == "  f:1: bad"
    assert lines[-1] == "  … and 13 more"
    assert len(lines) == 22
