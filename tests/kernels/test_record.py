import json
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.errors import RunError
from parm_mlx.kernels import launcher
from parm_mlx.kernels.launcher import circumstances, read_record, record_path, save_record

pytestmark = pytest.mark.usefixtures("empty_cache")

PASSED = {("combine", "float32"), ("lowrank", "bfloat16")}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    assert read_record() == set()
    assert save_record(PASSED) == record_path() == tmp_path / "parm-mlx" / "kernels.json"
    assert read_record() == PASSED
    save_record([])
    assert read_record() == set()
    assert [path.name for path in record_path().parent.iterdir()] == ["kernels.json"]


def test_the_default_folder_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert record_path() == tmp_path / ".cache" / "parm-mlx" / "kernels.json"


@pytest.mark.parametrize("what", ["device", "system", "mlx", "kernels"])
def test_a_record_of_other_circumstances_is_ignored(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_record(PASSED)
    monkeypatch.setattr(launcher, "circumstances", lambda: circumstances() | {what: "another"})
    assert read_record() == set()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"made with": 1, "passed": []}',
    ],
)
def test_a_broken_file_is_ignored(text: bytes) -> None:
    save_record(PASSED)
    record_path().write_bytes(text)
    assert read_record() == set()


@pytest.mark.parametrize(
    "passed", [None, 1, "combine", ["combine"], [["combine"]], [["combine", "float32", 1]], {"combine": "float32"}]
)
def test_so_is_one_whose_list_is_no_list_of_pairs(passed: Any) -> None:
    record_path().parent.mkdir(parents=True)
    record_path().write_text(json.dumps({"made with": circumstances(), "passed": passed}))
    assert read_record() & PASSED == set()


def test_a_folder_that_cannot_be_written_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"could not be written to .*kernels\.json: Not a directory"):
        save_record(PASSED)
    assert read_record() == set()


@pytest.mark.parametrize("name", ["combine.metal", "combine.py", "cuda.h"])
def test_another_text_is_another_fingerprint(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in launcher._FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(launcher, "_FOLDER", tmp_path)
    fingerprint = launcher.fingerprint.__wrapped__
    before = fingerprint()
    assert before == launcher.fingerprint()
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert fingerprint() != before
