"""Ranges of the numbers that users give: the same on the command line, in files and in Python."""

import math
from dataclasses import dataclass
from typing import Any

LONGEST = 40  # characters of a wrong value that are shown


@dataclass(frozen=True)
class Whole:
    """Whole numbers from ``low`` to ``high``."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, value: Any) -> int:
        """The value as a number; text such as ``"12"`` or ``"1e3"`` counts as what it means.

        Raises:
            ValueError: It is not such a number; the message begins with "must be".
        """
        number = _exact(value)
        if number is None or not self.low <= number <= self.high:
            raise ValueError(f"must be {self}, got {shown(value)}")
        return number


@dataclass(frozen=True)
class Real:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: The smallest.
        high: The largest.
        or_zero: Whether 0 is one, too.
        below: Whether ``high`` is not one.
    """

    low: float
    high: float
    or_zero: bool = False
    below: bool = False

    def __str__(self) -> str:
        to = "up to but below" if self.below else "to"
        return f"{'0 or ' if self.or_zero else ''}a number from {self.low:g} {to} {self.high:g}"

    def read(self, value: Any) -> float:
        """The value as a number; text such as ``"5e-4"`` counts as what it means.

        Raises:
            ValueError: It is not such a number; the message begins with "must be".
        """
        number = as_float(value)
        inside = self.low <= number <= self.high and not (self.below and number == self.high)
        if not inside and not (self.or_zero and number == 0):
            raise ValueError(f"must be {self}, got {shown(value)}")
        return number


def as_float(value: Any) -> float:
    """The value as a float; not a number where it is none, or none that a float can hold."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def shown(value: Any) -> str:
    """The value as an error shows it: cut short where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _exact(value: Any) -> int | None:
    """The value as a whole number, digit for digit, where it is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value) if isinstance(value, str) else _whole_float(value)
    except ValueError:
        return _whole_float(value)


def _whole_float(value: Any) -> int | None:
    number = as_float(value)
    return int(number) if number.is_integer() else None


BETA = Real(1e-6, 1e6)
SCALE = Real(1e-6, 1e6)
SHARE = Real(0, 1)
DROPOUT = Real(0, 1, below=True)
RANK = Whole(0, 2**16)
OBJECTIVES = Whole(1, 10_000)
CONCENTRATION = Real(1e-6, 1e6)
SEED = Whole(0, 2**64 - 1)
COUNT = Whole(1, 10**9)
BATCH = Whole(1, 4096)
STEP = Whole(1, 2**16)

TEMP = Real(1e-6, 100, or_zero=True)
TOP_K = Whole(0, 2**31 - 1)
MAX_TOKENS = Whole(1, 10**6)
DRAFT_TOKENS = Whole(1, 64)

GRID_SIZE = 10_000
ANSWERS = Whole(1, 10_000)
SAMPLES = Whole(1, 10**5)
