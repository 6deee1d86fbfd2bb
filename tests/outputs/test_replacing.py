import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import STRANGERS, broken, everything, names, write

from parm_mlx.errors import OutputError, RunError
from parm_mlx.outputs import (
    MARKER,
    check_new,
    new_directory,
    new_file,
    partial,
)
from parm_mlx.outputs.partial import exchange


@pytest.mark.usefixtures("any_rename")
def test_force_replaces_what_was_written_here(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(OutputError, match="exists already"):
        write(out, "new")
    write(out, "new", force=True)
    (out / ".DS_Store").write_text("of Finder")
    write(out, "newer", force=True)
    assert (out / "config.json").read_text() == "newer"
    assert names(tmp_path) == ["out"]


def test_force_takes_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"


@pytest.mark.parametrize("touched", [False, True])
def test_a_copy_is_replaced_too(tmp_path: Path, touched: bool) -> None:
    """Another time of change alone is no change; the SHA-256 tells."""
    out = tmp_path / "out"
    write(out, "old")
    os.utime(out / "config.json", (1, 1))
    if touched:
        (out / "config.json").write_text("new")
        with pytest.raises(OutputError, match=r"have changed since: config\.json; --force does not"):
            write(out, "newer", force=True)
    else:
        write(out, "newer", force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [*STRANGERS, broken])
def test_nothing_of_others_is_replaced(tmp_path: Path, make: Callable[[Path], None], force: bool) -> None:
    make(tmp_path / "out")
    before = everything(tmp_path)
    with pytest.raises(OutputError):
        write(tmp_path / "out", "new", force)
    with pytest.raises(OutputError), new_file(tmp_path / "out") as partial:
        partial.write_text("new")
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("any_rename")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", STRANGERS)
def test_what_appears_meanwhile_is_left_alone(tmp_path: Path, make: Callable[[Path], None], force: bool) -> None:
    def run() -> None:
        with new_directory(tmp_path / "out", force) as partial:
            (partial / "config.json").write_text("new")
            make(tmp_path / "out")
            before.update(everything(tmp_path))

    before: dict[str, str] = {}
    with pytest.raises(OutputError, match=r"meanwhile|--force does not|not a directory"):
        run()
    kept = {name: content for name, content in before.items() if ".partial-" not in name}
    assert everything(tmp_path) == kept


@pytest.mark.usefixtures("any_rename")
def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def run() -> None:
        with new_file(tmp_path / "out.jsonl") as partial:
            partial.write_text("new")
            (tmp_path / "out.jsonl").write_text("precious")

    with pytest.raises(OutputError, match="has appeared meanwhile"):
        run()
    assert everything(tmp_path) == {"out.jsonl": "precious"}
    with new_file(tmp_path / "other.jsonl") as partial:
        partial.write_text("new")
    assert everything(tmp_path) == {"out.jsonl": "precious", "other.jsonl": "new"}


def test_a_change_between_check_and_exchange_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is put into the old output at the last moment: the old output comes back, whole."""
    if partial._system_call() is None:
        pytest.skip("this system cannot exchange")
    write(tmp_path / "out", "old")

    def late(one: Path, other: Path) -> bool:
        if (tmp_path / "out" / "config.json").read_text() == "old":
            (tmp_path / "out" / "thesis.txt").write_text("precious")
        return exchange(one, other)

    monkeypatch.setattr("parm_mlx.outputs.whole.exchange", late)
    with pytest.raises(OutputError, match="has changed meanwhile"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("then", ["file", "nothing"])
def test_an_output_that_becomes_something_else_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    if partial._system_call() is None:
        pytest.skip("this system cannot exchange")
    write(tmp_path / "out", "old")

    def late(one: Path, other: Path) -> bool:
        if not (tmp_path / "away").exists():
            (tmp_path / "out").rename(tmp_path / "away")
            if then == "file":
                (tmp_path / "out").write_text("precious")
        return exchange(one, other)

    monkeypatch.setattr("parm_mlx.outputs.whole.exchange", late)
    with pytest.raises((OutputError, RunError)):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "away" / "config.json").read_text() == "old"
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_text() == "precious"


def test_links_in_an_input_count_as_read(tmp_path: Path) -> None:
    write(tmp_path / "a", "ours")
    for folder in (tmp_path / "b", tmp_path / "c" / "d"):
        folder.mkdir(parents=True)
        (folder / "config.json").symlink_to(tmp_path / "a" / "config.json")
    for source in (tmp_path / "b", tmp_path / "c"):
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a", True, [source])


def test_what_is_mounted_in_an_output_is_not_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "ours")
    (tmp_path / "out" / "disk").mkdir()
    mounted = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk" or mounted(path))
    with pytest.raises(OutputError, match="have changed since: disk"):
        check_new(tmp_path / "out", True)


def test_a_directory_that_cannot_be_looked_into_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "ours")
    (tmp_path / "out" / "private").mkdir()
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(OutputError, match="private cannot be read: Permission denied"):
        check_new(tmp_path / "out", True)


@pytest.mark.parametrize("place", ["home", "home/..", "cwd", "cwd/..", "/", ".", ""])
def test_protected_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Homes, the current directory and what they lie in are not replaced, even with a marker of ours."""
    for folder in (tmp_path, tmp_path / "home", tmp_path / "cwd"):
        folder.mkdir(exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"files": {}}))
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = place if place in ("/", ".", "") else tmp_path / place
    with pytest.raises(OutputError, match=r"never replaced|not a writable directory"):
        check_new(out, force=True)
    with pytest.raises(OutputError):
        check_new(out)


def test_inputs_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "b", "ours")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "config.json")
    for read in (tmp_path / "a" / "b", "a/b/config.json", "a/../a/b", "link"):
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a" / "b", True, [None, "owner/name", read])
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a", True, [read])
    assert check_new("a/b", True, ["owner/name", "a"]) == Path("a/b")
