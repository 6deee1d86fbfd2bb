"""Files and directories that are read: paths, text, JSON and YAML, hub ids; failures of a disk."""

import errno
import fcntl
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from parm_mlx.errors import InputError, ModelError, RunError, first_line

MAX_TEXT = 2**28  # bytes
MAX_INTEGER = 10**300  # larger ones do not fit into a float
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DOWNLOADED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.jsonl"]


def expanded(path: str | Path, error: type[InputError] = InputError) -> Path:
    """Returns a path with ``~`` or ``~user`` at its start expanded; of a folder named ``~x`` (``./~x``), the full path.

    Raises ``error`` if there is no such user, or the path is not UTF-8 or holds a NUL character.
    """
    try:
        if b"\0" in str(path).encode():
            raise error(f"{path}: a path cannot hold a NUL character")
    except UnicodeEncodeError:
        raise error(f"{path}: a path must be UTF-8") from None
    text = os.path.expanduser(path)  # noqa: PTH111  (pathlib expands ./~x too)
    if text.startswith("~"):
        raise error(f"{path}: there is no such user")
    return Path(text).absolute() if str(Path(text)).startswith("~") else Path(text)


def cache_folder() -> Path:
    """Returns this user's folder of what can be made again: ``parm-mlx`` in ``$XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parm-mlx"


def decoded(text: str, what: str) -> str:
    """Returns a text of the terminal, in which Python keeps bytes that it could not decode, as UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        raise InputError(f"{what} is not UTF-8: {text.strip()[:80]}") from None


def is_dir(path: Path, error: type[InputError] = InputError) -> bool:
    """Returns True if a directory is at a path; raises ``error`` if that cannot be told."""
    return stat.S_ISDIR(_mode(path, error))


def is_file(path: Path, error: type[InputError] = InputError) -> bool:
    """Returns True if something that is not a directory is at a path; raises ``error`` if that cannot be told."""
    mode = _mode(path, error)
    return mode != 0 and not stat.S_ISDIR(mode)


def _mode(path: Path, error: type[InputError]) -> int:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path is called so
        return 0
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from None


def read_text(path: Path, what: str, error: type[InputError]) -> str:
    """Reads a UTF-8 text, with or without a byte order mark, from a file or a pipe.

    Raises ``error``, which calls the file ``what``, if it is missing, cannot be read, is not UTF-8 or too large.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            content = file.read(MAX_TEXT + 1)
    except FileNotFoundError:
        raise error(f"{what}: {path.name} is missing in {path.parent}") from None
    except OSError as reason:
        raise error(f"{what}: {path} cannot be read: {reason.strerror or reason}") from None
    if len(content) > MAX_TEXT:
        raise error(f"{what}: {path} is larger than {MAX_TEXT // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{what}: {path} is not UTF-8 text (byte {reason.start + 1})") from None


def _open(path: str, flags: int) -> int:
    """Opens a file; a pipe without a writer reads as empty, where a blocking open would wait forever."""
    handle = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    return handle


def read_json(path: Path, what: str, error: type[InputError]) -> dict[str, object]:
    """Reads a JSON object; see :func:`read_text`."""
    try:
        value = parse_json(read_text(path, what, error))
    except ValueError as reason:
        raise error(f"{what}: {path} is not readable JSON: {reason}") from None
    if not isinstance(value, dict):
        raise error(f"{what}: {path} must hold a JSON object, not {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """Decodes JSON; raises a ValueError with a short message if it is broken or fails :func:`check_plain`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as reason:
        raise ValueError(str(reason)) from None
    except (ValueError, RecursionError):
        raise ValueError("a number is too large or the nesting too deep") from None
    check_plain(value)
    return value


