import os
from pathlib import Path

import pytest
from folders import everything, foreign, names, write

from parm_mlx.errors import OutputError, RunError
from parm_mlx.outputs import (
    MARKER,
    claimed,
    own,
    read_marker,
    recover,
    remove_directory,
    update,
    write_file,
)


def test_a_claimed_folder_is_of_one_process_and_of_one_kind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, "run", "in use") as marker:
        with pytest.raises(OutputError, match="in use"), claimed(folder, "run", "in use"):
            pass
        write_file(folder / "a.txt", ["1\n"])
    with claimed(folder, "run", "in use") as again:
        assert again["run"] == marker["run"]
    with pytest.raises(OutputError, match="has not made it for the checkpoints"), claimed(folder, "checkpoints", ""):
        pass
    with claimed(tmp_path / "nothing", "run", "in use"):
        pass
    assert names(tmp_path) == ["run"], "a folder that holds nothing goes"
    foreign(tmp_path / "mine")
    with pytest.raises(OutputError, match="has not made it for a run"), claimed(tmp_path / "mine", "run", ""):
        pass
    assert names(tmp_path / "mine") == ["config.json", "thesis.txt"]


def test_a_claimed_folder_replaces_its_own_files_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", "run", "in use"):
        (tmp_path / "run" / "report.html").write_text("mine")
        with pytest.raises(OutputError, match=r"report\.html is not a file that parm-mlx has written"):
            write_file(tmp_path / "run" / "report.html", ["ours"])
        with update(tmp_path / "run") as partial:
            (partial / "a").write_text("1")
            (partial / "b").write_text("1")
        write_file(tmp_path / "run" / "a", ["2"])
        own(tmp_path / "run", ["a", "c"])
        (tmp_path / "precious").write_text("precious")
    assert everything(tmp_path / "run") | {MARKER: ""} == {"a": "2", "b": "1", "report.html": "mine", MARKER: ""}


def test_a_marker_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with claimed(tmp_path / "run", "run", "in use"):
        own(tmp_path / "run", ["a"])
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="the disk is full"):
            own(tmp_path / "run", ["b"])
        monkeypatch.undo()
        assert list((read_marker(tmp_path / "run") or {})["files"]) == ["a"]
        assert names(tmp_path / "run") == [MARKER]


def test_a_directory_of_a_run_is_removed_and_files_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path / "step", "1", run="a")
    for run in ("b", None):
        with pytest.raises(OutputError, match="not of this run"):
            remove_directory(tmp_path / "step", run)
    remove_directory(tmp_path / "step", "a")
    assert names(tmp_path) == []
    write(tmp_path / "step", "1", run="a")
    (tmp_path / "step" / "notes.txt").write_text("mine")
    remove_directory(tmp_path / "step", "a")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("step.left-")
    assert (left / "notes.txt").read_text() == "mine"
    recover(tmp_path)
    assert (left / "notes.txt").read_text() == "mine"
