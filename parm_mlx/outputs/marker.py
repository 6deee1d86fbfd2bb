"""The marker of a directory that parm-mlx has written: its files, and what tells whether they have changed."""

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
    """The marker of a directory that parm-mlx has written; None where there is none that can be read."""
    try:
        content = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        return content if all(map(_is_inside, content["files"].keys())) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_inside(name: str) -> bool:
    """Whether a relative path stays in its directory."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def write_marker(directory: Path, content: dict[str, Any]) -> None:
    """Writes the marker of a directory, so that it outlasts a power cut.

    Raises:
        RunError: The disk is full or failed.
    """
    with disk_errors(directory):
        partial = directory / f"{MARKER}-{os.getpid()}"
        content = {"made by": f"parm-mlx {__version__}", **content}
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / MARKER)


def files_in(directory: Path) -> list[str]:
    """The files in a directory and below, as relative paths; the marker and those of the system do not count."""
    found = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(directory).as_posix() for path in found if path.name not in {MARKER, *SYSTEM_FILES}]


def written(file: Path) -> dict[str, Any]:
    """What tells whether a file has changed; while size and time are the same, its SHA-256 is not computed again."""
    found = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest}


def others_in(directory: Path, marker: dict[str, Any]) -> list[str]:
    """The files of a directory that its marker does not list, or that have changed since."""
    return [name for name in files_in(directory) if not _is_as_written(directory / name, marker["files"].get(name))]


def _is_as_written(file: Path, facts: Any) -> bool:
    if not isinstance(facts, dict) or file.is_symlink() or not file.is_file():
        return False
    found = file.stat()
    if facts.get("size") != found.st_size:
        return False
    return facts.get("mtime_ns") == found.st_mtime_ns or facts.get("sha256") == written(file)["sha256"]


def remove_own(path: Path) -> None:
    """Removes an unfinished file or directory, and of a finished directory the files that its marker lists."""
    marker = read_marker(path)
    if marker is None:
        with suppress(OSError):
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        return
    real = Path(os.path.realpath(path))
    for name in [*marker["files"], MARKER, *SYSTEM_FILES]:
        with suppress(OSError):
            if (real / name).parent == Path(os.path.realpath((real / name).parent)):
                (real / name).unlink()
    for directory in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        with suppress(OSError):
            directory.rmdir()
    with suppress(OSError):
        path.rmdir()
