"""Folders with outputs of ours and files of others, for the tests of outputs."""

import json
import os
from pathlib import Path

from parm_mlx.outputs import (
    MARKER,
    claimed,
    new_directory,
    write_file,
)


def write(out: Path, content: str, force: bool = False, run: str | None = None) -> None:
    with new_directory(out, force, run=run) as partial:
        (partial / "config.json").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def disguised(folder: Path) -> None:
    """A file that was changed, with the size and the time that it had."""
    write(folder, "ours")
    before = (folder / "config.json").stat()
    (folder / "config.json").write_text("mine")
    os.utime(folder / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "thesis.txt").write_text("years of work")


def mixed(folder: Path) -> None:
    write(folder, "ours")
    (folder / "thesis.txt").write_text("years of work")


def below(folder: Path) -> None:
    write(folder, "ours")
    (folder / "chapters").mkdir()
    (folder / "chapters" / "1.txt").write_text("years of work")


def edited(folder: Path) -> None:
    write(folder, "ours")
    (folder / "config.json").write_text("mine now")


def linked(folder: Path) -> None:
    """A directory of ours under another name: the link is not ours."""
    write(folder.with_name("elsewhere"), "ours")
    folder.symlink_to(folder.with_name("elsewhere"))


def linked_inside(folder: Path) -> None:
    """A folder of ours whose file became a link to a file elsewhere, with the same content."""
    write(folder, "ours")
    (folder / "config.json").rename(folder.with_name("config"))
    (folder / "config.json").symlink_to(folder.with_name("config"))


def dangling(folder: Path) -> None:
    folder.symlink_to("nowhere")


def file(folder: Path) -> None:
    folder.write_text("years of work")


def a_run(folder: Path) -> None:
    with claimed(folder, "run", "in use"):
        write_file(folder / "results.jsonl", ["hours of work\n"])


def forged(folder: Path) -> None:
    """A marker that names files elsewhere is none."""
    folder.mkdir()
    folder.with_name("precious").write_text("years of work")
    (folder / MARKER).write_text(json.dumps({"files": {"../precious": None}}))


def forged_absolute(folder: Path) -> None:
    folder.mkdir()
    (folder / MARKER).write_text(json.dumps({"files": {str(folder.with_name("precious")): None}}))


def broken(folder: Path) -> None:
    folder.mkdir()
    (folder / MARKER).write_text("[" * 100_000)


STRANGERS = [
    foreign,
    mixed,
    below,
    edited,
    disguised,
    linked,
    linked_inside,
    dangling,
    file,
    a_run,
    forged,
    forged_absolute,
]


def everything(folder: Path) -> dict[str, str]:
    """All that is below a folder: contents of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else "folder"
    return found
