"""The figures of docs/paper.md, by hand."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def paper(repository: Path) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(repository / "docs" / "make_paper.py")))


def test_weights_of_the_backbone(paper: SimpleNamespace) -> None:
    """32 layers of 4096 · (4 · 4096 + 3 · 11008) numbers, and an output layer of 32000 · 4096."""
    assert paper.numbers() == 32 * 4096 * (4 * 4096 + 3 * 11008) + 32000 * 4096 == 6_607_077_376
    assert paper.quantised() == pytest.approx((paper.numbers() + 32000 * 4096) * (0.5 + 4 / 64))


def test_answers_are_of_held_out_prompts_at_eleven_preferences_and_unguided(paper: SimpleNamespace) -> None:
    assert paper.prompts() == 889
    assert paper.answers() == 889 * 12


def test_seconds_on_a_machine_of_round_numbers(paper: SimpleNamespace) -> None:
    """At 2.5 · 10¹² operations a second, of which 10¹² are reached, a token takes 2 · 6.607 ms in a pass."""
    machine, lengths = paper.Machine(1e12, 2.5e12), paper.Lengths(prompt=10, response=20, answer=30)
    token = 2 * 6_607_077_376 / 1e12
    assert paper.label_seconds(lengths, machine) == pytest.approx(2 * 20_000 * 30 * token)
    assert paper.train_seconds(lengths, machine) == pytest.approx(2 * 16_000 * 30 * 3 * token)
    assert paper.score_seconds(lengths, machine) == pytest.approx(2 * 889 * 12 * 40 * token)
    assert paper.answer_seconds(lengths, machine) == pytest.approx(889 * 12 / 32 * 30 * 64 * token)


def test_a_step_of_answers_takes_the_time_of_reading_where_that_is_longer(paper: SimpleNamespace) -> None:
    """In 4 bits 6,607,077,376 · 9/16 bytes, and 64 caches of 25 tokens of 2 · 32 · 4096 16-bit numbers."""
    machine, lengths = paper.Machine(1e9, 1e18), paper.Lengths(prompt=10, response=20, answer=30)
    step = (6_607_077_376 * 9 / 16 + 64 * 25 * 2 * 32 * 4096 * 2) / 1e9
    assert paper.answer_seconds(lengths, machine) == pytest.approx(889 * 12 / 32 * 30 * step)


def test_the_table_adds_up(paper: SimpleNamespace) -> None:
    *steps, total = [[float(cell.split(" / ")[1]) for cell in row.split("|")[2:-1]] for row in paper.hours_table()[2:]]
    for column, whole in zip(zip(*steps, strict=True), total, strict=True):
        assert sum(column) == pytest.approx(whole, abs=0.6)
