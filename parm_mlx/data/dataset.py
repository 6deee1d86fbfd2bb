"""Preference data: files → pairs, equal ones merged, split so that no prompt is both in training and validation."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.data.formats import RowReader
from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.data.sources import DataFile, find_files
from parm_mlx.errors import DataError
from parm_mlx.ranges import meant

VALID_SHARE = 0.1
MAX_VALID_PROMPTS = 500

# Passes items on and may show how far it is; called with the items, their number if it is known, and a label.
Progress = Callable[[Iterable[Any], int | None, str], Iterable[Any]]
Disagreement = dict[tuple[str, str], tuple[int, int]]


def no_progress(items: Iterable[Any], _total: int | None, _label: str) -> Iterable[Any]:
    """Passes items on and shows nothing."""
    return items


@dataclass(frozen=True)
class FileRecord:
    """A file or hub split that was read."""

    name: str
    identity: dict[str, str]  # the SHA-256 of a file; revision and fingerprint of a data set on the hub
    pairs: int  # rows without those that cannot be used


@dataclass(frozen=True)
class Dataset:
    """The rows of a source as pairs; rows of the same pair are not merged yet."""

    objectives: tuple[str, ...]  # in the order of α
    splits: dict[str, list[Pair]]
    formats: dict[str, str]  # by file
    counts: dict[str, int]  # rows by file
    unwanted: tuple[str, ...]  # objectives whose labels are left out
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
    """Reads the rows of files, of the ``source`` that errors name, into memory.

    By default the objectives are ``first``, whether they occur or not, and those that occur in the files of train.
    Pairs come without the labels of other objectives, and so perhaps without any. With ``skip_bad``, rows that cannot
    be used are left out, as long as there are others.

    Raises:
        DataError: A file cannot be read, rows cannot be used (all of them are reported together), or an objective does
            not occur.
    """
    problems, names = Problems(), list(objectives or first)
    found, unwanted = dict[str, None](), dict[str, None]()
    splits: dict[str, list[Pair]] = {file.split: [] for file in files}
    formats, counts = {}, {}
    one_name = len({file.objective for file in files}) == 1  # of several files, each name is an objective
    for file in files:
        objective = file.objective
        if objectives and one_name and objective not in objectives:
            objective = None
        if objective is None and objectives and len(objectives) == 1:
            objective = objectives[0]
        reader, rows = RowReader(objective), splits[file.split]
        bad_before, rows_before, empty = problems.count, len(rows), True
        for where, row in progress(file.rows(problems), None, "rows"):
            empty = False
            try:
                pair = reader(row, where)
                unknown = [name for name in pair.preferred if name not in names]
                if unknown and objectives is None and file.split == "valid":
                    known = f"the objectives are {', '.join(names)}"
                    raise RowError(f"unknown objective {unknown[0]!r}{meant(unknown[0], names)}; {known}")
            except RowError as error:
                problems.add(where, error)
                continue
            found.update(dict.fromkeys(pair.preferred))
            if objectives is None and file.split == "train":
                names += unknown
            elif unknown and file.split != "test":
                unwanted.update(dict.fromkeys(unknown))
                pair = replace(pair, preferred={name: i for name, i in pair.preferred.items() if name in names})
            rows.append(pair)
        if empty and problems.count == bad_before:
            problems.add(file.name, "the file is empty")
        formats[file.name], counts[file.name] = reader.format or "", len(rows) - rows_before
    if not (skip_bad and any(splits.values())):
        problems.raise_any(source)
    for name in objectives or ():
        if found and name not in found:
            known = f"the data has {', '.join(found)}"
            raise DataError(f"data {source}: unknown objective {name!r}{meant(name, found)}; {known}")
    return Dataset(tuple(names), splits, formats, counts, tuple(unwanted), problems)


@dataclass(frozen=True)
class MergeCounts:
    """Counts of rows that merging drops."""

    equal: int  # rows whose responses are equal
    merged: int  # rows of the same pair as an earlier one
    unjudged: int  # pairs without a label for the objectives
    contradicted: int  # pairs without a label left, because all of them contradict each other
    contradictions: dict[str, int]  # for each objective, pairs whose labels contradict each other

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
        if named := ", ".join(f"{name} ({count})" for name, count in self.contradictions.items() if count):
            notes.append(f"labels of one pair that contradict each other are dropped: {named}")
        return notes


@dataclass(frozen=True)
class Merged:
    """Different pairs, in the order of their first rows, each with the labels of all its rows."""

    different: list[Pair]  # those without a label left have no ``preferred``
    first: list[int]  # the index of each pair's first row
    counts: MergeCounts

    @property
    def labelled(self) -> list[Pair]:
        """Pairs that can be learned from."""
        return [pair for pair in self.different if pair.preferred]


def merge(rows: Sequence[Pair], objectives: Sequence[str]) -> Merged:
    """Makes one pair of all rows with the same prompt and the same two responses, in either order.

    A label that is given twice counts once. Labels of one objective that contradict each other are dropped. A margin is
    that of the first row that has one. Prompt and responses are those of the first row; labels of other objectives do
    not count.
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
    """Preference data for training."""

    objectives: tuple[str, ...]  # in the order of α
    train: list[Pair]
    valid: list[Pair]  # their prompts are not among those of ``train``; may be empty
    files: tuple[FileRecord, ...]
    notes: tuple[str, ...]  # for the user, one line each


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
        DataError: As for :func:`read_dataset`, or every prompt to validate is to train, too.
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
    elif held and (bare := [name for name, count in count_labels(held, names).items() if not count]):
        notes.append(f"no pair to validate is labelled for {', '.join(bare)}")
    if data.problems.count:
        notes.append(data.problems.note())
    records = tuple(FileRecord(file.name, file.identity(), data.counts[file.name]) for file in files)
    return PreferenceData(names, learned, held, records, tuple(notes))


def held_out(prompts: Sequence[Hashable], seed: int) -> list[bool]:
    """Returns for each prompt of a pair whether it is held out: a tenth (at most 500), none if there is only one."""
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
