"""Preference data of any format → a folder of ours, split by prompt."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.errors import DataError
from parm_mlx.files import check_new, new_directory
from parm_mlx.training.rows import Pair, Problems
from parm_mlx.training.sources import RECORD_FILE, SPLITS, DataReader, find_files, sha256

Track = Callable[[Iterable[Pair]], Iterable[Pair]]


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        rows: Number of rows of each split.
        prompts: Number of different prompts of each split.
        equal: Rows left out because both responses are equal.
        bad: Rows left out because they cannot be used.
        first_bad: Some of those, each with file, line and reason.
    """

    rows: dict[str, int]
    prompts: dict[str, int]
    equal: int
    bad: int
    first_bad: list[str]


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
    force: bool = False,
    track: Track = iter,
) -> Prepared:
    """Writes ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, whole or not at all, and a record of how.

    Every prompt is in one split only, with all its rows. The source is read twice and never held in memory. Splits that
    it has already are put together and made anew.

    Args:
        source: A file or a folder, as training reads it.
        out: The folder to write.
        objectives: The objectives to keep; all, when left out.
        valid_share: Share of the prompts for validation; 0 for none.
        test_share: Share of the prompts for testing; 0 for none.
        seed: Seed of the split.
        skip_bad: Whether rows that cannot be used are left out rather than refused.
        force: Whether prepared data at ``out`` may be replaced.
        track: Passes on the rows of a file, for a progress bar.

    Raises:
        DataError: There are no such files, rows cannot be used, an objective is not in the data, or there are too few
            prompts for the shares.
        OutputError: ``out`` exists or cannot be written.
        RunError: The disk is full or failed.
    """
    source, out = Path(source).expanduser(), check_new(out, force)
    paths, problems = find_files(source), Problems()
    reader = DataReader(objectives, problems, paths)
    prompts, equal = _prompts(paths, reader, track)
    if problems.count and not (skip_bad and prompts):
        problems.raise_any(source)
    reader.check_found(source)
    split_of = dict(zip(prompts, _assign(len(prompts), valid_share, test_share, seed), strict=True))
    used = [SPLITS[i] for i in sorted(set(split_of.values()))]
    rows, counts = dict.fromkeys(used, 0), dict.fromkeys(used, 0)
    for number in split_of.values():
        counts[SPLITS[number]] += 1
    with new_directory(out, force) as directory:
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((directory / f"{name}.jsonl").open("w", encoding="utf-8")) for name in used
            }
            for pair in _usable(paths, DataReader(objectives, Problems(), paths), track):
                name = SPLITS[split_of[pair.prompt_key]]
                files[name].write(_as_row(pair))
                rows[name] += 1
        prepared = Prepared(rows, counts, equal, problems.count, problems.shown)
        record = {
            "source": [{"file": path.name, "sha256": sha256(path)} for path in paths],
            "seed": seed,
            "valid_share": valid_share,
            "test_share": test_share,
            **asdict(prepared),
        }
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return prepared


def _prompts(paths: Iterable[Path], reader: DataReader, track: Track) -> tuple[list[bytes], int]:
    """The different prompts, in order, and the number of pairs that are left out because their responses are equal."""
    found, equal = dict[bytes, None](), 0
    for pair in _usable(paths, reader, track, equal_too=True):
        if pair.undecidable:
            equal += 1
        else:
            found[pair.prompt_key] = None
    return list(found), equal


def _usable(paths: Iterable[Path], reader: DataReader, track: Track, equal_too: bool = False) -> Iterable[Pair]:
    for path in paths:
        for pair in track(reader.read(path)):
            if pair.preferred and (equal_too or not pair.undecidable):
                yield pair


def _assign(prompts: int, valid_share: float, test_share: float, seed: int) -> list[int]:
    """For each prompt the number of its split; a share above 0 gets at least one prompt."""
    sizes = [max(1, round(share * prompts)) if share > 0 else 0 for share in (valid_share, test_share)]
    if sum(sizes) >= prompts:
        raise DataError(
            f"{prompts} prompts are too few for {sizes[0]} to validate and {sizes[1]} to test, and some to train",
            hint="lower --valid-share and --test-share; 0 is none",
        )
    split = np.zeros(prompts, np.int8)
    order = np.random.default_rng(seed).permutation(prompts)
    split[order[: sizes[0]]] = 1
    split[order[sizes[0] : sum(sizes)]] = 2
    numbers: list[int] = split.tolist()
    return numbers


def _as_row(pair: Pair) -> str:
    row: dict[str, Any] = {"prompt": pair.prompt, "responses": list(pair.responses), "preferred": pair.preferred}
    return json.dumps(row, ensure_ascii=False) + "\n"
