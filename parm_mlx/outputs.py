"""Outputs: whole or not at all, and never in the place of anything that parm-mlx has not written.

Every directory that a command writes carries a marker, ``.parm-mlx``, which lists its files and their SHA-256.
``--force`` replaces a directory only if it has a marker and holds exactly those files, unchanged. Without ``--force``
nothing is replaced, not even what has appeared while the command ran.

An output is written into a hidden folder beside its place, ``.NAME.partial-XXXXXXXX``, which the process holds locked
(flock), and renamed at the end: by a rename that fails where something stands, or with ``--force`` by one that
exchanges the two (renameat2 on Linux, renamex_np on macOS). Where the file system has neither, a check comes first, and
the old output is moved aside for a moment. The next command that writes beside such a folder ends what a killed one has
left.
"""

import fcntl
import hashlib
import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from parm_mlx import __version__
from parm_mlx.errors import OutputError
from parm_mlx.files import disk_errors, lock
from parm_mlx.renames import exchange, rename_new

MARKER = ".parm-mlx"
_UNFINISHED = ".parm-mlx-unfinished"
_PARTIAL = ".partial-"
_SYSTEM = {".DS_Store"}  # Finder leaves it in every folder that it shows
_AWAY = "move it away, or choose another --out"
_KINDS = {"run": "a run of evaluate", "checkpoints": "the checkpoints of a training run"}

Reads = Iterable[str | Path | None]


def check_new(out: str | Path, force: bool = False, reads: Reads = ()) -> Path:
    """Checks that a directory may be written; ends what a killed command has left beside it.

    Args:
        out: The directory to be made.
        force: Whether a directory that parm-mlx has written may be replaced.
        reads: Files and directories that the command reads; hub ids and None are passed over.

    Returns:
        The directory, with ``~`` expanded.

    Raises:
        OutputError: It exists and may not be replaced, or its parent cannot be written.
    """
    path = _place(out)
    if os.path.lexists(path):
        check_apart(path, reads)
        if not force:
            raise OutputError(f"{path} exists already", hint="choose another --out, or replace it with --force")
        _check_replaceable(path)
    return path


def check_new_file(out: str | Path) -> Path:
    """Checks that a file may be written where nothing is, and returns it with ``~`` expanded.

    Raises:
        OutputError: Something is there, or the folder cannot be written.
    """
    path = _place(out)
    if os.path.lexists(path):
        raise OutputError(f"{path} exists already", hint="choose another name, or move it away")
    return path


def check_apart(path: Path, reads: Reads) -> None:
    """Checks that nothing that is read is at ``path`` or below it.

    Raises:
        OutputError: Something is.
    """
    for source in reads:
        if source is not None and _contains(path, source):
            raise OutputError(f"--out {path} would replace {source}, which is read", hint="choose another --out")


@contextmanager
def new_directory(out: str | Path, force: bool = False, reads: Reads = (), run: str | None = None) -> Iterator[Path]:
    """Writes a directory whole or not at all.

    Yields an empty directory. When the block ends well it takes its place at ``out``, marked; when it does not, for
    whatever reason, it is removed, and what stood at ``out`` stands there still.

    Args:
        out: The directory to be made.
        force: Whether a directory that parm-mlx has written may be replaced.
        reads: Files and directories that the command reads.
        run: The run that the directory belongs to, for its marker.

    Raises:
        OutputError: As in :func:`check_new`; or something has appeared at ``out`` meanwhile.
        RunError: The disk is full or failed.
    """
    reads = list(reads)
    path = check_new(out, force, reads)
    with _partial(path) as folder, disk_errors(path):
        partial = folder / "new"
        partial.mkdir()
        yield partial
        _write_marker(partial, {"run": run, "files": {name: _facts(partial / name) for name in _files(partial)}})
        if force and os.path.lexists(path):
            check_new(path, force, reads)
            _replace(partial, path)
        else:
            _put(partial, path)


@contextmanager
def new_file(out: str | Path) -> Iterator[Path]:
    """Writes a file whole or not at all, where nothing is; yields the path to write to.

    Raises:
        OutputError: Something is there, or has appeared meanwhile.
        RunError: The disk is full or failed.
    """
    path = check_new_file(out)
    with _partial(path) as folder, disk_errors(path):
        (folder / "new").mkdir()
        yield folder / "new" / path.name
        _put(folder / "new" / path.name, path)


@contextmanager
def claimed(out: Path, kind: str, problem: str) -> Iterator[dict[str, Any]]:
    """Holds a directory to work in, for this process alone: makes it, or takes up one that was made for this.

    Only files that :func:`update` and :func:`own` know of are ever replaced or removed there. If it holds none at the
    end, it goes.

    Args:
        out: The directory.
        kind: What it is for: ``"run"`` or ``"checkpoints"``.
        problem: What to say where another process holds it.

    Yields:
        The content of its marker.

    Raises:
        OutputError: It holds something else, another process holds it, or it cannot be made.
    """
    check_claim(out, kind)
    handle = _locked(out, problem)
    try:
        mark(out, kind)
        recover(out)
        yield read_marker(out) or {}
    finally:
        with suppress(OSError):
            if {entry.name for entry in out.iterdir()} <= {MARKER}:
                (out / MARKER).unlink(missing_ok=True)
                out.rmdir()
        os.close(handle)


