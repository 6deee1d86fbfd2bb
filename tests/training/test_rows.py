import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.errors import DataError
from parm_mlx.training import rows as rows_module
from parm_mlx.training.rows import Problems, RowError, parse_row, read_lines

SHARED = {"prompt": "Hi", "responses": ["a", "b"], "preferred": {"safe": 0, "help": 1}}
SINGLE = {"prompt": "Hi", "chosen": "a", "rejected": "b", "objective": "help"}

BAD = [
    ("{", "broken JSON"),
    ('{"prompt": "Hi" "chosen": "a"}', "broken JSON: Expecting ',' delimiter at column 17"),
    ("[" * 100_000, "nesting that is too large"),
    ('{"a": ' + "9" * 5000 + "}", "too large"),
    ("[1]", "a row must be a JSON object, not a list"),
    ('"text"', "not a text"),
    ("null", "not null"),
    ('{"prompt": "a\0b"}', "NUL"),
    ({k: v for k, v in SHARED.items() if k != "prompt"}, "'prompt' is missing"),
    (SHARED | {"prompt": " "}, "'prompt' is empty"),
    (SHARED | {"prompt": 3}, "'prompt' must be a text or a list of messages, not a number"),
    (SHARED | {"prompt": []}, "'prompt' holds no message"),
    (SHARED | {"prompt": [{"role": "user"}]}, "message 1 of 'prompt' must have 'role' and 'content'"),
    (SHARED | {"prompt": [{"role": "user", "content": None}]}, "'content' of message 1 must be a text, not null"),
    (SHARED | {"prompt": [{"role": "assistant", "content": "x"}]}, "must not be the assistant's"),
    (SHARED | {"prompt": "half \ud800"}, "surrogate"),
    ({"prompt": "Hi"}, "needs 'responses' and 'preferred', or 'chosen' and 'rejected'"),
    ({"prompt": "Hi", "responses": ["a", "b"]}, "'preferred' is missing"),
    ({"prompt": "Hi", "preferred": {"safe": 0}}, "'responses' is missing"),
    ({"prompt": "Hi", "chosen": "a"}, "'rejected' is missing"),
    (SHARED | SINGLE, "not 'chosen' and 'preferred' and 'rejected' and 'responses'"),
    (SHARED | {"responses": ["a"]}, "'responses' must be a list of two texts, not a list of 1"),
    (SHARED | {"responses": "ab"}, "'responses' must be a list of two texts, not a text"),
    (SHARED | {"responses": ["a", 2]}, "the second response must be a text, not a number"),
    (SHARED | {"responses": ["a", "b\0"]}, "NUL"),
    (SHARED | {"responses": ["a", "a"]}, "both responses are equal"),
    (SHARED | {"preferred": {}}, "at least one objective"),
    (SHARED | {"preferred": [0, 1]}, "at least one objective"),
    (SHARED | {"preferred": {"safe": 2}}, "'preferred' of 'safe' must be 0 or 1, not 2"),
    (SHARED | {"preferred": {"safe": True}}, "'preferred' of 'safe' must be 0 or 1, not true"),
    (SHARED | {"preferred": {"safe": "0"}}, "'preferred' of 'safe' must be 0 or 1"),
    (SHARED | {"preferred": {"": 0}}, "objective names must not be empty"),
    (SHARED | {"preferred": {"a=b": 0}}, "must not hold"),
    (SINGLE | {"chosen": "b"}, "both responses are equal"),
    (SINGLE | {"rejected": ["b"]}, "'rejected' must be a text, not a list"),
    (SINGLE | {"objective": 1}, "'objective' must be a text, not a number"),
    ({k: v for k, v in SINGLE.items() if k != "objective"}, "'objective' is missing"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_says_what_is_wrong(row: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row if isinstance(row, str) else json.dumps(row), "f:1")
    assert reason in str(caught.value)


def test_both_forms_are_read() -> None:
    pair = parse_row(json.dumps(SHARED | {"id": 7}), "f:1")
    assert (pair.prompt, pair.responses, pair.preferred) == ("Hi", ("a", "b"), {"safe": 0, "help": 1})
    pair = parse_row(json.dumps(SINGLE), "f:2")
    assert (pair.responses, pair.preferred, pair.where) == (("a", "b"), {"help": 0}, "f:2")
    pair = parse_row(json.dumps({"prompt": "Hi", "chosen": "", "rejected": "b"}), "f:3", "safe")
    assert (pair.responses, pair.preferred) == (("", "b"), {"safe": 0})


def test_a_prompt_is_the_same_as_text_and_as_one_message() -> None:
    text = parse_row(json.dumps(SHARED), "f:1")
    message = parse_row(json.dumps(SHARED | {"prompt": [{"role": "user", "content": "Hi ", "name": "x"}]}), "f:2")
    assert message.prompt == [{"role": "user", "content": "Hi "}]
    assert text.prompt_key == message.prompt_key


def lines_of(path: Path) -> tuple[list[str], list[str]]:
    problems = Problems()
    return [text for _, text in read_lines(path, problems)], problems.shown


def test_lines_that_are_no_text_are_problems_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\n\n{\xff}\n{}")
    texts, shown = lines_of(path)
    assert texts == ["{}\n", "{}"]
    assert shown == ["f.jsonl:3: not UTF-8 text (byte 2 of the line)"]


def test_utf_16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("{}\n{}\n", encoding="utf-16")
    assert lines_of(path) == ([], ["f.jsonl:1: the file is UTF-16; save it as UTF-8"])


def test_a_huge_line_is_skipped_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_LINE", 100)
    path = tmp_path / "f.jsonl"
    path.write_text("x" * 1000 + "\n{}\n")
    texts, shown = lines_of(path)
    assert texts == ["{}\n"]
    assert shown[0].startswith("f.jsonl:1: the line is longer")


def test_problems_are_counted_all_and_shown_up_to_twenty(write_rows: Callable[..., Path]) -> None:
    problems = Problems()
    problems.raise_any("data")
    for i in range(33):
        problems.add(f"f:{i + 1}", "bad")
    with pytest.raises(DataError) as caught:
        problems.raise_any("data")
    lines = str(caught.value).splitlines()
    assert lines[0] == "data: 33 rows cannot be used"
    assert lines[1] == "  f:1: bad"
    assert lines[-1] == "  … and 13 more"
    assert len(lines) == 22
