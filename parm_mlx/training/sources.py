"""Which files are the data, and the pairs in them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from parm_mlx.errors import DataError
from parm_mlx.training.formats import RowReader
from parm_mlx.training.reading import read_rows
from parm_mlx.training.rows import Pair, Problems, RowError

SPLITS = ("train", "valid", "test")
RECORD_FILE = "prepared.json"
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def stem(path: Path) -> str:
    """The name of a data file without its suffixes: ``helpful.jsonl.gz`` → ``helpful``."""
    suffix = next((suffix for suffix in reversed(_SUFFIXES) if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def find_files(source: Path) -> list[Path]:
    """The data files of a source: the file itself, or those of a folder, train, valid and test in this order.

    Raises:
        DataError: There are none, or a folder holds both splits and files per objective.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"data {source}: no such file or folder")
    paths = [path for path in sorted(source.iterdir()) if path.name.endswith(_SUFFIXES) and path.is_file()]
    found: dict[str, Path] = {}
    for path in (path for path in paths if path.name != RECORD_FILE and not path.name.startswith(".")):
        if stem(path) in found:
            raise DataError(f"data {source}: both {found[stem(path)].name} and {path.name}; keep one of them")
        found[stem(path)] = path
    if not found:
        raise DataError(f"data {source}: no .jsonl file (or .json, or either with .gz) in this folder")
    per_objective = [path for name, path in found.items() if name not in SPLITS]
    if "train" in found:
        if per_objective:
            extra = ", ".join(path.name for path in per_objective)
            train = found["train"].name
            raise DataError(f"data {source}: {train} beside {extra}; keep either splits or one file per objective")
        return [found[name] for name in SPLITS if name in found]
    if len(per_objective) < len(found):
        raise DataError(f"data {source}: train.jsonl is missing")
    return per_objective


class DataReader:
    """Reads the pairs of several files, one at a time.

    Args:
        objectives: The objectives that are wanted; all that occur, when left out. Pairs come without the labels of
            others, and so perhaps without any.
        problems: Where bad rows go.
        paths: All the files of the source.

    Attributes:
        formats: The format of each file that was read.
        labels: How often each objective judged a pair, wanted or not.
    """

    def __init__(self, objectives: Sequence[str] | None, problems: Problems, paths: Sequence[Path]) -> None:
        self._objectives = objectives
        self._problems = problems
        self._file_per_objective = any(stem(path) in (objectives or ()) for path in paths)
        self.formats: dict[Path, str | None] = {}
        self.labels: Counter[str] = Counter()

    @property
    def unwanted(self) -> list[str]:
        """Objectives of the data whose labels were left out."""
        return [name for name in self.labels if self._objectives and name not in self._objectives]

    def check_found(self, source: Path) -> None:
        """Checks that every objective that is wanted occurs, once all files are read.

        Raises:
            DataError: One does not; those of the data are named.
        """
        for name in self._objectives or ():
            if self.labels and name not in self.labels:
                close = get_close_matches(name, self.labels, 1)
                raise DataError(
                    f"{source}: unknown objective {name!r}; the data has {', '.join(self.labels)}",
                    hint=f"did you mean {close[0]!r}?" if close else None,
                )

    def read(self, path: Path) -> Iterator[Pair]:
        """Yields the pairs of a file; a file without any row is a problem, too.

        Raises:
            DataError: The file cannot be read.
        """
        reader, before, empty = RowReader(self._judged_by_default(path)), self._problems.count, True
        try:
            for where, row in read_rows(path, self._problems):
                empty = False
                try:
                    pair = reader(row, where)
                except RowError as error:
                    self._problems.add(where, error)
                else:
                    self.labels.update(pair.preferred.keys())
                    yield self._wanted(pair)
        except OSError as error:
            raise DataError(f"data {path} cannot be read: {error.strerror or error}") from None
        self.formats[path] = reader.format
        if empty and self._problems.count == before:
            self._problems.add(path.name, "the file is empty")

    def _wanted(self, pair: Pair) -> Pair:
        if self._objectives is None or pair.preferred.keys() <= set(self._objectives):
            return pair
        return replace(pair, preferred={n: label for n, label in pair.preferred.items() if n in self._objectives})

    def _judged_by_default(self, path: Path) -> str | None:
        objectives, name = self._objectives, stem(path)
        if name not in SPLITS and (objectives is None or self._file_per_objective):
            return name
        return objectives[0] if objectives and len(objectives) == 1 else None


def check_objectives(pair: Pair, names: Sequence[str], problems: Problems) -> None:
    """Notes every objective of a pair that is not among ``names``, those of the training pairs."""
    for name in pair.preferred:
        if name not in names:
            close = get_close_matches(name, names, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            problems.add(pair.where, f"unknown objective {name!r} (the objectives are {', '.join(names)}){meant}")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
