"""Sources of preference data: local files and data sets on the Hugging Face hub, and the rows in them."""

import codecs
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from parm_mlx.data.pairs import Problems, RowError
from parm_mlx.errors import DataError, RunError, first_line
from parm_mlx.files import expanded, is_dir, is_file

RECORD_FILE = "prepared.json"
SPLITS = ("train", "valid", "test")
MAX_LINE = 16 * 2**20
MAX_LIST = 2 * 2**30
_SPLIT_OF = {**{name: name for name in SPLITS}, **dict.fromkeys(("validation", "val", "dev", "eval"), "valid")}
_NOT_SPLITS = ("all", "train_prompt_only", "dev_prompt_only", "test_prompt_only")  # of the official release
_TEXT = (".txt", ".md")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HUB_ID = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<chosen>[\w./-]+(?:,[\w./-]+)*))?"
)
_COMMIT = re.compile(r"@([0-9a-f]{40})/")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class DataFile(ABC):
    """A file, or a split of a data set on the hub, whose rows have one format."""

    name: str  # in errors and records
    split: str  # ``train``, ``valid`` or ``test``; ``train`` if the data are not split
    objective: str | None  # that its rows judge, as far as a file or folder name tells it

    @abstractmethod
    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (where, decoded row); rows that cannot be decoded go to ``problems``."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Returns values that are equal only for equal rows."""


@dataclass(frozen=True)
class LocalFile(DataFile):
    """A file on this machine."""

    path: Path

    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (``name:line``, decoded row)."""
        for line, row in read_rows(self.path, problems, self.name):
            yield f"{self.name}:{line}", row

    def identity(self) -> dict[str, str]:
        """Returns the SHA-256 of the file's bytes."""
        with _open(self.path) as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@dataclass(frozen=True)
class HubSplit(DataFile):
    """A split of a data set on the hub: a ``datasets.Dataset``, whose rows are read as they are needed."""

    dataset: Any = field(repr=False)

    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (``name row N``, row); a column without a value is a missing field."""
        for number, row in enumerate(self.dataset, 1):
            yield f"{self.name} row {number}", _without_none(row)

    def identity(self) -> dict[str, str]:
        """Returns the fingerprint of the rows, and the commit on the hub if it is known."""
        sources = " ".join(self.dataset.info.download_checksums or ())
        commit = _COMMIT.search(sources)
        return {**({"revision": commit[1]} if commit else {}), "fingerprint": self.dataset._fingerprint}


def find_files(source: str | Path, objectives: Sequence[str] | None = None) -> list[DataFile]:
    """Finds the files of a source, those of train first, then valid and test.

    A source is a file; a folder with files of its own, which are splits or one file per objective; a folder of folders,
    one per objective, each with splits; or a data set on the hub: ``owner/name``, then optionally ``@`` and a revision,
    then optionally ``:`` and configurations or folders of it, separated by commas.

    Args:
        source: Path or hub id; a path that exists wins.
        objectives: Of folders per objective only these are read, if any of them is there.

    Raises:
        DataError: There are no data, or a folder holds both splits and files per objective.
        RunError: The hub cannot be reached.
    """
    path = expanded(source, DataError)
    if is_dir(path, DataError):
        with _read_errors(path):
            files = _files_of_folder(path) or _files_of_folders(path, objectives or ())
        if not files:
            raise DataError(f"data {source}: no .jsonl file (or .json, or either with .gz) in this folder")
        return sorted(files, key=lambda file: SPLITS.index(file.split))
    if is_file(path, DataError):
        check_regular(path)
        if path.suffix in _TEXT:
            raise DataError(
                f"data {source} is a text, and pairs are JSON lines (.jsonl) or a list (.json)",
                hint="prompts alone go to `parm-mlx data sample --prompts`",
            )
        name = _stem(path)
        return [LocalFile(path.name, "train", None if name in _SPLIT_OF else name, path)]
    if is_hub_id(str(source)) and not path.name.endswith(_SUFFIXES):
        return _hub_splits(str(source))
    raise DataError(f"data {source}: no such file or folder")


def is_hub_id(source: str) -> bool:
    """Returns True if a text may be the id of a data set: ``owner/name``, ``owner/name@revision:folder,folder``."""
    return _HUB_ID.fullmatch(source) is not None


def _files_of_folder(folder: Path) -> list[DataFile]:
    found = _data_files(folder)
    others = [path.name for name, path in found.items() if name not in (*SPLITS, *_NOT_SPLITS)]
    if "train" in found and others:
        raise DataError(
            f"data {folder}: {found['train'].name} beside {', '.join(others)}; keep either splits or one file "
            "per objective"
        )
    if "train" in found:
        return [LocalFile(path.name, name, None, path) for name, path in found.items() if name in SPLITS]
    if found.keys() & set(SPLITS):
        raise DataError(f"data {folder}: train.jsonl is missing")
    return [LocalFile(path.name, "train", name, path) for name, path in found.items()]


def _files_of_folders(folder: Path, objectives: Sequence[str]) -> list[DataFile]:
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = {path.name: files for path in inner if (files := _data_files(path))}
    found = {name: found[name] for name in found if name in objectives} or found
    for name, files in found.items():
        if "train" not in files or not files.keys() <= {*SPLITS, *_NOT_SPLITS}:
            raise DataError(
                f"data {folder / name}: a folder per objective holds train.jsonl, and optionally valid.jsonl and "
                f"test.jsonl, not {', '.join(path.name for path in files.values())}",
                hint="--objectives names the folders to read",
            )
    return [
        LocalFile(f"{name}/{path.name}", split, name, path)
        for name, files in found.items()
        for split, path in files.items()
        if split in SPLITS
    ]


def _data_files(folder: Path) -> dict[str, Path]:
    """Returns the data files of a folder by the names of their splits or objectives."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        hidden = path.name == RECORD_FILE or path.name.startswith(".")
        if not hidden and path.name.endswith(_SUFFIXES) and path.is_file():
            name = _stem(path)
            other = found.setdefault(_SPLIT_OF.get(name, name), path)
            if other is not path:
                raise DataError(f"data {folder}: both {other.name} and {path.name}; keep one of them")
    return found


