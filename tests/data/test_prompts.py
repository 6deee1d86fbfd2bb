import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parm_mlx.data.prompts import check_distinct, read_alphas, read_prompts
from parm_mlx.errors import DataError, ParmError, PreferenceError
from parm_mlx.guidance.prompts import Prompt, content_id

CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Go on"},
]


def written(folder: Path, *lines: object) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def test_texts_objects_and_conversations_are_read_with_their_ids(tmp_path: Path) -> None:
    rows = ["How?", {"prompt": "Why?", "id": 7}, {"prompt": CONVERSATION, "uid": "talk"}]
    expected = [(content_id("How?"), "How?"), ("7", "Why?"), ("talk", CONVERSATION)]
    assert [(p.id, p.content) for p in read_prompts(written(tmp_path, *map(json.dumps, rows)))] == expected
    (tmp_path / "prompts.json").write_text(json.dumps(rows, indent=1))
    assert [(p.id, p.content) for p in read_prompts(tmp_path / "prompts.json")] == expected


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "{How} do I?\n\nWhy é?\n"),
        ("questions", "{How} do I?\n\nWhy é?\n"),
        ("p.jsonl", '{"prompt": "{How} do I?"}\n\n "Why é?"\n'),
        ("p.json", '["{How} do I?",\n\n{"prompt": "Why é?"}]\n'),
        ("p.csv", 'prompt,note\n{How} do I?,x\n"Why é?",y\n'),
    ],
)
def test_the_same_prompts_from_every_kind_of_file(tmp_path: Path, name: str, text: str, end: str, bom: str) -> None:
    (tmp_path / name).write_bytes((bom + text.replace("\n", end)).encode())
    found = read_prompts(tmp_path / name)
    assert [(prompt.content, prompt.id) for prompt in found] == [(t, content_id(t)) for t in ("{How} do I?", "Why é?")]
    assert [prompt.line for prompt in found] == ([2, 3] if name == "p.csv" else [1, 3])


def test_rows_without_a_suffix_are_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"prompt": "How?"}\n')
    with pytest.raises(DataError, match="a file of prompts must end with"):
        read_prompts(tmp_path / "rows")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", ":1: broken JSON"),
        ("How?", ":1: broken JSON"),
        ({"text": "x"}, ":1: 'prompt' is missing; the row has 'text'"),
        ([CONVERSATION], ":1: a prompt is a text, or an object with 'prompt'"),
        ({"prompt": ""}, ":1: 'prompt' is empty"),
        ({"prompt": []}, ":1: 'prompt' holds no message"),
        ({"prompt": [{"role": "user"}]}, ":1: message 1 of 'prompt' must have"),
        ({"prompt": CONVERSATION[:2]}, ":1: the last message of 'prompt' must not be the assistant's"),
        ({"prompt": "x", "id": ""}, ":1: 'id' must be"),
        ({"prompt": "x", "id": [1]}, ":1: 'id' must be"),
        ({"prompt": "x", "id": True}, ":1: 'id' must be"),
        ('{"prompt": "a\\ud800"}', ":1: 'prompt' holds half of a surrogate pair"),
        ('{"prompt": "x", "id": ' + "1" * 5000 + "}", ":1: broken JSON"),
        ('{"prompt": ' + "[" * 100_000, ":1: broken JSON"),
        ("", "holds no prompt"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(written(tmp_path, line))
    assert problem in str(caught.value)


@pytest.mark.parametrize("text", ["question\nWhy?\n", "", 'prompt\n"a" b\n', "prompt\n" + "x" * 200_000])
def test_a_wrong_csv_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=r"p\.csv"):
        read_prompts(tmp_path / "p.csv")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "binary.txt").write_bytes(b"a\n\xff\xfe\xff")
    with pytest.raises(DataError, match=r"binary\.txt is not UTF-8"):
        read_prompts(tmp_path / "binary.txt")
    for name in ("p.jsonl.gz", "p.yaml"):
        with pytest.raises(DataError, match=rf"{name}: a file of prompts must end with \.txt, \.jsonl"):
            read_prompts(tmp_path / name)


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from(["txt", "jsonl", "json", "csv"]))
def test_no_content_breaks_the_readers(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"prompts.{suffix}"
    file.write_bytes(content)
    for read in (read_prompts, lambda path: read_alphas(path, ["a", "b"])):
        with suppress(ParmError):
            assert read(file)


def test_the_same_id_or_prompt_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p"
    with pytest.raises(DataError, match="p:2: the same prompt as on line 1"):
        check_distinct([Prompt(content_id("x"), "x", 1), Prompt(content_id("x"), "x", 2)], file)
    with pytest.raises(DataError, match="p:9: the same id '3' as on line 4"):
        check_distinct([Prompt("3", "x", 4), Prompt("3", "y", 9)], file)
    check_distinct([Prompt("1", "x", 1), Prompt("2", "x", 2)], file)


def test_preferences_of_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, "0.7,0.3", "[1, 0]", "harmless=2,helpful=2")
    assert read_alphas(file, ["helpful", "harmless"]) == [(0.7, 0.3), (1.0, 0.0), (0.5, 0.5)]
    with pytest.raises(DataError, match=":2: the same preference as on line 1"):
        read_alphas(written(tmp_path, "1,1", "0.5,0.5"), ["a", "b"])
    with pytest.raises(PreferenceError, match=":1: alpha has 3"):
        read_alphas(written(tmp_path, "1,1,1"), ["a", "b"])
    with pytest.raises(DataError, match="holds no preference"):
        read_alphas(written(tmp_path, ""), ["a", "b"])
