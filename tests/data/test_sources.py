from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.data.sources import find_parts
from parm_mlx.errors import DataError

Write = Callable[..., Path]


def names(source: Path, *objectives: str) -> list[tuple[str, str, str | None]]:
    return [(part.name, part.split, part.objective) for part in find_parts(source, objectives)]


def test_files(write_rows: Write) -> None:
    assert names(write_rows([], "helpful.jsonl.gz")) == [("helpful.jsonl.gz", "train", "helpful")]
    assert names(write_rows([], "test.jsonl")) == [("test.jsonl", "train", None)]


def test_folders_per_objective(write_rows: Write, tmp_path: Path) -> None:
    for name in ("a/train.jsonl.gz", "a/test.json", "b/valid.jsonl", "b/train.jsonl", "docs/readme.md", ".git/x.json"):
        write_rows([], name)
    assert names(tmp_path) == [
        ("a/train.jsonl.gz", "train", "a"),
        ("b/train.jsonl", "train", "b"),
        ("b/valid.jsonl", "valid", "b"),
        ("a/test.json", "test", "a"),
    ]
    assert [name for name, _, _ in names(tmp_path, "b", "c")] == ["b/train.jsonl", "b/valid.jsonl"]
    assert len(names(tmp_path, "c")) == 4


def test_files_of_the_folder_itself_come_first(write_rows: Write, tmp_path: Path) -> None:
    write_rows([], "a/train.jsonl")
    write_rows([], "helpful.jsonl")
    assert names(tmp_path) == [("helpful.jsonl", "train", "helpful")]


@pytest.mark.parametrize("name", ["b/attempts.jsonl", "b/test.jsonl"])
def test_a_folder_that_is_no_objective(write_rows: Write, tmp_path: Path, name: str) -> None:
    write_rows([], "a/train.jsonl")
    write_rows([], name)
    with pytest.raises(DataError, match=rf"data .*/b: a folder per objective holds train\.jsonl.*not {name[2:]}"):
        find_parts(tmp_path)
    assert len(names(tmp_path, "a")) == 1


def test_two_files_of_one_name_in_a_folder_of_a_folder(write_rows: Write, tmp_path: Path) -> None:
    write_rows([], "a/train.jsonl")
    write_rows([], "a/train.json")
    with pytest.raises(DataError, match=r"/a: both train\.json and train\.jsonl; keep one of them"):
        find_parts(tmp_path)
