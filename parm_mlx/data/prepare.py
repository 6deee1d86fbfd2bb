"""Preference data of any format → a folder of ours, split by prompt."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.dataset import PairStream
from parm_mlx.data.files import SPLITS
from parm_mlx.data.formats import as_row
from parm_mlx.data.merging import Ledger, number
from parm_mlx.data.pairs import Problems
from parm_mlx.data.sources import RECORD_FILE, DataReader, Track, find_parts
from parm_mlx.errors import DataError
from parm_mlx.outputs import check_new, new_directory


@dataclass(frozen=True)
class Prepared:
    """What was written.

    Attributes:
        rows: Number of rows of each split.
        prompts: Number of different prompts of each split.
        equal: Rows left out because both responses are equal.
        merged: Rows of the same pair as an earlier one, merged with it.
        unjudged: Pairs without a label for the objectives.
        contradictions: For each objective, of how many pairs the labels contradicted each other; they are dropped.
        bad: Rows left out because they cannot be used.
        first_bad: Some of those, each with file, line and reason.
    """

    rows: dict[str, int]
    prompts: dict[str, int]
    equal: int
    merged: int
    unjudged: int
    contradictions: dict[str, int]
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

    Every prompt is in one split only, with all its rows; rows of the same pair become one with all their labels. The
    source is read twice and never held in memory. Splits that it has already are put together and made anew.

    Args:
        source: A file, a folder or a data set on the hub, as training reads it.
        out: The folder to write.
        objectives: The objectives to keep; all, when left out.
        valid_share: Share of the prompts for validation; 0 for none.
        test_share: Share of the prompts for testing; 0 for none.
        seed: Seed of the split.
        skip_bad: Whether rows that cannot be used are left out rather than refused.
        force: Whether prepared data at ``out`` may be replaced.
        track: Passes on the rows of a part, for a progress bar.

    Raises:
        DataError: There are no such files, rows cannot be used, an objective is not in the data, or there are too few
            prompts for the shares.
        OutputError: ``out`` exists or cannot be written.
        RunError: The disk is full or failed, or the hub cannot be reached.
    """
    out, problems = check_new(out, force, [source]), Problems()
    parts = [replace(part, split="train") for part in find_parts(source, objectives)]
    reader, ledger = DataReader(parts, objectives, problems, track=track), Ledger()
    for _, pair in reader:
        ledger.add(pair)
    if problems.count and not (skip_bad and len(ledger)):
        problems.raise_any(source)
    reader.check_found(source)
    names = tuple(reader.objectives)
    merged = ledger.merge(names)
    prompts, different = number(merged.prompts[merged.kept])
    split_of = _assign(len(different), valid_share, test_share, seed)
    used = [name for i, name in enumerate(SPLITS) if i in split_of]
    rows = dict.fromkeys(used, 0)
    pairs = PairStream(parts, objectives, names, merged, merged.kept, track)
    with new_directory(out, force, [source]) as directory:
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((directory / f"{name}.jsonl").open("w", encoding="utf-8")) for name in used
            }
            for split, pair in zip(split_of[prompts], pairs, strict=True):
                files[SPLITS[split]].write(as_row(pair))
                rows[SPLITS[split]] += 1
        prepared = Prepared(
            rows=rows,
            prompts={name: int(np.count_nonzero(split_of == SPLITS.index(name))) for name in used},
            equal=merged.equal,
            merged=int(merged.repeated.sum()),
            unjudged=int(merged.unjudged.sum()),
            contradictions=dict(zip(names, merged.contradictions.tolist(), strict=True)),
            bad=problems.count,
            first_bad=problems.shown,
        )
        record = {
            "source": [{"file": part.name, **part.identity()} for part in parts],
            "seed": seed,
            "valid_share": valid_share,
            "test_share": test_share,
            **asdict(prepared),
        }
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return prepared


def _assign(prompts: int, valid_share: float, test_share: float, seed: int) -> NDArray[np.int8]:
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
    return split
