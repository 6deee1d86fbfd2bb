import pytest

from parm_mlx.data.pairing import Distribution, Pairing, ScoredAnswer, alike, correlations, different, trimmed


def answer(text: str, tokens: int, ended: bool = True, **scores: float) -> ScoredAnswer:
    return ScoredAnswer(text, ended, tokens, scores)


# x prefers by number, y against it but for the last
ANSWERS = [
    answer("Red apples fall in autumn.", 10, x=0.0, y=9.0),
    answer("Blue skies stay until the evening.", 9, x=2.0, y=4.0),
    answer("Green leaves turn with the sun.", 10, False, x=5.0, y=3.0),
    answer("A very long tale of many kings and their quarrels.", 30, x=9.0, y=9.5),
]
NONE, UNIT = {"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}


def chosen(pairing: Pairing) -> list[tuple[str, str]]:
    return [(pair.responses[0].split()[0], pair.responses[1].split()[0]) for pair in pairing("q", ANSWERS, "here")]


def test_all_takes_every_pair_of_even_length() -> None:
    pairs = Pairing("all", 0.3, NONE, UNIT)("q", ANSWERS, "here")
    assert [pair.preferred for pair in pairs] == [{"x": 1, "y": 0}] * 3
    assert [pair.margins for pair in pairs] == [{"x": 2.0, "y": 5.0}, {"x": 5.0, "y": 6.0}, {"x": 3.0, "y": 1.0}]
    assert [pair.ended for pair in pairs] == [(True, True), (True, False), (True, False)]
    assert len(Pairing("all", 1.0, NONE, UNIT)("q", ANSWERS, "here")) == 6


def test_lengths_may_differ_by_a_share_of_the_longer_one() -> None:
    assert len(Pairing("all", 0.1, NONE, UNIT)("q", ANSWERS, "here")) == 3  # 9 and 10: a tenth of 10
    assert len(Pairing("all", 0.09, NONE, UNIT)("q", ANSWERS, "here")) == 1


def test_best_takes_for_each_objective_the_pair_furthest_apart() -> None:
    assert chosen(Pairing("best", 0.3, NONE, UNIT)) == [("Red", "Green")]  # furthest for both: once
    assert chosen(Pairing("best", 1.0, NONE, UNIT)) == [("Red", "A"), ("Green", "A")]


def test_conflict_takes_pairs_in_which_objectives_disagree_first() -> None:
    assert chosen(Pairing("conflict", 1.0, NONE, UNIT)) == [("Red", "Green"), ("Red", "Blue"), ("Blue", "Green")]
    assert chosen(Pairing("conflict", 1.0, NONE, {"x": 1.0, "y": 100.0}))[:2] == [("Red", "Green"), ("Blue", "Green")]


def test_leads_below_the_smallest_margin_are_no_labels() -> None:
    pairs = Pairing("all", 0.3, {"x": 3.0, "y": 5.0}, UNIT)("q", ANSWERS, "here")
    assert [pair.preferred for pair in pairs] == [{"y": 0}, {"x": 1, "y": 0}, {"x": 1}]
    assert Pairing("best", 0.3, {"x": 50.0, "y": 50.0}, UNIT)("q", ANSWERS, "here") == []


def test_near_duplicates_make_no_pair() -> None:
    twice = [answer("The cat sat on the mat today.", 7, x=1.0), answer("the cat sat on the mat, today", 7, x=2.0)]
    assert Pairing("all", 0.3, {"x": 0.0}, {"x": 1.0})("q", twice, "here") == []


def test_near_duplicates_share_four_fifths_of_their_word_triples() -> None:
    text = "one two three four five six seven eight nine ten eleven"  # 9 triples
    assert alike(text, f"{text} twelve")  # 9 of 10
    assert alike(text, f"{text} twelve thirteen")  # 9 of 11
    assert not alike(text, f"{text} twelve thirteen fourteen")  # 9 of 12
    assert alike("", "")
    assert alike("Yes.", "yes")
    assert not alike("Yes.", "No.")
    assert list(different(["a b c d", "A b, c d!", "d c b a"])) == ["a b c d", "d c b a"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It is so. And then", "It is so."),
        ('She said "no!" Then she', 'She said "no!"'),
        ("Do this:\n1. Boil it.\n2. Eat it.\n3.", "Do this:\n1. Boil it.\n2. Eat it."),
        ("1. Boil", ""),
        ("Version 3.5 of", ""),
        ("no end", ""),
        ("All of it.", "All of it."),
        ("", ""),
    ],
)
def test_unfinished_text_ends_with_its_last_sentence(text: str, kept: str) -> None:
    assert trimmed(text) == kept


def test_distribution_by_hand() -> None:
    assert Distribution.of([1, 3]) == Distribution(2.0, 1.0, 1.0, 3.0)


def test_correlation_is_within_prompts() -> None:
    # within a and b, y falls as x rises; over all, it rises
    columns = {"x": [0.0, 1.0, 10.0, 11.0], "y": [1.0, 0.0, 11.0, 10.0], "z": [4.0, 4.0, 5.0, 5.0]}
    assert correlations(columns, ["a", "a", "b", "b"]) == pytest.approx({("x", "y"): -1, ("x", "z"): 0, ("y", "z"): 0})


def test_the_order_of_answers_decides_nothing_but_the_order_of_responses() -> None:
    pairing = Pairing("best", 1.0, NONE, UNIT)
    there, back = (pairing("q", answers, "here") for answers in (ANSWERS, ANSWERS[::-1]))
    assert {pair.key for pair in there} == {pair.key for pair in back}
