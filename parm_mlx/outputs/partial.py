"""The hidden folder beside its place in which an output is written, and what becomes of it after a kill.

It is ``.NAME.partial-XXXXXXXX``, and the process that writes holds it locked (flock), so that others can tell whether
it still runs. In it, ``new`` is unfinished, or has been exchanged for the finished output; ``old/NAME`` was moved aside
for it; and ``gone/NAME`` is to be removed.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from parm_mlx.errors import OutputError
from parm_mlx.files import disk_errors
from parm_mlx.outputs.marker import remove_own
from parm_mlx.outputs.renames import rename_new

_UNFINISHED = ".parm-mlx-unfinished"
_PARTIAL = ".partial-"


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder of this process beside ``path``; whatever is in it at the end is removed."""
    try:
        with ExitStack() as held:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                folder = _hidden_folder(path, held)
            try:
                yield folder
            finally:
                _end(folder)
    except BaseException:  # a signal may come at any of these lines
        recover(path.parent)
        raise


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


def put(partial: Path, path: Path) -> None:
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


def _end(folder: Path) -> None:
    """Ends a hidden folder, whatever state it is in; of a finished directory, the files that its marker lists go."""
    for old in _entries(folder / "old"):
        with suppress(OSError, OutputError):
            put(old, folder.parent / old.name)
    name, _, letters = folder.name[1:].rpartition(_PARTIAL)
    for path in [*_entries(folder / "old"), *_entries(folder / "gone"), folder / "new"]:
        remove_own(path)
        if os.path.lexists(path):  # with files of others, which are not to stay hidden
            with suppress(OSError, OutputError):
                put(path, folder.parent / f"{name}.left-{letters}")
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