def mark(out: Path, kind: str) -> None:
    """Makes and marks a directory to work in, if that has not been done.

    Raises:
        OutputError: It holds something else.
        RunError: It cannot be made.
    """
    check_claim(out, kind)
    if read_marker(out) is None:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        _write_marker(out, {"kind": kind, "run": os.urandom(8).hex(), "files": {}})


def check_claim(out: Path, kind: str) -> None:
    """Checks that a directory can be claimed: it does not exist, is empty, or was made for this.

    Raises:
        OutputError: It cannot.
    """
    path = _place(out)
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder", hint="choose another --out")
    marker = read_marker(path)
    if marker is None and not any(entry.name not in _SYSTEM for entry in path.iterdir()):
        return
    if marker is None or marker.get("kind") != kind:
        raise OutputError(
            f"{path} is not empty, and parm-mlx has not made it for {_KINDS[kind]}",
            hint=f"{_AWAY}; results of earlier versions have no marker, and count as files of others",
        )


@contextmanager
def update(directory: Path) -> Iterator[Path]:
    """Writes files of a claimed directory, each whole or not at all, in the place of those of the same names.

    Yields an empty directory to write them into.

    Raises:
        OutputError: A file of such a name is there that parm-mlx has not written.
        RunError: The disk is full or failed.
    """
    with _partial(directory / "files") as folder, disk_errors(directory):
        partial = folder / "new"
        partial.mkdir()
        yield partial
        names = _files(partial)
        own(directory, names)
        for name in names:
            (partial / name).replace(directory / name)


def own(directory: Path, names: Iterable[str]) -> None:
    """Notes in the marker of a claimed directory that files of these names are written there from now on.

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
        _write_marker(directory, marker)


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file of a claimed directory; see :func:`update`."""
    with update(path.parent) as directory, (directory / path.name).open("w", encoding="utf-8") as file:
        file.writelines(lines)


def remove_directory(path: Path, run: str | None) -> None:
    """Removes the files of a directory of a run, all at once, and the directory unless files of others are in it.

    Raises:
        OutputError: It has no marker of this run.
        RunError: It cannot be removed.
    """
    marker = read_marker(path)
    if marker is None or marker.get("run") != run:
        raise OutputError(f"{path} is not of this run, so it is not removed", hint="move it away")
    with _partial(path) as folder, disk_errors(path):
        (folder / "gone").mkdir()
        path.rename(folder / "gone" / path.name)


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


def recover(folder: Path) -> None:
    """Ends what killed processes left in a folder: old outputs go back to their place, unfinished ones are removed.

    Folders that a running process holds are left alone, and so is all that parm-mlx has not begun.
    """
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            if not entry.name.startswith(".") or _PARTIAL not in entry.name:
                continue
            with suppress(OSError), _held(entry):
                if (entry / _UNFINISHED).is_file():
                    _end(entry)
                else:
                    entry.rmdir()


def _place(out: str | Path) -> Path:
    """Where an output goes, once its folder can be written and nothing unfinished is left there."""
    path = _expanded(out)
    path = path if path.name not in ("", "..") else Path(os.path.realpath(path))
    parent = next((p for p in path.absolute().parents if os.path.lexists(p)), path)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {parent} is not a writable directory")
    recover(path.parent)
    return path


def _check_replaceable(path: Path) -> None:
    if os.path.ismount(path) or any(_contains(path, place) for place in _protected()):
        raise OutputError(f"{path} is a home, a mount point, or holds the current directory: it is never replaced")
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"{path} is not a directory, so --force does not replace it", hint=_AWAY)
    marker = read_marker(path)
    if marker is None and not any(path.iterdir()):
        return
    if marker is None or "kind" in marker:
        raise OutputError(
            f"{path} is not a model, adapter or prepared data by parm-mlx, so --force does not replace it",
            hint=f"{_AWAY}; results of earlier versions have no marker, and count as files of others",
        )
    if others := _others(path, marker):
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise OutputError(
            f"{path} holds files that parm-mlx has not written, or that have changed since: {shown}; --force does not "
            "replace it",
            hint=_AWAY,
        )


def _protected() -> list[str]:
    places = ["~"]
    with suppress(KeyError):
        places.append(pwd.getpwuid(os.getuid()).pw_dir)
    with suppress(OSError):
        places.append(str(Path.cwd()))
    return places


