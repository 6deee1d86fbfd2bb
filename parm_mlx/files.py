"""Files and directories that are read: local paths, the Hugging Face hub; locks; what goes wrong on a disk."""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parm_mlx.errors import InputError, ModelError, OutputError, RunError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.jsonl"]


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
