"""Where directories come from and how they are written: local paths, the Hugging Face hub, whole-or-nothing outputs."""

import errno
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parm_mlx.errors import InputError, ModelError, OutputError, RunError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.jsonl"]
_OURS = ("config.json", "adapter_config.json", "prepared.json")


def resolve(source: str | Path, what: str = "model") -> Path:
    """Finds a model or adapter directory, and downloads it when it is the id of a hub repository.

    Args:
        source: A local directory, or ``owner/name`` on the Hugging Face hub. A local directory wins.
        what: What is looked for, as the error should call it.

    Returns:
        The local directory.

    Raises:
        ModelError: There is no such directory, and it is no repository id or the hub has no such repository.
        RunError: The download failed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{what} {source} is a file, not a directory", hint="give the directory that holds it")
    if not _HUB_ID.fullmatch(str(source)):
        raise ModelError(f"{what} {source}: no such directory")
    return _download(str(source), what)


def _download(repo_id: str, what: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    hint = f"if {repo_id} is meant to be a local directory, check its path"
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_DOWNLOADED))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{what} {repo_id} needs permission on the hub", hint="accept its terms there, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{what} {repo_id}: no such directory, and no such repository on the hub", hint=hint
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise RunError(f"{what} {repo_id} is not on this machine, and the hub cannot be reached", hint=hint) from error
    except OSError as error:
        raise RunError(f"{what} {repo_id} could not be downloaded: {error}", hint=hint) from error


def check_new(path: str | Path, force: bool = False) -> Path:
    """Checks that a directory may be written at ``path``.

    Args:
        path: The directory to be made.
        force: Whether an existing model, adapter or prepared data directory there may be replaced.

    Raises:
        OutputError: It exists and may not be replaced, or its parent cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() or path.is_symlink():
        if not force:
            raise OutputError(f"{path} exists already", hint="choose another --out, or replace it with --force")
        replaceable = path.is_dir() and not path.is_symlink()
        if not replaceable or (any(path.iterdir()) and not any((path / name).is_file() for name in _OURS)):
            raise OutputError(
                f"{path} is not a model, adapter or prepared data directory, so --force does not replace it"
            )
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: {parent} is not a writable directory")
    return path


@contextmanager
def new_directory(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Writes a directory whole or not at all.

    Yields a temporary directory beside ``path``. When the block ends well it is renamed to ``path``; when it does not,
    for whatever reason, it is removed, and what stood at ``path`` before stands there still.

    Raises:
        OutputError: As in :func:`check_new`.
        RunError: The disk is full or failed.
    """
    path = check_new(path, force)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_file(path: str | Path, force: bool = False) -> Path:
    """Checks that a file may be written at ``path``, and returns it.

    Args:
        path: The file to be made.
        force: Whether a file that exists there may be replaced.

    Raises:
        OutputError: It exists and may not be replaced, or its folder cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no file, so it cannot be replaced by one")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already", hint="choose another --out, or replace it with --force")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: {parent} is not a writable directory")
    return path


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Writes a file whole, or leaves what is there.

    Raises:
        RunError: The disk is full or failed.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _swap(partial: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        with suppress(OSError):
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Ends what a process that was killed inside :func:`new_directory` left beside ``path``.

    Half-written directories are removed. What was about to be replaced is put back, unless it has been replaced.
    Nothing may be writing to ``path`` meanwhile.
    """
    with disk_errors(path):
        for old in path.parent.glob(f".{glob.escape(path.name)}.old-*"):
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(path)
        for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
            shutil.rmtree(partial, ignore_errors=True)


def remove_directory(path: Path) -> None:
    """Removes a directory so that it is gone whole: renamed first, in the way that :func:`recover` knows."""
    gone = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors(path):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def lock(handle: int, problem: str) -> None:
    """Holds an open file or directory for this process, until it is closed.

    Args:
        handle: Its file descriptor.
        problem: What to say where another process holds it.

    Raises:
        OutputError: Another process does.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(problem, hint="wait for it, or choose another --out") from None
    except OSError:  # a file system without locks
        return


def flush_files(directory: Path) -> None:
    """Waits until the files of a directory are on the disk, so that they outlast a power cut after a rename."""
    for file in directory.iterdir():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a failed write below ``path`` into a :class:`RunError` that names the reason."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk is full: {path} was not written") from error
        raise RunError(f"{path} was not written: {error.strerror or error}") from error
    except RuntimeError as error:
        if "[write]" not in str(error):
            raise
        raise RunError(f"{path} was not written: {error}", hint="the disk may be full") from error


def read_json(path: Path, what: str, error: type[InputError]) -> dict[str, object]:
    """Reads a JSON object.

    Raises:
        InputError: Of the given class, when the file is missing, is no JSON, or holds something else than an object.
    """
    import json

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{what}: {path.name} is missing in {path.parent}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as reason:
        raise error(f"{what}: {path} is not readable JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{what}: {path} must hold a JSON object, not {type(value).__name__}")
    return value
