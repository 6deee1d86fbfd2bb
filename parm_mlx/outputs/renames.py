"""Renames that never replace: one that fails where something stands, and one that exchanges two names.

Linux has renameat2, macOS renamex_np; both are atomic. A file system may know neither.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD = -100
_NEW, _EXCHANGE = (4, 2) if sys.platform == "darwin" else (1, 2)


def rename_new(source: Path, target: Path) -> None:
    """Renames a file or directory to a name that is free.

    Where the file system has no such rename, a file is linked to its new name, and a directory renamed after a check.

    Raises:
        FileExistsError: The name is not free.
        OSError: The rename failed.
    """
    if _rename(source, target, _NEW):
        return
    if source.is_dir():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        source.rename(target)
    else:
        source.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two files or directories; False where the file system cannot.

    Raises:
        OSError: It can, and failed.
    """
    return _rename(one, other, _EXCHANGE)


def _rename(source: Path, target: Path, flag: int) -> bool:
    call = _system_call()
    if call is None:
        return False
    if call(os.fsencode(source), os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(target))


@cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = library.renamex_np
        return lambda source, target, flag: int(swap(source, target, flag))
    renameat2 = getattr(library, "renameat2", None)
    if renameat2 is None:
        return None
    return lambda source, target, flag: int(renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flag))
