import pytest

from parm_mlx.rewards.builtin import (
    COMMON_WORDS,
    SCORERS,
    WARM_EXPRESSIONS,
    brevity,
    caution,
    count_expressions,
    detail,
    focus,
    formality,
    hedging,
    reading_ease,
    reasons,
    warmth,
    words,
)
from parm_mlx.rewards.vader import cheer, sentiment


def test_words_are_lower_case_and_keep_inner_apostrophes() -> None:
    assert words("You've got THIS, 2 times—it’s easy!") == ["you've", "got", "this", "2", "times", "it's", "easy"]


@pytest.mark.parametrize("text", ["", "  ", "...!?"])
def test_a_text_without_words_scores_zero(text: str) -> None:
    assert all(scorer(text) == 0 for scorer in SCORERS.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Put the egg in a small pot.", 0),
        ("I am so glad you asked!", 1),
        ("What a lovely question, my friend! You’ve got this!", 3),
        ("HAVE FUN, have fun", 2),
        ("The gladiator wore gloves.", 0),
        ("Good luck!\nWarm   wishes!", 2),
    ],
)
def test_warmth_counts_expressions(text: str, expected: int) -> None:
    assert warmth(text) == expected


def test_overlapping_expressions_count_once_and_the_longest_wins() -> None:
    assert count_expressions("very good luck", ("good", "good luck")) == 1
    assert count_expressions("good luck good", ("good", "good luck")) == 2


def test_brevity_is_minus_the_number_of_words() -> None:
    assert brevity("Turn the heat off.") == -4
    assert brevity("You've got this!") == -3


def test_detail_counts_each_content_word_once() -> None:
    """Content words: boil, water, egg; "the" and "in" are common, and "water" comes twice."""
    assert detail("Boil the water, the egg in water.") == 3


def test_focus_is_the_share_of_different_informing_words() -> None:
    """Boil, egg, water, now of 7 words; boil, water of 9; boil, water of 4."""
    assert focus("Boil the egg in the water now.") == pytest.approx(100 * 4 / 7)
    assert focus("I am glad! Boil water. Good luck, my friend!") == pytest.approx(100 * 2 / 9)
    assert focus("Boil water. Boil water.") == pytest.approx(50)


@pytest.mark.parametrize(
    ("scorer", "text", "expected"),
    [
        (caution, "Do not rush. Take care not to slip. Never run.", 3),
        (hedging, "Perhaps you could wait, I think.", 3),
        (reasons, "It sticks, because starch is sticky, since it is wet.", 2),
    ],
)
def test_the_other_scorers_count_their_lists(scorer: object, text: str, expected: int) -> None:
    assert callable(scorer)
    assert scorer(text) == expected


def test_lexicons_are_written_as_words_reads_them() -> None:
    for expression in (*WARM_EXPRESSIONS, *COMMON_WORDS):
        assert " ".join(words(expression)) == expression


def test_formality_is_letters_per_word_less_what_is_personal() -> None:
    """14 letters and one personal word in four; 4 letters, a contraction and an exclamation mark in one."""
    assert formality("You should not go.") == pytest.approx((14 - 8) / 4)
    assert formality("Don't!") == pytest.approx(4 - 16)
    assert formality("a" * 400) == 15


def test_reading_ease_is_flesch_s_formula() -> None:
    """6 words and 8 syllables in two sentences: "boiled" and "water" have two by spelling."""
    text = "We boiled water. It was hot."
    assert reading_ease(text) == pytest.approx(206.835 - 1.015 * 6 / 2 - 84.6 * 8 / 6)
    assert reading_ease("table") == pytest.approx(206.835 - 1.015 - 84.6 * 2)  # a final le is a syllable
    assert reading_ease("make") == pytest.approx(206.835 - 1.015 - 84.6)  # a silent e is none


def test_scorers_on_the_lexicon_of_vader() -> None:
    """There, "great" has valence 3.1 and "bad" -2.5."""
    assert cheer("A great day and a bad one") == pytest.approx(100 * 3.1 / 7)
    assert cheer("") == 0
    assert sentiment("What a great day!") > 0 > sentiment("What a bad day!")
    assert sentiment("") == 0
