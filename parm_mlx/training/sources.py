"""Which files or splits are the data, and the pairs in them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from parm_mlx.errors import DataError
from parm_mlx.training.formats import RowReader
from parm_mlx.training.hub import hub_parts, is_hub_id
from parm_mlx.training.parts import SPLITS, FilePart, Part
from parm_mlx.training.rows import Pair, Problems, RowError

RECORD_FILE = "prepared.json"
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")

Track = Callable[[Iterable[Pair]], Iterable[Pair]]


def stem(path: Path) -> str:
    """The name of a data file without its suffixes: ``helpful.jsonl.gz`` → ``helpful``."""
    suffix = next((suffix for suffix in reversed(_SUFFIXES) if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def find_parts(source: str | Path, objectives: Sequence[str] | None = None) -> list[Part]:
    """The parts of a source, those of train first, then valid and test.

    A source is a file; a folder with files of its own, which are splits or one file per objective; a folder of folders,
    one per objective, each with splits; or a data set on the hub, as :func:`parm_mlx.training.hub.hub_parts` reads it.

    Args:
        source: Path or hub id; a path that exists wins.
        objectives: Of folders per objective only these are read, if any of them is there.

    Raises:
        DataError: There are no data, or a folder holds both splits and files per objective.
        RunError: The hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [FilePart(path.name, "train", None if stem(path) in SPLITS else stem(path), path)]
    if path.is_dir():
        parts = _flat_parts(path) or _nested_parts(path, objectives or ())
        if not parts:
            raise DataError(f"data {source}: no .jsonl file (or .json, or either with .gz) in this folder")
        return sorted(parts, key=lambda part: SPLITS.index(part.split))
    if is_hub_id(str(source)) and not path.name.endswith(_SUFFIXES):
        return hub_parts(str(source))
    raise DataError(f"data {source}: no such file or folder")


def _flat_parts(folder: Path) -> list[Part]:
    found = _data_files(folder)
    per_objective = [path for name, path in found.items() if name not in SPLITS]
    if "train" in found and per_objective:
        extra, train = ", ".join(path.name for path in per_objective), found["train"].name
        raise DataError(f"data {folder}: {train} beside {extra}; keep either splits or one file per objective")
    if "train" not in found and len(per_objective) < len(found):
        raise DataError(f"data {folder}: train.jsonl is missing")
    return [
        FilePart(path.name, name, None, path) if name in SPLITS else FilePart(path.name, "train", name, path)
        for name, path in found.items()
    ]


def _nested_parts(folder: Path, objectives: Sequence[str]) -> list[Part]:
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = {path.name: files for path in inner if (files := _data_files(path))}
    found = {name: found[name] for name in found if name in objectives} or found
    for name, files in found.items():
        if "train" not in files or not files.keys() <= set(SPLITS):
            raise DataError(
                f"data {folder / name}: a folder per objective holds train.jsonl, and valid.jsonl and test.jsonl if it "
                f"likes, not {', '.join(path.name for path in files.values())}",
                hint="--objectives names the folders to read",
            )
    return [
        FilePart(f"{name}/{path.name}", split, name, path)
        for name, files in found.items()
        for split, path in files.items()
    ]


def _data_files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        hidden = path.name == RECORD_FILE or path.name.startswith(".")
        if hidden or not path.name.endswith(_SUFFIXES) or not path.is_file():
            continue
        if stem(path) in found:
            raise DataError(f"data {folder}: both {found[stem(path)].name} and {path.name}; keep one of them")
        found[stem(path)] = path
    return found


class DataReader:
    """Reads the pairs of several parts, one at a time.

    Args:
        parts: What to read.
        given: The objectives that may occur; when left out, those that occur in the parts of train.
        problems: Where bad rows go.
        known: Objectives that are known to occur in train already.
        track: Passes on the pairs of a part, for a progress bar.

    Attributes:
        objectives: The objectives so far, in the order of α.
        formats: The format of each part that was read, by name.
        counts: The number of pairs of each part that was read, by name.
    """

    def __init__(
        self,
        parts: Iterable[Part],
        given: Sequence[str] | None,
        problems: Problems,
        known: Sequence[str] = (),
        track: Track = iter,
    ) -> None:
        self._parts, self._given, self._problems, self._track = parts, given, problems, track
        self.objectives = list(given or known)
        self.formats: dict[str, str | None] = {}
        self.counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[tuple[Part, Pair]]:
        """Yields every pair with its part; a part without any row is a problem, too.

        Raises:
            DataError: A part cannot be read.
        """
        for part in self._parts:
            self.counts[part.name] = 0
            for pair in self._track(self._read(part)):
                self.counts[part.name] += 1
                yield part, pair

    def _read(self, part: Part) -> Iterator[Pair]:
        reader, before, empty = RowReader(self._judged_by_default(part)), self._problems.count, True
        for where, row in part.rows(self._problems):
            empty = False
            try:
                pair = reader(row, where)
            except RowError as error:
                self._problems.add(where, error)
            else:
                if self._check_objectives(part, pair):
                    yield pair
        self.formats[part.name] = reader.format
        if empty and self._problems.count == before:
            self._problems.add(part.name, "the file is empty")

    def _judged_by_default(self, part: Part) -> str | None:
        given = self._given
        if part.objective is not None and part.objective in (given or [part.objective]):
            return part.objective
        return given[0] if given and len(given) == 1 else None

    def _check_objectives(self, part: Part, pair: Pair) -> bool:
        """Notes every objective that training would not know; what it does not read may have any."""
        if part.split == "test":
            return True
        unknown = [name for name in pair.preferred if name not in self.objectives]
        if part.split == "train" and self._given is None:
            self.objectives += unknown
            return True
        for name in unknown:
            close = get_close_matches(name, self.objectives, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            names = ", ".join(self.objectives)
            self._problems.add(pair.where, f"unknown objective {name!r} (the objectives are {names}){meant}")
        return not unknown
