"""Which files or splits are the data, and the pairs in them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from parm_mlx.data.files import SPLITS, FilePart, Part
from parm_mlx.data.formats import RowReader
from parm_mlx.data.hub import hub_parts, is_hub_id
from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.errors import DataError

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
    one per objective, each with splits; or a data set on the hub, as :func:`parm_mlx.data.hub.hub_parts` reads it.

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
        given: The objectives that are wanted; when left out, those that occur in the parts of train. Pairs come
            without the labels of others, and so perhaps without any.
        problems: Where bad rows go.
        known: Objectives that come first, whether they occur or not.
        track: Passes on the pairs of a part, for a progress bar.

    Attributes:
        objectives: The objectives so far, in the order of α.
        formats: The format of each part that was read, by name.
        counts: The number of pairs of each part that was read, by name.
        unwanted: Objectives of the data whose labels were left out.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        given: Sequence[str] | None,
        problems: Problems,
        known: Sequence[str] = (),
        track: Track = iter,
    ) -> None:
        self._parts, self._given, self._problems, self._track = parts, given, problems, track
        self.objectives = list(given or known)
        self.formats: dict[str, str | None] = {}
        self.counts: dict[str, int] = {}
        self.unwanted: list[str] = []
        self._found: dict[str, None] = {}
        self._part_per_objective = any(part.objective in (given or ()) for part in parts)

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
                if wanted := self._wanted(part, pair):
                    yield wanted
        self.formats[part.name] = reader.format
        if empty and self._problems.count == before:
            self._problems.add(part.name, "the file is empty")

    def check_found(self, source: str | Path) -> None:
        """Checks that every objective that is wanted occurs, once all is read.

        Raises:
            DataError: One does not; those of the data are named.
        """
        for name in self._given or ():
            if self._found and name not in self._found:
                close = get_close_matches(name, self._found, 1)
                raise DataError(
                    f"data {source}: unknown objective {name!r}; the data has {', '.join(self._found)}",
                    hint=f"did you mean {close[0]!r}?" if close else None,
                )

    def _judged_by_default(self, part: Part) -> str | None:
        given = self._given
        if part.objective is not None and (given is None or self._part_per_objective):
            return part.objective
        return given[0] if given and len(given) == 1 else None

    def _wanted(self, part: Part, pair: Pair) -> Pair | None:
        """The pair with the labels that are wanted; None if it has one that only validation would know."""
        self._found.update(dict.fromkeys(pair.preferred))
        unknown = [name for name in pair.preferred if name not in self.objectives]
        if not unknown or part.split == "test":
            return pair
        if self._given is not None:
            self.unwanted += [name for name in unknown if name not in self.unwanted]
            return replace(pair, preferred={n: label for n, label in pair.preferred.items() if n not in unknown})
        if part.split == "train":
            self.objectives += unknown
            return pair
        for name in unknown:
            close = get_close_matches(name, self.objectives, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            names = ", ".join(self.objectives)
            self._problems.add(pair.where, f"unknown objective {name!r} (the objectives are {names}){meant}")
        return None
