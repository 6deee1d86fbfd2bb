"""The ranges of numbers that users give."""

from typing import Any

import pytest

from parm_mlx.ranges import Real, Whole


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3), ("3", 3), (3.0, 3), ("3e0", 3), (2**63 + 1, 2**63 + 1), (str(2**63 + 1), 2**63 + 1)]
)
def test_whole_numbers_are_exact(value: Any, number: int) -> None:
    assert Whole(0, 2**64).read(value) == number


@pytest.mark.parametrize(
    "value", [True, None, "", "three", [3], 3.5, "3.5", -1, 11, "nan", "inf", float("nan"), 10**400, "9" * 5000, 1e300]
)
def test_what_is_no_whole_number_of_the_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be a whole number from 0 to 10, got "):
        Whole(0, 10).read(value)


def test_numbers_may_be_text() -> None:
    assert Real(0, 1).read("5e-1") == 0.5


@pytest.mark.parametrize("value", [True, None, "", [1], "nan", float("inf"), -0.1, 1.1, 10**400, "1e999"])
def test_what_is_no_number_of_the_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be a number from 0 to 1, got "):
        Real(0, 1).read(value)


def test_ends_of_a_range() -> None:
    assert Real(0.5, 1, or_zero=True).read(0) == 0
    with pytest.raises(ValueError, match=r"must be 0 or a number from 0\.5 to 1, got 0\.4"):
        Real(0.5, 1, or_zero=True).read(0.4)
    with pytest.raises(ValueError, match="must be a number from 0 up to but below 1, got 1"):
        Real(0, 1, below=True).read(1)


def test_long_values_are_cut_short() -> None:
    with pytest.raises(ValueError, match="got 1000") as caught:
        Whole(0, 10).read(10**400)
    assert len(str(caught.value)) < 90
    with pytest.raises(ValueError, match="got a number of thousands of digits"):
        Whole(0, 10).read(10**5000)
