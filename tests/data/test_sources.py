import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parm_mlx.data import sources
from parm_mlx.data.pairs import Problems
from parm_mlx.data.sources import check_regular, find_files, read_rows
from parm_mlx.errors import DataError

Write = Callable[..., Path]


def names(source: Path, *objectives: str) -> list[tuple[str, str, str | None]]:
    return [(file.name, file.split, file.objective) for file in find_files(source, objectives)]


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
        find_files(tmp_path)
    assert len(names(tmp_path, "a")) == 1


def test_two_files_of_one_name_in_a_folder_of_a_folder(write_rows: Write, tmp_path: Path) -> None:
    write_rows([], "a/train.jsonl")
    write_rows([], "a/train.json")
    with pytest.raises(DataError, match=r"/a: both train\.json and train\.jsonl; keep one of them"):
        find_files(tmp_path)


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev", "eval"])
def test_the_names_of_a_split_for_validation(write_rows: Write, tmp_path: Path, name: str) -> None:
    for file in ("train.json", f"{name}.json", "test.json"):
        write_rows([], file)
    splits = [("train.json", "train", None), (f"{name}.json", "valid", None), ("test.json", "test", None)]
    assert names(tmp_path) == splits
    write_rows([], "a/dev.jsonl")
    write_rows([], "a/train.jsonl")
    assert names(tmp_path / "a" / "dev.jsonl") == [("dev.jsonl", "train", None)]
    write_rows([], "a/val.jsonl")
    with pytest.raises(DataError, match=r"both dev\.jsonl and val\.jsonl"):
        find_files(tmp_path / "a")


def test_files_of_the_official_release_that_are_no_splits(write_rows: Write, tmp_path: Path) -> None:
    for stem in ("all", "train", "dev", "test", "test_prompt_only"):
        write_rows([], f"{stem}.json")
    assert [split for _, split, _ in names(tmp_path)] == ["train", "valid", "test"]


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        find_files(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="no such file"):
        check_regular(tmp_path / "none")
    for path in (tmp_path / "pipe.jsonl", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="not a regular file"):
            check_regular(path)


@pytest.mark.parametrize("source", ["~nobody-of-this-name/x.jsonl", "x" * 5000, "a\0b", "/dev/null/x"])
def test_paths_that_cannot_be(source: str) -> None:
    with pytest.raises(DataError):
        find_files(source)


def read(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    problems = Problems()
    return [(f"{path.name}:{line}", row) for line, row in read_rows(path, problems)], problems.shown


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_that_are_no_text_are_problems_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", b"\xef\xbb\xbf{}\n\n{\xff}\n{}")
    assert read(path) == ([("f.jsonl:1", {}), ("f.jsonl:4", {})], ["f.jsonl:3: not UTF-8 text (byte 2 of the line)"])


@pytest.mark.parametrize("name", ["f.jsonl", "f.json"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("[{}]\n{}\n", encoding="utf-16")
    assert read(path) == ([], [f"{name}:1: the file is UTF-16; save it as UTF-8"])


def test_a_huge_line_is_skipped_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 100)
    rows, shown = read(write(tmp_path / "f.jsonl", "x" * 1000 + "\n{}\n"))
    assert rows == [("f.jsonl:2", {})]
    assert shown[0].startswith("f.jsonl:1: the line is longer")


def test_a_list_is_read_row_by_row_with_its_lines(tmp_path: Path) -> None:
    rows = [{"a": "é" * i, "b": [i]} for i in range(5)]
    path = write(tmp_path / "f.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n\n")
    assert read(path) == ([(f"f.json:{2 + 6 * i}", row) for i, row in enumerate(rows)], [])


def test_an_empty_list_and_a_list_on_one_line(tmp_path: Path) -> None:
    assert read(write(tmp_path / "f.json", "\n []\n")) == ([], [])
    assert read(write(tmp_path / "f.json", '\ufeff[{"a": 1}, 2]')) == ([("f.json:1", {"a": 1}), ("f.json:1", 2)], [])


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    assert read(write(tmp_path / "f.json", "{}\n{}\n")) == ([("f.json:1", {}), ("f.json:2", {})], [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[\n{"a": 1},\n{"a" 1}]', "f.json:3: broken JSON: Expecting ':' delimiter at column 6"),
        ("[{}\n\n{}]", "f.json:3: broken JSON: rows of a list are separated by ','"),
        ("[{},\n", "f.json:2: broken JSON: Expecting value at column 1"),
        ("[{}\n", "f.json:2: the list has no end"),
        ("[{}]\n\n{}", "f.json:3: broken JSON: something follows the end of the list"),
        ("[" * 100_000, "f.json:1: broken JSON: a number or a nesting that is too large"),
        (b"[{},\n{'\xff'}]", "f.json:2: not UTF-8 text"),
    ],
)
def test_a_broken_list_says_where(tmp_path: Path, content: str | bytes, problem: str) -> None:
    assert read(write(tmp_path / "f.json", content))[1] == [problem]


def test_a_row_or_a_list_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "f.json", '[{},\n"' + "x" * 200 + '",\n3]')
    monkeypatch.setattr(sources, "MAX_LINE", 100)
    rows, shown = read(path)
    assert rows == [("f.json:1", {}), ("f.json:3", 3)]
    assert [problem.partition(": ")[0] for problem in shown] == ["f.json:2"]
    monkeypatch.setattr(sources, "MAX_LIST", 100)
    rows, shown = read(path)
    assert rows == []
    assert "save it as JSON lines" in shown[0]


@pytest.mark.parametrize("name", ["f.jsonl.gz", "f.json.gz", "f.jsonl"])
def test_gzip_is_seen_by_its_content(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert read(path) == ([(f"{name}:1", {"a": 1}), (f"{name}:2", {"a": 2})], [])


def test_a_list_in_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "f.json.gz", gzip.compress(b'[{"a": 1},\n{"a": 2}]'))
    assert read(path) == ([("f.json.gz:1", {"a": 1}), ("f.json.gz:2", {"a": 2})], [])


@pytest.mark.parametrize("cut", [-9, 15, 2])
def test_a_broken_gzip_file(tmp_path: Path, cut: int) -> None:
    rows, shown = read(write(tmp_path / "f.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 3)[:cut]))
    assert len(shown) == 1
    assert shown[0].startswith(f"f.jsonl.gz:{max(1, len(rows))}: the compressed file is broken here or soon after")


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.lists(
        st.sampled_from(['{"a":1}', "[", "]", ",", "\n", '"', "1" * 400, "1e999", "\ufeff", "\\ud800", "{"])
    ).map(lambda pieces: "".join(pieces).encode()),
    name=st.sampled_from(["f.jsonl", "f.json", "f.json.gz"]),
    packed=st.booleans(),
)
def test_no_content_breaks_the_reader(tmp_path: Path, content: bytes, name: str, packed: bool) -> None:
    path = write(tmp_path / name, gzip.compress(content) if packed else content)
    rows, shown = read(path)
    places = [int(where.split(":")[1]) for where in [where for where, _ in rows] + shown]
    assert all(1 <= line <= content.count(b"\n") + 1 for line in places)
