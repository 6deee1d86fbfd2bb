"""Preference data: files → pairs for training and validation, split so that no prompt is in both."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from parm_mlx.errors import DataError
from parm_mlx.training.rows import Pair, Problems, RowError, parse_row, read_lines

VALID_SHARE = 0.1
MAX_VALID_PROMPTS = 500
_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class DataFile:
    """A file that was read: its name, the SHA-256 of its bytes and its number of pairs."""

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
    objective (``helpful.jsonl``), which are split together.

    Args:
        source: A ``.jsonl`` file or a folder of them.
        objectives: Their names in the order of α; by default those of the data, in order of appearance.
        seed: Seed of the split.
        hold_out: Whether to keep pairs for validation. Without, every pair of a file trains.

    Raises:
        DataError: There are no such files, rows cannot be used (all of them are reported together), or every prompt of
            ``valid.jsonl`` is in ``train.jsonl`` too.
    """
    source = Path(source).expanduser()
    paths = _find(source)
    problems = Problems()
    read = {path: _read(path, objectives, problems) for path in paths}
    names = tuple(objectives) if objectives else _objectives_of(read)
    _check_objectives(read, names, problems)
    problems.raise_any(source)
    files = tuple(DataFile(path.name, _sha256(path), len(pairs)) for path, pairs in read.items())
    by_split = {path.stem: pairs for path, pairs in read.items()} if source.is_dir() else {}
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
    if hold_out and not valid:
        notes.append("too few prompts to hold some out: there is no validation")
    return PreferenceData(names, train, valid, files, tuple(notes))


def split_by_prompt(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Holds out a tenth of the prompts (at most 500) with all their pairs, chosen by the seed.

    Returns:
        (train, valid), each in the order of ``pairs``. With a single prompt nothing is held out.
    """
    prompts = list(dict.fromkeys(pair.prompt_key for pair in pairs))
    size = min(max(1, round(VALID_SHARE * len(prompts))), MAX_VALID_PROMPTS) if len(prompts) > 1 else 0
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:size]
    held_out = {prompts[i] for i in chosen}
    train = [pair for pair in pairs if pair.prompt_key not in held_out]
    return train, [pair for pair in pairs if pair.prompt_key in held_out]


def _find(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"data {source}: no such file or folder")
    found = {path.stem: path for path in sorted(source.glob("*.jsonl")) if path.is_file()}
    if not found:
        raise DataError(f"data {source}: no .jsonl file in this folder")
    per_objective = [path for stem, path in found.items() if stem not in _SPLITS]
    if "train" in found:
        if per_objective:
            extra = ", ".join(path.name for path in per_objective)
            raise DataError(f"data {source}: train.jsonl beside {extra}; keep either splits or one file per objective")
        return [found[stem] for stem in ("train", "valid") if stem in found]
    if len(per_objective) < len(found):
        raise DataError(f"data {source}: train.jsonl is missing")
    return per_objective


def _read(path: Path, objectives: Sequence[str] | None, problems: Problems) -> list[Pair]:
    default = objectives[0] if objectives and len(objectives) == 1 else None
    if path.stem in (objectives or [path.stem]) and path.stem not in _SPLITS:
        default = path.stem
    pairs, before = [], problems.count
    try:
        for where, text in read_lines(path, problems):
            try:
                pairs.append(parse_row(text, where, default))
            except RowError as error:
                problems.add(where, error)
    except OSError as error:
        raise DataError(f"data {path} cannot be read: {error.strerror or error}") from None
    if not pairs and problems.count == before:
        problems.add(path.name, "the file is empty")
    return pairs


def _objectives_of(read: dict[Path, list[Pair]]) -> tuple[str, ...]:
    trained = [pairs for path, pairs in read.items() if path.stem != "valid" or len(read) == 1]
    return tuple(dict.fromkeys(name for pairs in trained for pair in pairs for name in pair.preferred))


def _check_objectives(read: dict[Path, list[Pair]], names: Sequence[str], problems: Problems) -> None:
    for pair in (pair for pairs in read.values() for pair in pairs):
        for name in pair.preferred:
            if name not in names:
                close = get_close_matches(name, names, 1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                problems.add(pair.where, f"unknown objective {name!r} (the objectives are {', '.join(names)}){meant}")


def _without_shared_prompts(train: list[Pair], valid: list[Pair]) -> tuple[list[Pair], list[Pair], list[str]]:
    trained = {pair.prompt_key for pair in train}
    kept = [pair for pair in valid if pair.prompt_key not in trained]
    dropped = len(valid) - len(kept)
    if dropped and not kept:
        raise DataError("every prompt of valid.jsonl is in train.jsonl too", hint="split the data by prompt")
    notes = [f"{dropped} pairs of valid.jsonl are left out: their prompts are in train.jsonl too"] if dropped else []
    return train, kept, notes


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
