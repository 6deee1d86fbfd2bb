"""Ranges of the numbers that users give: the same on the command line, in files and in Python."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
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
        """Returns a number, or what a text spells (``"1e3"``); ValueError ("must be …") for others than these."""
        number = _exact(value)
        if number is None or not self.low <= number <= self.high:
            raise ValueError(f"must be {self}, got {shown(value)}")
        return number


@dataclass(frozen=True)
class Real:
    """Numbers from ``low`` to ``high``."""

    low: float
    high: float
    or_zero: bool = False  # 0 is one, too
    below: bool = False  # ``high`` is not one

    def __str__(self) -> str:
        to = "up to but below" if self.below else "to"
        return f"{'0 or ' if self.or_zero else ''}a number from {self.low:g} {to} {self.high:g}"

    def read(self, value: Any) -> float:
        """Returns a number, or what a text spells (``"5e-4"``); ValueError ("must be …") for others than these."""
        number = as_float(value)
        inside = self.low <= number <= self.high and not (self.below and number == self.high)
        if not inside and not (self.or_zero and number == 0):
            raise ValueError(f"must be {self}, got {shown(value)}")
        return number


def as_float(value: Any) -> float:
    """Returns a value as a float, NaN where it is not a number that a float can hold."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def meant(name: str, known: Iterable[str]) -> str:
    """Returns what an error adds to an unknown name: the known one that is most like it, if any is."""
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: Any) -> str:
    """Returns a value as an error shows it: cut short where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _exact(value: Any) -> int | None:
    """Returns a value as a whole number, digit for digit, where it is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
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
KV_BITS = Whole(2, 8)
CANDIDATES = Whole(1, 10**5)
KV_SIZE = Whole(16, 10**9)

GRID_SIZE = 10_000
ANSWERS = Whole(1, 10_000)
SAMPLES = Whole(1, 10**5)

PORT = Whole(0, 65_535)
SECONDS = Real(0.1, 10**7)
SIZE = Whole(0, 10**7)
