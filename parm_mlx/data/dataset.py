"""Preference data: files → pairs for training and validation, split so that no prompt is in both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parm_mlx.data.files import Part
from parm_mlx.data.merging import Keys, Ledger, Mask, Merged, merge_notes, number
from parm_mlx.data.pairs import Pair, Problems
from parm_mlx.data.sources import DataReader, Track, find_parts
from parm_mlx.data.tokenize import UNLABELLED
from parm_mlx.errors import DataError

VALID_SHARE = 0.1
MAX_VALID_PROMPTS = 500
_READ = ("train", "valid")


@dataclass(frozen=True)
class DataFile:
    """A file or hub split that was read.

    Attributes:
        name: Its name.
        identity: The SHA-256 of a file; revision and fingerprint of a data set on the hub.
        pairs: Its number of rows, unusable ones included.
    """

    name: str
    identity: dict[str, str]
    pairs: int


class PairStream:
    """Chosen pairs, read anew from where they are each time; no text is held.

    Args:
        parts: The parts whose rows were merged.
        given: The objectives that the user named.
        objectives: The k objectives.
        merged: What the rows are.
        chosen: (N,) which rows to give, each with the labels of its whole pair.
        track: Passes on the rows of a part, for a progress bar.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        given: Sequence[str] | None,
        objectives: Sequence[str],
        merged: Merged,
        chosen: Mask,
        track: Track = iter,
    ) -> None:
        self.parts, self.given, self.objectives = parts, given, objectives
        self.merged, self.chosen, self.track = merged, chosen, track

    def __len__(self) -> int:
        """Number of pairs."""
        return int(np.count_nonzero(self.chosen))

    def __iter__(self) -> Iterator[Pair]:
        """Yields the pairs in the order of the data.

        Raises:
            DataError: The data are not what they were.
        """
        left = len(self)
        if not left:
            return
        reader = DataReader(self.parts, self.given, Problems(), self.objectives, self.track)
        for row, (_, pair) in enumerate(reader):
            # numpy drops zero bytes at the end of a text
            if row == len(self.chosen) or (self.chosen[row] and self.merged.keys[row] != pair.key.rstrip(b"\0")):
                raise DataError(f"{pair.where}: the data have changed while they were read")
            if self.chosen[row]:
                left -= 1
                preferred = self.merged.preferred(row, self.objectives)
                yield replace(pair, preferred=preferred, margins=self.merged.margins(row, self.objectives))
        if left:
            raise DataError(f"{self.parts[-1].name}: the data have changed while they were read")

    def labels(self) -> dict[str, int]:
        """For each objective, how many of the pairs it judged: the size of its data set."""
        labels = self.merged.labels[self.merged.pair[self.chosen]]
        return dict(zip(self.objectives, (labels != UNLABELLED).sum(axis=0).tolist(), strict=True))


@dataclass(frozen=True)
class PreferenceData:
    """Everything that training needs to know about its data.

    Attributes:
        objectives: The k objectives, in the order of α.
        train: Pairs to learn from.
        valid: Held-out pairs; their prompts are not among those of ``train``. May be empty.
        files: What was read.
        notes: What the user should know, one line each.
    """

    objectives: tuple[str, ...]
    train: PairStream
    valid: PairStream
    files: tuple[DataFile, ...]
    notes: tuple[str, ...]


def load_data(
    source: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    first: Sequence[str] = (),
    seed: int = 0,
    hold_out: bool = True,
) -> PreferenceData:
    """Reads preference data.

    What :func:`parm_mlx.data.sources.find_parts` finds is read once, to check every row and to see what the rows
    are; the texts are read again when they are asked for. Data without a split of their own for validation are split by
    prompt. Rows of the same pair are one pair with all their labels; pairs of two equal responses, or without a label
    for the objectives, are left out. Notes count all of them.

    Args:
        source: A file, a folder or a data set on the hub.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels
            of others are left out.
        first: Objectives that come before those that only the data name, where the user has named none.
        seed: Seed of the split.
        hold_out: Whether to keep pairs for validation. Without, every pair of a file trains.

    Raises:
        DataError: There are no such data, rows cannot be used (all of them are reported together), an objective is not
            in the data, or every prompt to validate is to train, too.
        RunError: The hub cannot be reached.
    """
    problems = Problems()
    found = [part for part in find_parts(source, objectives) if part.split in _READ]
    parts = {split: [part for part in found if part.split == split] for split in _READ}
    reader = DataReader(found, objectives, problems, first)
    ledgers = {split: Ledger() for split in _READ}
    for part, pair in reader:
        ledgers[part.split].add(pair)
    problems.raise_any(source)
    reader.check_found(source)
    names = tuple(reader.objectives)
    files = tuple(
        DataFile(part.name, part.identity(), reader.counts[part.name]) for split in _READ for part in parts[split]
    )
    rows, held = (ledgers[split].merge(names) for split in _READ)
    contradictions = dict(zip(names, (rows.contradictions + held.contradictions).tolist(), strict=True))
    unjudged, repeated = (
        int(a.sum() + b.sum()) for a, b in ((rows.unjudged, held.unjudged), (rows.repeated, held.repeated))
    )
    notes = [f"labels of {', '.join(reader.unwanted)} are not used"] if reader.unwanted else []
    notes += merge_notes(rows.equal + held.equal, repeated, contradictions, unjudged)
    if parts["valid"]:
        usable = held.kept & hold_out
        shared = usable & np.isin(held.prompts, rows.prompts[rows.kept])
        if shared.any() and (shared == usable).all():
            raise DataError(
                f"data {source}: every prompt to validate is in the training data too", hint="split the data by prompt"
            )
        if shared.any():
            notes.append(f"{shared.sum()} pairs to validate are left out: their prompts are in the training data too")
        train = PairStream(parts["train"], objectives, names, rows, rows.kept)
        valid = PairStream(parts["valid"], objectives, names, held, usable & ~shared)
    else:
        chosen = np.zeros(len(rows.kept), np.bool_)
        chosen[rows.kept] = hold_out & held_out(rows.prompts[rows.kept], seed)
        train = PairStream(parts["train"], objectives, names, rows, rows.kept & ~chosen)
        valid = PairStream(parts["train"], objectives, names, rows, chosen)
    labels = ", ".join(f"{name} ({count})" for name, count in train.labels().items())
    notes.insert(0, f"{len(train)} pairs to train on, {len(valid)} to validate; objectives and their labels: {labels}")
    if hold_out and not len(valid):
        notes.append("too few prompts to hold some out: there is no validation")
    elif bare := [name for name, count in valid.labels().items() if not count and len(valid)]:
        notes.append(f"no pair to validate is labelled for {', '.join(bare)}")
    return PreferenceData(names, train, valid, files, tuple(notes))


def held_out(prompts: Keys, seed: int) -> Mask:
    """Holds out a tenth of the prompts (at most 500) with all their pairs, chosen by the seed.

    Args:
        prompts: (P,) the prompt of each pair.
        seed: Seed of the choice.

    Returns:
        (P,) the pairs that are held out; none where there is a single prompt.
    """
    numbers, different = number(prompts)
    count = len(different)
    size = min(max(1, round(VALID_SHARE * count)), MAX_VALID_PROMPTS) if count > 1 else 0
    mask: Mask = np.isin(numbers, np.random.default_rng(seed).permutation(count)[:size])
    return mask
