"""The screen that a person sees: some of what ``python tests/terminals.py`` runs."""

from pathlib import Path

import pytest
from terminals import check_answers, check_chat, check_ctrl_c, check_work


@pytest.mark.parametrize(("name", "columns"), [("one", 200), ("several", 80), ("demo", 60)])
def test_answers_are_whole_words_without_pieces_of_a_bar(name: str, columns: int, tmp_path: Path) -> None:
    check_answers(name, columns, tmp_path)


def test_a_conversation_is_clean_has_history_and_completes(tmp_path: Path) -> None:
    check_chat(60, tmp_path)


def test_training_and_evaluation_leave_no_bar_and_no_broken_word(tmp_path: Path) -> None:
    check_work(60, tmp_path)


@pytest.mark.parametrize("moment", ["imports", "an answer", "a bar"])
def test_ctrl_c_leaves_a_clean_line(moment: str, tmp_path: Path) -> None:
    check_ctrl_c(moment, tmp_path)
