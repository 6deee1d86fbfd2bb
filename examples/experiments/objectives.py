"""Five more deterministic rewards, as Python functions: ``parm-mlx … --reward questions=objectives:questions``."""

from collections.abc import Callable, Sequence
from typing import Any

from parm_mlx.rewards.builtin import count_expressions, words

Reward = Callable[[Sequence[Any], Sequence[str]], list[float]]

EXAMPLES = ("for example", "for instance", "imagine", "like", "such as")
ORDER = ("after that", "finally", "first", "last", "next", "second", "then")
ADDRESS = ("you", "your", "yourself")

ALL = ("warmth", "focus", "caution", "hedging", "reasons", "detail", "questions", "exclamations")
ALL += ("examples", "order", "address", "brevity")
OWN = ("questions", "exclamations", "examples", "order", "address")


def questions(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Number of question marks."""
    return [float(answer.count("?")) for answer in answers]


def exclamations(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Number of exclamation marks."""
    return [float(answer.count("!")) for answer in answers]


def examples(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Number of expressions that announce an example or a comparison."""
    return [float(count_expressions(answer, EXAMPLES)) for answer in answers]


def order(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Number of words that put steps in order."""
    return [float(count_expressions(answer, ORDER)) for answer in answers]


def address(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """Share of the words that address the reader, in percent."""
    said = [words(answer) for answer in answers]
    return [100 * sum(word in ADDRESS for word in text) / len(text) if text else 0.0 for text in said]


def specs(names: Sequence[str]) -> dict[str, str]:
    """The SPEC of each of these rewards."""
    return {name: f"objectives:{name}" if name in OWN else f"builtin:{name}" for name in names}