def read_yaml(path: Path, what: str, error: type[InputError]) -> Any:
    """Reads a YAML document of plain values; see :func:`read_text`."""
    import yaml

    text = read_text(path, what, error)
    try:
        value = yaml.safe_load(text)
        check_plain(value)
    except yaml.YAMLError as reason:
        mark = getattr(reason, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(reason, "problem", None) or first_line(reason)
        raise error(f"{what}: {path} is not valid YAML{line}: {problem}") from None
    except RecursionError:
        raise error(f"{what}: {path} is not valid YAML: the nesting is too deep") from None
    except (ValueError, TypeError, LookupError, AttributeError) as reason:  # PyYAML raises these for broken scalars
        raise error(f"{what}: {path} is not valid YAML: {first_line(reason)}") from None
    return value


def check_plain(value: Any) -> None:
    """Raises a ValueError if an integer does not fit into a float, a text is not Unicode, or a container occurs twice.

    Walking over a container that holds itself (a YAML alias) would not end.
    """
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= character <= "\udfff" for character in item):
                raise ValueError("a text holds half of a surrogate pair")
        elif isinstance(item, int):
            if abs(item) > MAX_INTEGER:
                raise ValueError("an integer is too large")
        elif isinstance(item, dict | list):
            if id(item) in seen:
                raise ValueError("aliases (*name) are not supported")
            seen.add(id(item))
            left += [*item, *item.values()] if isinstance(item, dict) else item


# Models with a PARM, by name: functions of ``what`` a directory is looked for as. The first one that can be had is the
# default.
NAMED: dict[str, Callable[[str], Path]] = {}


def resolve(source: str | Path, what: str = "model") -> Path:
    """Finds a model or adapter: one of the named ones, a directory, or else what a hub id, ``owner/name``, downloads.

    Raises:
        ModelError: There is no such directory or it cannot be read, and the hub has no such repository.
        RunError: The download failed.
    """
    if str(source) in NAMED:
        return NAMED[str(source)](what)
    path = expanded(source, ModelError)
    if is_dir(path, ModelError):
        return path
    if is_file(path, ModelError):
        hint = f"parm-mlx convert {source} --out DIR" if path.suffix == ".gguf" else "give the directory that holds it"
        raise ModelError(f"{what} {source} is a file, not a directory", hint=hint)
    if not is_hub_id(str(source)):
        raise ModelError(f"{what} {source}: no such directory", hint=f"models by name: {', '.join(NAMED)}")
    return _download(str(source), what)


def is_hub_id(text: str) -> bool:
    """Returns True for ``owner/name``, as repositories on the hub are called."""
    return _HUB_ID.fullmatch(text) is not None


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
        problem = f"{what} {repo_id}: no such directory, and no such repository on the hub"
        raise ModelError(problem, hint=hint) from error
    except errors.LocalEntryNotFoundError as error:
        raise RunError(f"{what} {repo_id} is not on this machine, and the hub cannot be reached", hint=hint) from error
    except OSError as error:
        raise RunError(f"{what} {repo_id} could not be downloaded: {first_line(error)}", hint=hint) from error


def fetched_size(source: str | Path) -> int | None:
    """Returns the bytes that :func:`resolve` will fetch; None where nothing is, or the hub does not tell."""
    text = str(source)
    if text in NAMED or not is_hub_id(text) or Path(text).exists():
        return None
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(text, "config.json"), str):
        return None
    try:
        files = HfApi().model_info(text, files_metadata=True, timeout=10).siblings or []
    except Exception:  # of the hub's HTTP library too: this only tells a size, and the download tells what is wrong
        return None
    return sum(file.size or 0 for file in files if any(fnmatch(file.rfilename, each) for each in _DOWNLOADED)) or None


def flush(*paths: Path) -> None:
    """Waits until files are on the disk, or the names in directories, so that they outlast a power cut.

    On macOS the disk's own cache is emptied too, which fsync alone does not do.
    """
    for path in paths:
        with disk_errors(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                if sys.platform == "darwin":
                    fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
                else:
                    os.fsync(handle)
            finally:
                os.close(handle)


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
        raise RunError(f"{path} was not written: {first_line(error)}", hint="the disk may be full") from error


def pickled_weights(directory: Path) -> str:
    """Returns the names of the files with pickled weights, which can run code and are never read; comma-separated."""
    return ", ".join(sorted(file.name for file in directory.iterdir() if file.suffix in (".bin", ".pt", ".pth")))
