"""Preference data: files → pairs for training and validation, split so that no prompt is in both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parm_mlx.errors import DataError
from parm_mlx.training.rows import Pair, Problems
from parm_mlx.training.sources import DataReader, check_objectives, find_files, sha256, stem

VALID_SHARE = 0.1
MAX_VALID_PROMPTS = 500


@dataclass(frozen=True)
class DataFile:
    """A file that was read: its name, the SHA-256 of its bytes and its number of pairs, unusable ones included."""

    name: str
    sha256: str
    pairs: int


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
    train: list[Pair]
    valid: list[Pair]
    files: tuple[DataFile, ...]
    notes: tuple[str, ...]


def load_data(
    source: str | Path, *, objectives: Sequence[str] | None = None, seed: int = 0, hold_out: bool = True
) -> PreferenceData:
    """Reads preference data.

    A file is split by prompt. A folder holds either ``train.jsonl`` and, if it likes, ``valid.jsonl``; or one file per
    objective (``helpful.jsonl``), which are split together. The formats are those of
    :mod:`parm_mlx.training.formats`; pairs of two equal responses, or without a label for the objectives, are left out,
    and counted in a note.

    Args:
        source: A ``.jsonl`` file (or ``.json``, or either with ``.gz``) or a folder of them.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels of
            others are left out.
        seed: Seed of the split.
        hold_out: Whether to keep pairs for validation. Without, every pair of a file trains.

    Raises:
        DataError: There are no such files, rows cannot be used (all of them are reported together), an objective is not
            in the data, or every prompt of ``valid.jsonl`` is in ``train.jsonl`` too.
    """
    source = Path(source).expanduser()
    problems = Problems()
    paths = [path for path in find_files(source) if source.is_file() or stem(path) != "test"]
    reader = DataReader(objectives, problems, paths)
    read = {path: list(reader.read(path)) for path in paths}
    names = tuple(objectives) if objectives else _objectives_of(read)
    for pair in (pair for pairs in read.values() for pair in pairs):
        check_objectives(pair, names, problems)
    problems.raise_any(source)
    reader.check_found(source)
    files = tuple(DataFile(path.name, sha256(path), len(pairs)) for path, pairs in read.items())
    read = {path: [pair for pair in pairs if pair.preferred] for path, pairs in read.items()}
    labelled = sum(map(len, read.values()))
    read = {path: [pair for pair in pairs if not pair.undecidable] for path, pairs in read.items()}
    equal = labelled - sum(map(len, read.values()))
    by_split = {stem(path): pairs for path, pairs in read.items()} if source.is_dir() else {}
    if "valid" in by_split:
        train, valid = by_split["train"], by_split["valid"] if hold_out else []
        train, valid, notes = _without_shared_prompts(train, valid)
    else:
        pairs = [pair for pairs in read.values() for pair in pairs]
        train, valid = split_by_prompt(pairs, seed) if hold_out else (pairs, [])
        notes = []
    counts = Counter(name for pair in train for name in pair.preferred)
    labels = ", ".join(f"{name} ({counts[name]})" for name in names)
    notes.insert(0, f"{len(train)} pairs to train on, {len(valid)} to validate; objectives and their labels: {labels}")
    if reader.unwanted:
        notes.append(f"labels of {', '.join(reader.unwanted)} are not used")
    if bare := sum(file.pairs for file in files) - labelled:
        notes.append(f"{bare} pairs are left out: they have no label for {', '.join(names)}")
    if equal:
        notes.append(f"{equal} pairs are left out: both responses are equal")
    if hold_out and not valid:
        notes.append("too few prompts to hold some out: there is no validation")
    return PreferenceData(names, train, valid, files, tuple(notes))


def split_by_prompt(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Holds out a tenth of the prompts (at most 500) with all their pairs, chosen by the seed.

    Returns:
        (train, valid), each in the order of ``pairs``. With a single prompt nothing is held out.
    """
    keys = [pair.prompt_key for pair in pairs]
    prompts = list(dict.fromkeys(keys))
    size = min(max(1, round(VALID_SHARE * len(prompts))), MAX_VALID_PROMPTS) if len(prompts) > 1 else 0
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:size]
    held_out = {prompts[i] for i in chosen}
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair, key in zip(pairs, keys, strict=True):
        sides[key in held_out].append(pair)
    return sides


def _objectives_of(read: dict[Path, list[Pair]]) -> tuple[str, ...]:
    trained = [pairs for path, pairs in read.items() if stem(path) != "valid" or len(read) == 1]
    return tuple(dict.fromkeys(name for pairs in trained for pair in pairs for name in pair.preferred))


def _without_shared_prompts(train: list[Pair], valid: list[Pair]) -> tuple[list[Pair], list[Pair], list[str]]:
    trained = {pair.prompt_key for pair in train}
    kept = [pair for pair in valid if pair.prompt_key not in trained]
    dropped = len(valid) - len(kept)
    if dropped and not kept:
        raise DataError("every prompt of valid.jsonl is in train.jsonl too", hint="split the data by prompt")
    notes = [f"{dropped} pairs of valid.jsonl are left out: their prompts are in train.jsonl too"] if dropped else []
    return train, kept, notes
