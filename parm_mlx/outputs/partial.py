"""Renames that never replace, and the hidden folder beside its place in which an output is written.

The hidden folder, ``.NAME.partial-XXXXXXXX``, is locked by the process that writes, so that others can tell if it still
runs. In it, ``new`` is unfinished, or has been exchanged for the finished output; ``old/NAME`` was moved aside for it;
and ``gone/NAME`` is to be removed. An empty file with the folder's inode in its name tells that parm-mlx made it; a
folder that was planted or copied has another inode, and is left alone.
"""

import ctypes
import errno
import fcntl
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from parm_mlx.errors import OutputError
from parm_mlx.files import disk_errors
from parm_mlx.outputs.marker import remove_own

_PARTIAL = ".partial-"
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD = -100
_NEW, _EXCHANGE = (4, 2) if sys.platform == "darwin" else (1, 2)


def put(partial: Path, path: Path) -> None:
    """Renames a file or directory to a path that is free; raises an OutputError if it is not.

    If the file system has no such rename, a file is linked to its new name, and a directory renamed after a check.
    """
    try:
        if _rename(partial, path, _NEW):
            return
        if not partial.is_dir():
            _link(partial, path)
        elif os.path.lexists(path):
            raise FileExistsError
        else:
            partial.rename(path)
    except FileExistsError:
        raise OutputError(
            f"{path} has appeared meanwhile; it was left as it is", hint="choose another --out, or move it away"
        ) from None


def _link(partial: Path, path: Path) -> None:
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # no links either
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        partial.rename(path)
    else:
        partial.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two files or directories; returns False if the file system cannot."""
    return _rename(one, other, _EXCHANGE)


def _rename(source: Path, target: Path, flag: int) -> bool:
    call = _system_call()
    if call is None:
        return False
    if call(os.fsencode(source), os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    """Linux has renameat2, macOS renamex_np; both are atomic. A file system may know neither."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        return lambda source, target, flag: int(library.renamex_np(source, target, flag))
    renameat2 = getattr(library, "renameat2", None)
    if renameat2 is None:
        return None
    return lambda source, target, flag: int(renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flag))


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields the empty directory ``new`` in a hidden folder beside ``path``; what is in the folder at the end goes."""
    try:
        with ExitStack() as held, disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = _hidden_folder(path, held)
            try:
                (folder / "new").mkdir()
                yield folder / "new"
            finally:
                _end(folder)
    except BaseException:  # a signal may come at any of these lines
        recover(path.parent)
        raise


def recover(folder: Path) -> None:
    """Cleans up in a folder after killed processes: old outputs go back to their place, unfinished ones are removed.

    Folders that a running process holds, and all that parm-mlx has not made, are left alone.
    """
    with suppress(OSError):
        for entry in list(folder.iterdir()):
            if not entry.name.startswith(".") or _PARTIAL not in entry.name:
                continue
            with suppress(OSError), _held(entry):
                if made_here(entry).is_file():
                    _end(entry)
                else:
                    entry.rmdir()


def made_here(folder: Path) -> Path:
    """Returns the empty file that tells that a hidden folder was made by parm-mlx."""
    return folder / f".parm-mlx-unfinished-{folder.stat().st_ino}"


def _hidden_folder(path: Path, held: ExitStack) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}{_PARTIAL}", dir=path.parent))
        try:
            with suppress(OSError):  # a file system without locks
                held.enter_context(_held(folder))
            made_here(folder).touch()
            return folder
        except FileNotFoundError:  # another process has taken it for one that was left behind
            continue


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder; raises OSError if another process holds it, or there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _end(folder: Path) -> None:
    """Ends a hidden folder in any state; of finished directories in it, only the files that their markers list go."""
    for old in _entries(folder / "old"):
        with suppress(OSError, OutputError):
            put(old, folder.parent / old.name)
    name, _, letters = folder.name[1:].rpartition(_PARTIAL)
    for path in [*_entries(folder / "old"), *_entries(folder / "gone"), folder / "new"]:
        remove_own(path)
        if os.path.lexists(path):  # it holds files of others, which are not to stay hidden
            with suppress(OSError, OutputError):
                put(path, folder.parent / f"{name}.left-{letters}")
    with suppress(OSError):
        for inner in ("old", "gone"):
            if (folder / inner).exists():
                (folder / inner).rmdir()
        mark = made_here(folder)
        if _entries(folder) == [mark]:
            mark.unlink()
            folder.rmdir()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
