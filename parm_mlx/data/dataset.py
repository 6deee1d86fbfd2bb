"""Preference data: files → pairs, equal ones merged, split so that no prompt is both in training and validation."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from parm_mlx.data.formats import RowReader
from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.data.sources import DataFile, find_files
from parm_mlx.errors import DataError

VALID_SHARE = 0.1
MAX_VALID_PROMPTS = 500

T = TypeVar("T")


class Progress(Protocol):
    """Passes items on, and may show how far it is."""

    def __call__(self, items: Iterable[T], total: int | None, label: str, /) -> Iterable[T]:
        """Yields the items; ``total`` is their number if it is known."""


def no_progress(items: Iterable[T], _total: int | None, _label: str, /) -> Iterable[T]:
    """Passes items on."""
    return items


@dataclass(frozen=True)
class FileRecord:
    """A file or hub split that was read.

    Attributes:
        name: Its name.
        identity: The SHA-256 of a file; revision and fingerprint of a data set on the hub.
        pairs: Its number of rows, without those that cannot be used.
    """

    name: str
    identity: dict[str, str]
    pairs: int


@dataclass(frozen=True)
class Dataset:
    """The rows of a source as pairs; rows of the same pair are not merged yet.

    Attributes:
        objectives: In the order of α.
        splits: The rows of each split, in the order of the data.
        formats: The format of each file, by name.
        counts: The number of rows of each file, by name.
        unwanted: Objectives whose labels are left out.
        problems: Rows that cannot be used.
    """

    objectives: tuple[str, ...]
    splits: dict[str, list[Pair]]
    formats: dict[str, str]
    counts: dict[str, int]
    unwanted: tuple[str, ...]
    problems: Problems


def read_dataset(
    source: str | Path,
    files: Sequence[DataFile],
    objectives: Sequence[str] | None = None,
    *,
    first: Sequence[str] = (),
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> Dataset:
    """Reads the rows of files into memory.

    Args:
        source: Name of the whole in errors.
        files: Files to read.
        objectives: The objectives that are wanted; by default those that occur in the files of train. Pairs come
            without the labels of others, and so perhaps without any.
        first: Objectives that come first if none are named, whether they occur or not.
        skip_bad: Leave out rows that cannot be used, as long as there are others.
        progress: Shows how many rows are read.

    Raises:
        DataError: A file cannot be read, rows cannot be used (all of them are reported together), or an objective does
            not occur.
    """
    problems, labels = Problems(), _Labels(objectives, first)
    splits: dict[str, list[Pair]] = {file.split: [] for file in files}
    formats, counts = {}, {}
    file_per_objective = any(file.objective in (objectives or ()) for file in files)
    for file in files:
        objective = file.objective if objectives is None or file_per_objective else None
        if objective is None and objectives and len(objectives) == 1:
            objective = objectives[0]
        reader, rows = RowReader(objective), splits[file.split]
        bad_before, rows_before, empty = problems.count, len(rows), True
        for where, row in progress(file.rows(problems), None, "rows"):
            empty = False
            try:
                rows.append(labels.wanted(reader(row, where), file.split))
            except RowError as error:
                problems.add(where, error)
        if empty and problems.count == bad_before:
            problems.add(file.name, "the file is empty")
        formats[file.name], counts[file.name] = reader.format or "", len(rows) - rows_before
    if not (skip_bad and any(splits.values())):
        problems.raise_any(source)
    labels.check_found(source)
    return Dataset(tuple(labels.objectives), splits, formats, counts, tuple(labels.unwanted), problems)


class _Labels:
    """The objectives found so far, and the labels of a pair that are wanted."""

    def __init__(self, given: Sequence[str] | None, first: Sequence[str]) -> None:
        self._given = given
        self.objectives = list(given or first)
        self.unwanted: list[str] = []
        self._found: dict[str, None] = {}

    def wanted(self, pair: Pair, split: str) -> Pair:
        """Returns the pair with the labels that are wanted.

        Raises:
            RowError: It has an objective that only validation knows.
        """
        self._found.update(dict.fromkeys(pair.preferred))
        unknown = [name for name in pair.preferred if name not in self.objectives]
        if not unknown or split == "test":
            return pair
        if self._given is not None:
            self.unwanted += [name for name in unknown if name not in self.unwanted]
            return replace(pair, preferred={n: label for n, label in pair.preferred.items() if n not in unknown})
        if split == "valid":
            close = get_close_matches(unknown[0], self.objectives, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise RowError(f"unknown objective {unknown[0]!r} (the objectives are {', '.join(self.objectives)}){meant}")
        self.objectives += unknown
        return pair

    def check_found(self, source: str | Path) -> None:
        """Checks that every objective that the user named occurs.

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


