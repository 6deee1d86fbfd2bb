"""Preference data of any format → a folder in our format, split by prompt."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from parm_mlx.data.dataset import Progress, merge, no_progress, read_dataset, split_by_prompt
from parm_mlx.data.formats import as_row
from parm_mlx.data.pairs import Pair
from parm_mlx.data.sources import RECORD_FILE, SPLITS, find_files
from parm_mlx.errors import DataError
from parm_mlx.outputs import check_new, new_directory


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
    progress: Progress = no_progress,
) -> list[str]:
    """Writes ``train.jsonl``, ``valid.jsonl`` and ``test.jsonl``, whole or not at all, and a record of how.

    Every prompt is in one split only, with all its rows; rows of the same pair become one with all their labels. Splits
    that the source has already are put together and made again. A share of the prompts that is 0 has no file.

    Returns:
        What a user should know, one line each.

    Raises:
        DataError: There are no such files, rows cannot be used, an objective is not in the data, or there are too few
            prompts for the shares.
        OutputError: ``out`` exists or cannot be written.
        RunError: The disk is full or failed, or the hub cannot be reached.
    """
    out = check_new(out, force, [source])
    files = [replace(file, split="train") for file in find_files(source, objectives)]
    data = read_dataset(source, files, objectives, skip_bad=skip_bad, progress=progress)
    merged = merge(data.splits["train"], data.objectives)
    pairs = merged.labelled
    prompts = [pair.prompt_key for pair in pairs]
    sizes = _sizes(len(set(prompts)), valid_share, test_share)
    split_of = split_by_prompt(prompts, sizes, seed)
    splits: dict[str, list[Pair]] = {name: [] for name, size in zip(SPLITS, (1, *sizes), strict=True) if size}
    for pair, split in zip(pairs, split_of, strict=True):
        splits[SPLITS[split]].append(pair)
    rows = {name: len(members) for name, members in splits.items()}
    prompt_counts = {name: len({pair.prompt_key for pair in members}) for name, members in splits.items()}
    record = {
        "source": [{"file": file.name, **file.identity()} for file in files],
        "seed": seed,
        "valid_share": valid_share,
        "test_share": test_share,
        "rows": rows,
        "prompts": prompt_counts,
        **asdict(merged.counts),
        "bad": data.problems.count,
        "first_bad": data.problems.shown,
    }
    with new_directory(out, force, [source]) as directory:
        for name, members in splits.items():
            with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(map(as_row, members))
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    notes = [f"{name}.jsonl: {count} rows, {prompt_counts[name]} prompts" for name, count in rows.items()]
    return [*notes, *merged.counts.notes(), *([data.problems.note()] if data.problems.count else [])]


def _sizes(prompts: int, valid_share: float, test_share: float) -> list[int]:
    """Returns the numbers of prompts to validate and to test; a share above 0 gets at least one."""
    sizes = [max(1, round(share * prompts)) if share > 0 else 0 for share in (valid_share, test_share)]
    if sum(sizes) >= prompts:
        raise DataError(
            f"{prompts} prompts are too few for {sizes[0]} to validate and {sizes[1]} to test, and some to train",
            hint="lower --valid-share and --test-share; 0 is none",
        )
    return sizes