def _stem(path: Path) -> str:
    """Returns the name of a data file without its suffixes: ``helpful.jsonl.gz`` → ``helpful``."""
    suffix = next((suffix for suffix in reversed(_SUFFIXES) if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def _hub_splits(source: str) -> list[DataFile]:
    found = _HUB_ID.fullmatch(source)
    assert found is not None, source
    name, revision = found["name"], found["revision"]
    chosen = found["chosen"].split(",") if found["chosen"] else [None]
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data {source}: no such file or folder, and reading it from the hub needs the package datasets",
            hint="pip install 'parm-mlx[data]'",
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    splits = []
    with _hub_errors(source):
        known = datasets.get_dataset_config_names(name, revision=revision) if found["chosen"] else []
        for folder in chosen:
            where = {"name": folder} if folder in known else {"data_dir": folder}
            loaded = datasets.load_dataset(name, revision=revision, **where)
            if "train" not in loaded:
                raise DataError(f"data {source}: no split train, only {', '.join(loaded)}")
            label, objective = (f"{name}:{folder}", folder.rpartition("/")[2]) if folder else (name, None)
            splits += [
                HubSplit(f"{label}[{split}]", _SPLIT_OF[split], objective, rows)
                for split, rows in loaded.items()
                if split in _SPLIT_OF
            ]
    return sorted(splits, key=lambda split: SPLITS.index(split.split))


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            hint = "accept its terms there, then `hf auth login`"
            raise DataError(f"data {source} needs permission on the hub", hint=hint) from error
        raise DataError(f"data {source}: no such file or folder, and no such data set on the hub") from error
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"data {source}: no such configuration or folder: {first_line(error)}") from error
    except ConnectionError as error:
        raise RunError(
            f"data {source} is not on this machine, and the hub cannot be reached",
            hint="if it is meant to be a local file or folder, check its path",
        ) from error
    except (DatasetsError, OSError, RuntimeError) as error:
        raise RunError(f"data {source} could not be loaded: {first_line(error)}") from error


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


def check_regular(path: Path) -> None:
    """Raises DataError where a path is not a regular file; reading a pipe or a device might never end."""
    if not is_dir(path, DataError) and not is_file(path, DataError):
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file")


def _open(path: Path) -> io.BufferedReader:
    check_regular(path)
    with _read_errors(path):
        return path.open("rb")


def read_rows(path: Path, problems: Problems, name: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yields (line, decoded row) of JSON lines or of a JSON list, either compressed with gzip or not.

    Args:
        path: The file.
        problems: Gets the rows that cannot be decoded. In a list, nothing is read after such a row.
        name: Name of the file in ``problems``; by default its own.

    Raises:
        DataError: The file cannot be read, or is not a regular file.
    """
    name = name or path.name
    line = 1
    with _open(path) as raw, _read_errors(path):
        file = cast(io.BufferedReader, gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP) else raw)
        try:
            start = file.peek(256)
            if start.startswith(_UTF_16):
                problems.add(f"{name}:1", "the file is UTF-16; save it as UTF-8")
                return
            is_list = ".json" in path.suffixes and start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
            for line, row in (_read_list if is_list else _read_lines)(file, name, problems):
                yield line, row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problems.add(f"{name}:{line}", f"the compressed file is broken here or soon after: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; RowError where it has a name twice, of which JSON would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RowError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _read_lines(file: BinaryIO, name: str, problems: Problems) -> Iterator[tuple[int, Any]]:
    line = 0
    while raw := file.readline(MAX_LINE + 1):
        line += 1
        try:
            if len(raw) > MAX_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                raise RowError(f"the line is longer than {MAX_LINE // 2**20} MiB")
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            if "\0" in text:
                raise RowError("the line holds a NUL character")
            if text:
                yield line, json.loads(text, object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            problems.add(f"{name}:{line}", f"not UTF-8 text (byte {error.start + 1} of the line)")
        except RowError as error:
            problems.add(f"{name}:{line}", error)
        except (ValueError, RecursionError) as error:
            problems.add(f"{name}:{line}", _json_problem(error))


def _read_list(file: BinaryIO, name: str, problems: Problems) -> Iterator[tuple[int, Any]]:
    data = file.read(MAX_LIST + 1)
    if len(data) > MAX_LIST:
        problems.add(f"{name}:1", f"the list is longer than {MAX_LIST / 2**30:g} GiB; save it as JSON lines")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.add(f"{name}:{line}", "not UTF-8 text")
        return
    decoder, line, counted = json.JSONDecoder(object_pairs_hook=_object), 1, 0
    position, separator = _skip_space(text, text.index("[") + 1), ","
    if text.startswith("]", position):
        position, separator = _skip_space(text, position + 1), "]"
    while separator == ",":
        line += text.count("\n", counted, position)
        counted = position
        try:
            row, end = decoder.raw_decode(text, position)
        except RowError as error:
            problems.add(f"{name}:{line}", error)
            return
        except (ValueError, RecursionError) as error:
            problems.add(f"{name}:{getattr(error, 'lineno', line)}", _json_problem(error))
            return
        if end - position > MAX_LINE:
            problems.add(f"{name}:{line}", f"the row is longer than {MAX_LINE // 2**20} MiB")
        else:
            yield line, row
        position = _skip_space(text, end)
        separator = text[position : position + 1]
        if separator not in (",", "]"):
            reason = "broken JSON: rows of a list are separated by ','" if separator else "the list has no end"
            line += text.count("\n", counted, position)
            problems.add(f"{name}:{line}", reason)
            return
        position = _skip_space(text, position + 1)
    if position < len(text):
        line += text.count("\n", counted, position)
        problems.add(f"{name}:{line}", "broken JSON: something follows the end of the list")


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg} at column {error.colno}"
    return "broken JSON: a number or a nesting that is too large"


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
