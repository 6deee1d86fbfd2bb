import sys
from dataclasses import replace

import numpy as np

from parm_mlx.data.merging import Ledger, merge_notes, number
from parm_mlx.data.pairs import Pair


def ledger(*pairs: Pair) -> Ledger:
    made = Ledger()
    for pair in pairs:
        made.add(pair)
    return made


def pair(prompt: str, first: str, second: str, **preferred: int) -> Pair:
    return Pair(prompt, (first, second), preferred, "f:1")


def test_the_order_of_the_responses_does_not_matter() -> None:
    rows = ledger(pair("1", "a", "b", x=0), pair("2", "a", "b", x=1), pair("1", "b", "a", y=0)).merge(["x", "y"])
    assert rows.pair.tolist() == [0, 1, 0]
    assert rows.first.tolist() == rows.kept.tolist() == [True, True, False]
    assert rows.preferred(0, ["x", "y"]) == {"x": 0, "y": 1}
    assert rows.preferred(2, ["x", "y"]) == {"x": 1, "y": 0}
    assert rows.preferred(1, ["x", "y"]) == {"x": 1}


def test_labels_against_each_other_and_labels_that_agree() -> None:
    rows = ledger(
        pair("1", "a", "b", x=0), pair("1", "b", "a", x=1), pair("2", "a", "b", x=0), pair("2", "a", "b", x=1)
    )
    merged = rows.merge(["x"])
    assert (merged.contradictions.tolist(), merged.kept.tolist()) == ([1], [True, False, False, False])
    assert merged.unlabelled.tolist() == [False, False, True, False]
    assert rows.labels == {"x": 4}


def test_margins_follow_the_labels_of_a_merged_pair() -> None:
    """The first margin of a label counts, in either order of the responses; contradicted labels have none."""
    rows = [
        replace(pair("1", "a", "b", x=0, y=1), margins={"y": 0.5}),
        replace(pair("1", "b", "a", x=1), margins={"x": 2.0}),
        replace(pair("1", "a", "b", x=0), margins={"x": 3.0}),
        replace(pair("2", "a", "b", x=0, y=0), margins={"x": 1.0, "y": 4.0}),
        replace(pair("2", "a", "b", x=1), margins={"x": 1.0}),
    ]
    merged = ledger(*rows).merge(["y", "x"])
    assert merged.margins(0, ["y", "x"]) == {"y": 0.5, "x": 2.0}
    assert merged.margins(3, ["y", "x"]) == {"y": 4.0}
    assert ledger(*rows).merge(["x"]).margins(0, ["x"]) == {"x": 2.0}


def test_equal_responses_are_no_pair() -> None:
    merged = ledger(pair("1", "a", "a", x=0), pair("1", "a", "a", x=1)).merge(["x"])
    assert (merged.equal, merged.kept.any(), merged.repeated.any()) == (2, False, False)
    assert merged.labels.shape == (0, 1)


def test_nothing_and_objectives_that_are_not_asked_for() -> None:
    assert ledger().merge(["x"]).kept.tolist() == []
    merged = ledger(pair("1", "a", "b", other=0), pair("2", "a", "b", other=0, x=1)).merge(["x"])
    assert merged.kept.tolist() == [False, True]
    assert merged.labels.tolist() == [[-1], [1]]


def test_a_row_takes_a_few_bytes_whatever_its_texts() -> None:
    made = ledger(*(pair(f"{i} " * 500, "a" * 1000, "b" * 1000, x=0, y=1) for i in range(400)))
    size = sum(sys.getsizeof(value) for value in vars(made).values())
    assert size < 400 * 100


def test_numbers_follow_the_first_appearance() -> None:
    numbers, first = number(np.array([b"c", b"a", b"c", b"b", b"a"]))
    assert (numbers.tolist(), first.tolist()) == ([0, 1, 0, 2, 1], [0, 1, 3])


def test_notes_are_about_what_happened() -> None:
    assert merge_notes(0, 0, {"x": 0}) == []
    assert len(merge_notes(1, 2, {"x": 3, "y": 0})) == 3
