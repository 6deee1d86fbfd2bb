"""Built-in scorers: deterministic, published functions from an answer to a number, larger is more.

They score style, not truth. The bundled PARM is trained on ``warmth`` and ``focus``, and the demo prints them.
"""

import re
from collections.abc import Callable
from functools import cache


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


WARM_EXPRESSIONS = _listed(
    "always here for you, be kind to yourself, cheering for you, delighted, enjoy every minute, glad, good for you, "
    "good luck, great question, happy for you, happy to help, have fun, hug, i believe in you, in good hands, "
    "lovely, my friend, proud of you, right here with you, take good care of yourself, trust yourself, warm wishes, "
    "well done, with pleasure, wonderful, you are doing great, you can do this, you are so welcome, you've got this"
)
HEDGES = _listed(
    "appears, could, i guess, i think, i would, i wouldn't, may, maybe, might, perhaps, probably, seems, usually"
)
CAUTIONS = _listed(
    "avoid, be careful, do not, don't, important not to, never, not to, should not, take care not, unwise"
)
REASONS = _listed("as, because, reason, since, so that")
PERSONAL = _listed(
    "i, i'd, i'll, i'm, i've, let's, me, mine, my, myself, our, ours, ourselves, us, we, we'd, we'll, we're, we've, "
    "you, you'd, you'll, you're, you've, your, yours, yourself, yourselves"
)
_COMMON = (
    "a about after again all also am an and any are as at be because been before but by can could did do does "
    "don't for from get go had has have he her here him his how i if in into is it its just like make may maybe "
    "me might more most my need never no not of off on one or other our out over perhaps please put she should "
    "simply so some such take than that the their them then there they this to too up us use very was way we well "
    "were what when where which while who why will with without would you your you've"
)
COMMON_WORDS = frozenset(_COMMON.split())
_SENTENCE = re.compile(r"[.!?\n]+")
_VOWELS = re.compile(r"[aeiouy]+")
_WORD = re.compile(r"[A-Za-z0-9]+(?:['’][A-Za-z]+)*")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case: runs of letters or digits, with inner apostrophes."""
    return [match.group().lower().replace("’", "'") for match in _WORD.finditer(text)]


def count_expressions(text: str, expressions: tuple[str, ...]) -> int:
    """Counts expressions as whole words, longest first, without overlap, in any case."""
    return len(_pattern(expressions).findall(" ".join(words(text))))


@cache
def _pattern(expressions: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(expressions, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(re.escape(expression) for expression in longest_first) + r")\b")


def warmth(text: str) -> float:
    """Number of warm expressions (WARM_EXPRESSIONS) in the text."""
    return float(count_expressions(text, WARM_EXPRESSIONS))


def brevity(text: str) -> float:
    """Minus the number of words: 0 for an empty text, -30 for thirty words."""
    return -float(len(words(text)))


def detail(text: str) -> float:
    """Number of different words that carry content, which is all but COMMON_WORDS."""
    return float(len(set(words(text)) - COMMON_WORDS))


def focus(text: str) -> float:
    """Share of the words that inform, in percent: different content words outside of warm expressions, over all words.

    Pleasantries and repetitions lower it. 0 for an empty text.
    """
    said = words(text)
    informing = words(_pattern(WARM_EXPRESSIONS).sub(" ", " ".join(said)))
    return 100 * len(set(informing) - COMMON_WORDS) / len(said) if said else 0.0


def caution(text: str) -> float:
    """Number of warnings (CAUTIONS) in the text."""
    return float(count_expressions(text, CAUTIONS))


def hedging(text: str) -> float:
    """Number of hedges (HEDGES) in the text."""
    return float(count_expressions(text, HEDGES))


def reasons(text: str) -> float:
    """Number of words that announce a reason (REASONS) in the text."""
    return float(count_expressions(text, REASONS))


def formality(text: str) -> float:
    """Letters per word, minus 0.08 for each personal word, contraction and exclamation mark in 100 words.

    Personal words are those of the first and second person (PERSONAL). A word counts as 15 letters at most, so that
    one endless word decides nothing. 0 for an empty text.
    """
    said = words(text)
    if not said:
        return 0.0
    letters = sum(min(len(word.replace("'", "")), 15) for word in said)
    informal = sum(word in PERSONAL for word in said) + sum("'" in word for word in said) + text.count("!")
    return (letters - 8 * informal) / len(said)


def reading_ease(text: str) -> float:
    """Flesch's reading ease, 206.835 − 1.015 words per sentence − 84.6 syllables per word (Flesch, 1948).

    100 is easy, 0 very hard. A sentence ends with . ! ? or a line. Syllables are counted by spelling: groups of vowels,
    without a silent e at the end. 0 for an empty text.
    """
    said = words(text)
    if not said:
        return 0.0
    sentences = sum(bool(words(part)) for part in _SENTENCE.split(text))
    return 206.835 - 1.015 * len(said) / sentences - 84.6 * sum(map(_syllables, said)) / len(said)


def _syllables(word: str) -> int:
    groups = len(_VOWELS.findall(word))
    return max(1, groups - (groups > 1 and word.endswith("e") and not word.endswith(("le", "ee"))))


_ALL = (warmth, brevity, detail, focus, caution, hedging, reasons, formality, reading_ease)
SCORERS: dict[str, Callable[[str], float]] = {scorer.__name__: scorer for scorer in _ALL}
