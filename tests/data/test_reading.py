import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.data import reading
from parm_mlx.data.pairs import Problems
from parm_mlx.data.reading import read_rows


def read(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    problems = Problems()
    return list(read_rows(path, problems)), problems.shown


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
    monkeypatch.setattr(reading, "MAX_LINE", 100)
    rows, shown = read(write(tmp_path / "f.jsonl", "x" * 1000 + "\n{}\n"))
    assert rows == [("f.jsonl:2", {})]
    assert shown[0].startswith("f.jsonl:1: the line is longer")


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_a_list_is_read_row_by_row_with_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
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
        (b"[{},\n{'\xff'}]", "f.json:1: not UTF-8 text, here or soon after"),
    ],
)
def test_a_broken_list_says_where(tmp_path: Path, content: str | bytes, problem: str) -> None:
    assert read(write(tmp_path / "f.json", content))[1] == [problem]


def test_a_huge_row_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 2**20)
    rows, shown = read(write(tmp_path / "f.json", '[{},\n"' + "x" * 5 * 2**20 + '"]'))
    assert rows == [("f.json:1", {})]
    assert shown == ["f.json:2: broken JSON, or a row longer than 1 MiB"]


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