@dataclass(frozen=True)
class MergeCounts:
    """Numbers of what merging leaves out.

    Attributes:
        equal: Rows whose responses are equal.
        merged: Rows of the same pair as an earlier one, merged with it.
        unjudged: Pairs without a label for the objectives.
        contradicted: Pairs without a label left, because all of them contradict each other.
        contradictions: For each objective, pairs whose labels contradict each other.
    """

    equal: int
    merged: int
    unjudged: int
    contradicted: int
    contradictions: dict[str, int]

    def __add__(self, other: "MergeCounts") -> "MergeCounts":
        return MergeCounts(
            self.equal + other.equal,
            self.merged + other.merged,
            self.unjudged + other.unjudged,
            self.contradicted + other.contradicted,
            {name: count + other.contradictions[name] for name, count in self.contradictions.items()},
        )

    def notes(self) -> list[str]:
        """Returns what a user should know, one line each."""
        notes = []
        if self.unjudged:
            notes.append(f"{self.unjudged} pairs are left out: they have no label for {', '.join(self.contradictions)}")
        if self.equal:
            notes.append(f"{self.equal} pairs are left out: both responses are equal")
        if self.merged:
            notes.append(f"{self.merged} rows are of the same pair as an earlier row and merged with it")
        if any(self.contradictions.values()):
            named = ", ".join(f"{name} ({count})" for name, count in self.contradictions.items() if count)
            notes.append(f"labels of one pair that contradict each other are dropped: {named}")
        return notes


@dataclass(frozen=True)
class Merged:
    """Different pairs, in the order of their first rows, each with the labels of all its rows.

    Attributes:
        different: All pairs of two different responses; those without a label left have no ``preferred``.
        first: The index of each pair's first row.
        counts: Numbers of what is left out.
    """

    different: list[Pair]
    first: list[int]
    counts: MergeCounts

    @property
    def labelled(self) -> list[Pair]:
        """Pairs that can be learned from."""
        return [pair for pair in self.different if pair.preferred]


def merge(rows: Sequence[Pair], objectives: Sequence[str]) -> Merged:
    """Makes one pair of all rows with the same prompt and the same two responses, in either order.

    A label that is given twice counts once. Labels of one objective that contradict each other are dropped. A margin is
    that of the first row that has one. Prompt and responses are those of the first row.

    Args:
        rows: The rows as pairs.
        objectives: The k objectives; labels of others do not count.
    """
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        if row.responses[0] != row.responses[1]:
            groups.setdefault(row.key, []).append(i)
    different, clashes = [], Counter[str]()
    unjudged = contradicted = 0
    for group in groups.values():
        pair, clashing = _merge_rows([rows[i] for i in group], objectives)
        different.append(pair)
        clashes.update(clashing)
        unjudged += not pair.preferred and not clashing
        contradicted += not pair.preferred and bool(clashing)
    equal = len(rows) - sum(map(len, groups.values()))
    merged = len(rows) - equal - len(groups)
    counts = MergeCounts(equal, merged, unjudged, contradicted, {name: clashes[name] for name in objectives})
    return Merged(different, [group[0] for group in groups.values()], counts)


def _merge_rows(rows: Sequence[Pair], objectives: Sequence[str]) -> tuple[Pair, list[str]]:
    """Merges the rows of one pair; returns it with the objectives whose labels contradict each other."""
    first, labels, margins = rows[0], dict[str, set[int]](), dict[str, float]()
    if len(rows) == 1 and all(name in objectives for name in first.preferred):
        return first, []
    for row in rows:
        swapped = row.responses != first.responses
        for name, label in row.preferred.items():
            labels.setdefault(name, set()).add(label ^ swapped)
        for name, margin in row.margins.items():
            margins.setdefault(name, margin)
    judged = [name for name in objectives if name in labels]
    preferred = {name: next(iter(labels[name])) for name in judged if len(labels[name]) == 1}
    margins = {name: margins[name] for name in preferred if name in margins}
    return replace(first, preferred=preferred, margins=margins), [name for name in judged if name not in preferred]


def count_labels(pairs: Sequence[Pair], objectives: Sequence[str]) -> dict[str, int]:
    """Returns how many of the pairs each objective judged: the sizes of the data sets D_i."""
    counts = Counter(name for pair in pairs for name in pair.preferred)
    return {name: counts[name] for name in objectives}


Disagreement = dict[tuple[str, str], tuple[int, int]]


def disagreement(pairs: Sequence[Pair], objectives: Sequence[str]) -> Disagreement:
    """Returns for each two objectives how many pairs both judged, and in how many of those they differ."""
    found = dict.fromkeys(combinations(objectives, 2), (0, 0))
    for pair in pairs:
        for a, b in combinations([name for name in objectives if name in pair.preferred], 2):
            both, differ = found[a, b]
            found[a, b] = both + 1, differ + (pair.preferred[a] != pair.preferred[b])
    return found


