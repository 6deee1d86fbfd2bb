"""Scorers on the lexicon of VADER (Hutto and Gilbert, ICWSM 2014; the extra ``scorers``)."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from parm_mlx.errors import InputError
from parm_mlx.rewards.builtin import words


def check_installed() -> None:
    """Raises InputError where vaderSentiment is not installed."""
    if find_spec("vaderSentiment") is None:
        hint = "install it: pip install 'parm-mlx[scorers]'"
        raise InputError(f"the scorers {' and '.join(SCORERS)} need vaderSentiment", hint=hint)


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(text: str) -> float:
    """VADER's compound sentiment, from -1 to 1: valences of words, with rules for negation, emphasis and capitals."""
    return float(_analyzer().polarity_scores(text)["compound"])


def cheer(text: str) -> float:
    """Positive valence for every 100 words, by VADER's lexicon: 0 for an empty text. Negative words do not count."""
    said, valences = words(text), _analyzer().lexicon
    return 100 * sum(max(0.0, float(valences.get(word, 0))) for word in said) / max(len(said), 1)


SCORERS: dict[str, Callable[[str], float]] = {scorer.__name__: scorer for scorer in (sentiment, cheer)}