def _contains(directory: Path, place: str | Path) -> bool:
    """Whether a place is a directory or lies in it, whatever the two are called."""
    real = Path(os.path.realpath(_expanded(place)))
    for path in (real, *real.parents):
        with suppress(OSError):
            if path.samefile(directory):
                return True
    return False


def _expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OutputError(f"{path}: there is no such user") from None


def _files(directory: Path) -> list[str]:
    """The files in a directory and below, as relative paths; the marker and those of the system do not count."""
    found = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(directory).as_posix() for path in found if path.name not in {MARKER, *_SYSTEM}]


def _facts(file: Path) -> dict[str, Any]:
    """What tells whether a file has changed; while size and time are the same, its SHA-256 is not computed again."""
    found = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest}


def _others(directory: Path, marker: dict[str, Any]) -> list[str]:
    """The files of a directory that its marker does not list, or that have changed since."""
    return [name for name in _files(directory) if not _is_as_written(directory / name, marker["files"].get(name))]


def _is_as_written(file: Path, facts: Any) -> bool:
    if not isinstance(facts, dict) or file.is_symlink() or not file.is_file():
        return False
    found = file.stat()
    if facts.get("size") != found.st_size:
        return False
    return facts.get("mtime_ns") == found.st_mtime_ns or facts.get("sha256") == _facts(file)["sha256"]


def _write_marker(directory: Path, content: dict[str, Any]) -> None:
    with disk_errors(directory):
        partial = directory / f"{MARKER}-{os.getpid()}"
        content = {"made by": f"parm-mlx {__version__}", **content}
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / MARKER)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yields a hidden folder of this process beside ``path``; whatever is in it at the end is removed."""
    with ExitStack() as held:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = _hidden_folder(path, held)
        try:
            yield folder
        finally:
            _end(folder)


def _hidden_folder(path: Path, held: ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}{_PARTIAL}", dir=path.parent))
        try:
            with suppress(OSError):  # a file system without locks
                held.enter_context(_held(folder))
            (folder / _UNFINISHED).touch()
            return folder
        except FileNotFoundError:  # another process has taken it for one that was left behind
            continue


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds a folder; raises OSError where another process does, or where there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _locked(directory: Path, problem: str) -> int:
    """Makes and holds a directory: a descriptor of it that is to be closed."""
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{directory} cannot be made: {error.strerror or error}") from None
        try:
            lock(handle, problem)
            if os.path.samestat(os.fstat(handle), directory.stat()):
                return handle
        except FileNotFoundError:  # its last owner has removed it
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _end(folder: Path) -> None:
    """Ends a hidden folder, whatever state it is in.

    ``new`` is unfinished, or has been exchanged for the finished output, ``old/NAME`` was moved aside for it, and
    ``gone/NAME`` is to be removed. Of a finished directory, the files that its marker lists are removed.
    """
    for old in _entries(folder / "old"):
        with suppress(OSError, OutputError):
            _put(old, folder.parent / old.name)
            continue
        _remove_own(old)
    for gone in _entries(folder / "gone"):
        _remove_own(gone)
        if gone.exists():
            with suppress(OSError, OutputError):
                _put(gone, folder.parent / gone.name)
    _remove_own(folder / "new")
    for name in ("old", "gone"):
        with suppress(OSError):
            (folder / name).rmdir()
    if [entry.name for entry in _entries(folder)] == [_UNFINISHED]:
        with suppress(OSError):
            (folder / _UNFINISHED).unlink()
            folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove_own(path: Path) -> None:
    """Removes an unfinished file or directory, and of a finished directory the files that its marker lists."""
    marker = read_marker(path)
    if marker is None:
        with suppress(OSError):
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        return
    real = Path(os.path.realpath(path))
    for name in [*marker["files"], MARKER, *_SYSTEM]:
        with suppress(OSError):
            if (real / name).parent == Path(os.path.realpath((real / name).parent)):
                (real / name).unlink()
    for directory in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        with suppress(OSError):
            directory.rmdir()
    with suppress(OSError):
        path.rmdir()


def _put(partial: Path, path: Path) -> None:
    """Renames to a path where nothing stands.

    Raises:
        OutputError: Something does.
    """
    try:
        rename_new(partial, path)
    except FileExistsError:
        raise OutputError(
            f"{path} has appeared meanwhile; it was left as it is", hint="choose another --out, or move it away"
        ) from None


def _replace(partial: Path, path: Path) -> None:
    """Puts a directory in the place of one that may be replaced.

    Raises:
        OutputError: That one has changed since it was checked; it is left where it is.
    """
    if read_marker(path) is None:
        path.rmdir()
        _put(partial, path)
    elif exchange(partial, path):
        if _others(partial, read_marker(partial) or {"files": {}}):
            exchange(partial, path)
            raise OutputError(f"{path} has changed meanwhile; it was left as it is", hint=_AWAY)
    else:
        old = partial.with_name("old")
        old.mkdir()
        path.rename(old / path.name)
        _put(partial, path)