@dataclass(frozen=True)
class PreferenceData:
    """Preference data for training.

    Attributes:
        objectives: The k objectives, in the order of α.
        train: Pairs to learn from.
        valid: Held-out pairs; their prompts are not among those of ``train``. May be empty.
        files: Files that were read.
        notes: What the user should know, one line each.
    """

    objectives: tuple[str, ...]
    train: list[Pair]
    valid: list[Pair]
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]


def load_data(
    source: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    first: Sequence[str] = (),
    seed: int = 0,
    hold_out: bool = True,
    skip_bad: bool = False,
) -> PreferenceData:
    """Reads preference data for training.

    Data without a split of their own for validation are split by prompt. Notes count what is merged and left out.

    Args:
        source: A file, a folder or a data set on the hub, as :func:`parm_mlx.data.sources.find_files` finds them.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels
            of others are left out.
        first: Objectives that come before those that only the data name, if the user has named none.
        seed: Seed of the split.
        hold_out: Keep pairs for validation; otherwise every pair of a file trains.
        skip_bad: Leave out rows that cannot be used rather than refusing the data.

    Raises:
        DataError: There are no such data, rows cannot be used (all of them are reported together), an objective is not
            in the data, or every prompt to validate is to train, too.
        RunError: The hub cannot be reached.
    """
    files = [file for file in find_files(source, objectives) if file.split != "test"]
    data = read_dataset(source, files, objectives, first=first, skip_bad=skip_bad)
    names = data.objectives
    train, valid = (merge(data.splits.get(split, []), names) for split in ("train", "valid"))
    notes = [f"labels of {', '.join(data.unwanted)} are not used"] if data.unwanted else []
    notes += (train.counts + valid.counts).notes()
    if "valid" in data.splits:
        learned, candidates = train.labelled, valid.labelled if hold_out else []
        prompts = {pair.prompt_key for pair in learned}
        held = [pair for pair in candidates if pair.prompt_key not in prompts]
        if candidates and not held:
            raise DataError(
                f"data {source}: every prompt to validate is in the training data too", hint="split the data by prompt"
            )
        if shared := len(candidates) - len(held):
            notes.append(f"{shared} pairs to validate are left out: their prompts are in the training data too")
    else:
        pairs = train.labelled
        mask = held_out([pair.prompt_key for pair in pairs], seed) if hold_out else [False] * len(pairs)
        learned = [pair for pair, out in zip(pairs, mask, strict=True) if not out]
        held = [pair for pair, out in zip(pairs, mask, strict=True) if out]
    labels = ", ".join(f"{name} ({count})" for name, count in count_labels(learned, names).items())
    notes.insert(0, f"{len(learned)} pairs to train on, {len(held)} to validate; objectives and their labels: {labels}")
    if hold_out and not held:
        notes.append("too few prompts to hold some out: there is no validation")
    elif bare := [name for name, count in count_labels(held, names).items() if not count and held]:
        notes.append(f"no pair to validate is labelled for {', '.join(bare)}")
    if data.problems.count:
        notes.append(data.problems.note())
    records = tuple(FileRecord(file.name, file.identity(), data.counts[file.name]) for file in files)
    return PreferenceData(names, learned, held, records, tuple(notes))


def held_out(prompts: Sequence[Hashable], seed: int) -> list[bool]:
    """Chooses a tenth of the prompts (at most 500) with all their pairs; none if there is a single prompt.

    Args:
        prompts: The prompt of each pair.
        seed: Seed of the choice.

    Returns:
        For each pair, whether it is held out.
    """
    different = len(set(prompts))
    size = min(max(1, round(VALID_SHARE * different)), MAX_VALID_PROMPTS) if different > 1 else 0
    return [split == 1 for split in split_by_prompt(prompts, [size], seed)]


def split_by_prompt(prompts: Sequence[Hashable], sizes: Sequence[int], seed: int) -> list[int]:
    """Draws prompts for splits, each with all its pairs.

    Args:
        prompts: The prompt of each pair.
        sizes: Number of prompts of the splits 1, 2, …; the others are split 0.
        seed: Seed of the choice.

    Returns:
        The split of each pair.
    """
    different = list(dict.fromkeys(prompts))
    order = np.random.default_rng(seed).permutation(len(different))[: sum(sizes)].tolist()
    splits = [split for split, size in enumerate(sizes, 1) for _ in range(size)]
    split_of = {different[i]: split for i, split in zip(order, splits, strict=True)}
    return [split_of.get(prompt, 0) for prompt in prompts]
