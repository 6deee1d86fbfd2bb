"""Folders that a command works in: runs of evaluate, and checkpoints of trainings."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from parm_mlx.errors import OutputError
from parm_mlx.files import disk_errors
from parm_mlx.outputs.marker import MARKER, SYSTEM_FILES, files_in, read_marker, write_marker
from parm_mlx.outputs.partial import partial_folder, put, recover
from parm_mlx.outputs.whole import UNMARKED, place

_KINDS = {
    "run": "a run of evaluate",
    "samples": "a run of data sample",
    "checkpoints": "the checkpoints of a training run",
}


@contextmanager
def claimed(out: Path, kind: str, problem: str) -> Iterator[dict[str, Any]]:
    """Creates or reopens a working directory, and locks it for this process.

    Only files written by :func:`update` or named to :func:`own` are ever replaced or removed there. A directory that
    is empty at the end is removed.

    Args:
        out: The directory.
        kind: Its purpose: ``"run"``, ``"samples"`` or ``"checkpoints"``.
        problem: The message of an OutputError if another process holds it.

    Yields:
        The content of its marker.
    """
    check_claim(out, kind)
    with _locked(out, problem):
        try:
            mark(out, kind)
            recover(out)
            yield read_marker(out) or {}
        finally:
            with suppress(OSError):
                if {entry.name for entry in out.iterdir()} <= {MARKER}:
                    (out / MARKER).unlink(missing_ok=True)
                    out.rmdir()


def mark(out: Path, kind: str) -> None:
    """Makes and marks a directory to work in, unless it is one already."""
    check_claim(out, kind)
    if read_marker(out) is None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_marker(out, {"kind": kind, "run": os.urandom(8).hex(), "files": {}})


def check_claim(out: Path, kind: str) -> None:
    """Checks that a directory can be claimed: it does not exist, is empty, or was made for this purpose."""
    path = place(out)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder", hint="choose another --out")
    marker = read_marker(path)
    if marker is None and not any(entry.name not in SYSTEM_FILES for entry in path.iterdir()):
        return
    if marker is None or marker.get("kind") != kind:
        raise OutputError(f"{path} is not empty, and parm-mlx has not made it for {_KINDS[kind]}", hint=UNMARKED)


@contextmanager
def update(directory: Path) -> Iterator[Path]:
    """Writes files of a claimed directory, each whole or not at all, replacing those of the same names.

    Yields an empty directory to write them into. Errors as in :func:`own`.
    """
    with partial_folder(directory / "files") as partial, disk_errors(directory):
        yield partial
        names = files_in(partial)
        new = own(directory, names)
        for name in names:
            if name in new:
                put(partial / name, directory / name)
            else:
                (partial / name).replace(directory / name)


def own(directory: Path, names: Iterable[str]) -> list[str]:
    """Notes in the marker of a claimed directory that files of these names are ours; returns those that were not yet.

    Raises:
        OutputError: A file of such a name is there that parm-mlx has not written.
    """
    marker = read_marker(directory)
    if marker is None:
        raise OutputError(f"{directory} has no marker of parm-mlx any more", hint="choose another --out")
    new = [name for name in names if name not in marker["files"]]
    for name in new:
        if os.path.lexists(directory / name):
            raise OutputError(f"{directory / name} is not a file that parm-mlx has written", hint="move it away")
    if new:
        marker["files"] |= dict.fromkeys(new)
        write_marker(directory, marker)
    return new


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file of a claimed directory; see :func:`update`."""
    with update(path.parent) as directory, (directory / path.name).open("w", encoding="utf-8") as file:
        file.writelines(lines)


@contextmanager
def _locked(directory: Path, problem: str) -> Iterator[None]:
    """Makes a directory, and holds it locked."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{directory} cannot be made: {error.strerror or error}") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(problem, hint="wait for it, or choose another --out") from None
            except OSError:  # a file system without locks
                pass
            try:
                is_there = os.path.samestat(os.fstat(handle), directory.stat())
            except FileNotFoundError:  # its last owner has removed it
                is_there = False
            if is_there:
                yield
                return
        finally:
            os.close(handle)
