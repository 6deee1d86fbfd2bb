"""The marker of a directory that parm-mlx has written: its files, and how to tell if they have changed."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from parm_mlx import __version__
from parm_mlx.files import disk_errors

MARKER = ".parm-mlx"
SYSTEM_FILES = {".DS_Store"}  # Finder leaves it in every folder that it shows


def read_marker(directory: Path) -> dict[str, Any] | None:
    """Returns the marker of a directory that parm-mlx has written; None if it has none that can be read."""
    try:
        content = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        outside = [name for name in content["files"] if Path(name).is_absolute() or ".." in Path(name).parts]
        return None if outside or not isinstance(content["files"], dict) else content
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_marker(directory: Path, content: dict[str, Any]) -> None:
    """Writes the marker of a directory, whole or not at all, so that it outlasts a power cut."""
    partial = directory / f"{MARKER}-{os.urandom(8).hex()}"
    with disk_errors(directory):
        try:
            with partial.open("x", encoding="utf-8") as file:
                file.write(json.dumps({"made by": f"parm-mlx {__version__}", **content}, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(directory / MARKER)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def files_in(directory: Path) -> list[str]:
    """Returns the files in a directory and below, as relative paths, without the marker and those of the system.

    What is mounted in it counts as one file. Raises an OSError if a directory cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    names = []
    for folder, inner, files in os.walk(directory, onerror=fail):
        entries = [Path(folder, name) for name in inner]
        mounted = [path for path in entries if path.is_symlink() or os.path.ismount(path)]
        inner[:] = [path.name for path in entries if path not in mounted]
        names += [path.relative_to(directory).as_posix() for path in [*mounted, *(Path(folder, f) for f in files)]]
    return sorted(name for name in names if name.rpartition("/")[2] not in {MARKER, *SYSTEM_FILES})


def written(file: Path) -> dict[str, Any]:
    """Returns size, time of change and SHA-256 of a file."""
    found = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest}


def others_in(directory: Path, marker: dict[str, Any], quick: bool = False) -> list[str]:
    """Returns the files of a directory that its marker does not list, or that have changed since.

    If ``quick``, a file of the same size and time counts as unchanged; otherwise its SHA-256 is computed.
    """
    facts = marker["files"]
    return [name for name in files_in(directory) if not _is_as_written(directory / name, facts.get(name), quick)]


def _is_as_written(file: Path, facts: Any, quick: bool) -> bool:
    if not isinstance(facts, dict) or file.is_symlink() or not file.is_file():
        return False
    found = file.stat()
    if facts.get("size") != found.st_size:
        return False
    same_time = facts.get("mtime_ns") == found.st_mtime_ns
    return (quick and same_time) or facts.get("sha256") == written(file)["sha256"]


def remove_own(path: Path) -> None:
    """Removes an unfinished file or directory; of a finished directory, the files that its marker lists, if unchanged.

    A file that was noted before it was written (see :func:`parm_mlx.outputs.own`) is ours as it is. Files of others
    stay, with the directory and its marker.
    """
    marker = None if path.is_symlink() else read_marker(path)
    if marker is None:
        with suppress(OSError):
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        others = others_in(path, marker, quick=True)
        for name in files_in(path):
            if name not in others or marker["files"].get(name, others) is None:
                (path / name).unlink()
    for folder, _, _ in os.walk(path, topdown=False):
        with suppress(OSError):
            left = [entry for entry in Path(folder).iterdir() if entry.name not in SYSTEM_FILES]
            if not left or (left == [path / MARKER]):
                shutil.rmtree(folder)
