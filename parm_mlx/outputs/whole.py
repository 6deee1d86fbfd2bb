"""Directories and files that appear whole or not at all."""

import os
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parm_mlx.errors import OutputError
from parm_mlx.files import expanded
from parm_mlx.outputs.marker import files_in, others_in, read_marker, write_marker, written
from parm_mlx.outputs.partial import exchange, partial_folder, put, recover

AWAY = "move it away, or choose another --out"
UNMARKED = f"{AWAY}; what has no marker of parm-mlx counts as files of others"

Reads = Iterable[str | Path | None]


def check_new(out: str | Path, force: bool = False, reads: Reads = ()) -> Path:
    """Checks that a directory may be written, and returns it with ``~`` expanded.

    Args:
        out: The directory to be made.
        force: Replace a directory that parm-mlx has written.
        reads: Files and directories that the command reads; hub ids and None are passed over.

    Raises:
        OutputError: It exists and may not be replaced, or its parent cannot be written.
    """
    path = place(out)
    if os.path.lexists(path):
        check_apart(path, reads)
        if not force:
            raise OutputError(f"{path} exists already", hint="choose another --out, or replace it with --force")
        _check_replaceable(path, quick=True)
    return path


def check_new_file(out: str | Path) -> Path:
    """Checks that a new file may be written, and returns it with ``~`` expanded; raises an OutputError if not."""
    path = place(out)
    if os.path.lexists(path):
        raise OutputError(f"{path} exists already", hint="choose another name, or move it away")
    return path


def check_apart(path: Path, reads: Reads) -> None:
    """Raises an OutputError if an input is at ``path`` or below it."""
    for source in reads:
        if source is not None and any(_contains(path, place) for place in _places(expanded(source, OutputError))):
            raise OutputError(f"--out {path} would replace {source}, which is read", hint="choose another --out")


def _places(source: Path) -> Iterator[Path]:
    """Yields a file or directory, and the links in it and in the directories in it."""
    yield source
    with suppress(OSError):
        if source.is_dir():
            for folder in [source, *filter(Path.is_dir, source.iterdir())]:
                yield from filter(Path.is_symlink, folder.iterdir())


@contextmanager
def new_directory(out: str | Path, force: bool = False, reads: Reads = (), run: str | None = None) -> Iterator[Path]:
    """Writes a directory whole or not at all; arguments as in :func:`check_new`, and the run for its marker.

    Yields an empty directory. At the end of the block it is marked and renamed to ``out``. If the block fails, for any
    reason, it is removed, and ``out`` is as it was.

    Raises:
        OutputError: As in :func:`check_new`; or something has appeared at ``out`` meanwhile.
        RunError: The disk is full or failed.
    """
    reads = list(reads)
    path = check_new(out, force, reads)
    with partial_folder(path) as partial:
        yield partial
        files = {name: written(partial / name) for name in files_in(partial)}
        write_marker(partial, {"name": path.name, "run": run, "files": files})
        if force and os.path.lexists(path):
            check_apart(path, reads)
            _check_replaceable(path)
            _replace(partial, path)
        else:
            put(partial, path)


@contextmanager
def new_file(out: str | Path) -> Iterator[Path]:
    """Writes a new file whole or not at all; yields the path to write to. Errors as in :func:`new_directory`."""
    path = check_new_file(out)
    with partial_folder(path) as folder:
        yield folder / path.name
        put(folder / path.name, path)


def remove_directory(path: Path, run: str | None) -> None:
    """Removes the files of a run's directory at once, and the directory unless it holds files of others."""
    marker = read_marker(path)
    if marker is None or marker.get("run") != run:
        raise OutputError(f"{path} is not of this run, so it is not removed", hint="move it away")
    with partial_folder(path) as partial:
        gone = partial.with_name("gone")
        gone.mkdir()
        path.rename(gone / path.name)


def place(out: str | Path) -> Path:
    """Returns where an output goes, once its folder can be written and nothing unfinished is left there."""
    path = expanded(out, OutputError)
    path = path if path.name not in ("", "..") else Path(os.path.realpath(path))
    parent = next((p for p in path.absolute().parents if os.path.lexists(p)), path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {parent} is not a writable directory")
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    recover(path.parent)
    return path


def _check_replaceable(path: Path, quick: bool = False) -> None:
    """Checks that --force may replace a directory; a quick check does not hash files of the same size and time."""
    if os.path.ismount(path) or any(_contains(path, place) for place in _protected()):
        raise OutputError(f"{path} is a home, a mount point, or holds the current directory: it is never replaced")
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"{path} is not a directory, so --force does not replace it", hint=AWAY)
    marker = read_marker(path)
    try:
        empty, others = not any(path.iterdir()), others_in(path, marker, quick) if marker else []
    except OSError as error:
        raise OutputError(f"{error.filename} cannot be read: {error.strerror}", hint=AWAY) from None
    if marker is None and empty:
        return
    if marker is None or "kind" in marker:
        problem = f"{path} is not a model, adapter or prepared data by parm-mlx, so --force does not replace it"
        raise OutputError(problem, hint=UNMARKED)
    if others:
        raise OutputError(
            f"{path} holds files that parm-mlx has not written, or that have changed since: {', '.join(others[:3])}"
            "; --force does not replace it",
            hint=AWAY,
        )


def _protected() -> list[str]:
    places = ["~"]
    with suppress(KeyError):
        places.append(pwd.getpwuid(os.getuid()).pw_dir)
    with suppress(OSError):
        places.append(str(Path.cwd()))
    return places


def _contains(directory: Path, place: str | Path) -> bool:
    """Returns True if a place is a directory or lies in it, by inode, not by name."""
    real = Path(os.path.realpath(expanded(place, OutputError)))
    for path in (real, *real.parents):
        with suppress(OSError):
            if path.samefile(directory):
                return True
    return False


def _replace(partial: Path, path: Path) -> None:
    """Puts a directory in the place of one that may be replaced, unless that has changed since it was checked."""
    if read_marker(path) is None:
        path.rmdir()
        put(partial, path)
    elif exchange(partial, path):
        marker = read_marker(partial)
        if marker is None or others_in(partial, marker, quick=True):
            exchange(partial, path)
            raise OutputError(f"{path} has changed meanwhile; it was left as it is", hint=AWAY)
    else:
        old = partial.with_name("old")
        old.mkdir()
        path.rename(old / path.name)
        put(partial, path)
