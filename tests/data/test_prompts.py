import json
from pathlib import Path

import pytest

from parm_mlx.data.prompts import check_distinct, read_alphas, read_prompts
from parm_mlx.errors import DataError, PreferenceError
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
    file = written(tmp_path, "  How?  ", "", {"prompt": "Why?", "id": 7}, {"prompt": CONVERSATION, "id": "talk"})
    assert read_prompts(file) == [
        Prompt(content_id("How?"), "How?", 1),
        Prompt("7", "Why?", 3),
        Prompt("talk", CONVERSATION, 4),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", ":1: broken JSON"),
        ({"text": "x"}, ':1: "prompt" is missing'),
        ({"prompt": ""}, ':1: "prompt" must be'),
        ({"prompt": []}, ':1: "prompt" must be'),
        ({"prompt": [{"role": "user"}]}, ':1: "prompt" must be'),
        ({"prompt": "x", "id": ""}, ':1: "id" must be'),
        ({"prompt": "x", "id": [1]}, ':1: "id" must be'),
        ("", "holds no prompt"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(written(tmp_path, line))
    assert problem in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(tmp_path / "binary")


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
