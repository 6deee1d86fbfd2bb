"""Contents of preference data, and what training would keep and drop of it."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.data.dataset import (
    Dataset,
    Merged,
    Progress,
    count_labels,
    disagreement,
    merge,
    no_progress,
    read_dataset,
)
from parm_mlx.data.pairs import Pair, RowError
from parm_mlx.data.sources import SPLITS, find_files
from parm_mlx.data.tokenize import check_eos, tokenize_pair
from parm_mlx.mlxlm import TokenizerWrapper

PERCENTILES = (50, 90, 95, 99, 100)
EQUAL, SHARED, TOO_LONG = "both responses are equal", "prompt is in train too", "longer than the limit"
MERGED, CONTRADICTED = "merged with an earlier row of the same pair", "labels contradict each other"
UNJUDGED = "no label for the objectives"
UNUSED = "training does not read it"


def inspect_data(
    source: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    tokenizer: TokenizerWrapper | None = None,
    max_length: int = 1024,
    chat_template: str | None = None,
    embeddings: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Reads preference data and counts what is in it, and what training would keep and drop.

    Rows that cannot be used are counted as well, and so is ``test``, which training does not read. Lengths are measured
    by the backbone's tokenizer, if it is given; further arguments are those of training.

    Returns:
        Plain values, as ``parm-mlx data inspect --json`` prints them. In a split, ``labels`` counts rows and ``pairs``
        counts pairs that an objective judged: the sizes of the data sets D_i; ``dropped`` counts rows by the first
        reason that holds.

    Raises:
        DataError: There are no such data, no row can be used, or an objective is not in the data.
        ModelError: The tokenizer cannot be trained with.
        RunError: The hub cannot be reached.
    """
    if tokenizer:
        check_eos(tokenizer)
    data = read_dataset(source, find_files(source, objectives), objectives, skip_bad=True, progress=progress)
    lengths = {split: [0] * len(rows) for split, rows in data.splits.items()}
    if tokenizer:
        lengths = _measure(data, tokenizer, chat_template, embeddings, progress)
        if not any(data.splits.values()):
            data.problems.raise_any(source)
    merged = {split: merge(data.splits[split], data.objectives) for split in SPLITS if split in data.splits}
    prompts = {split: {row.prompt_key for row in data.splits[split]} for split in merged}
    trained = {pair.prompt_key for pair in merged["train"].labelled}
    splits = []
    for name, of_split in merged.items():
        rows, pairs, counts = data.splits[name], of_split.labelled, of_split.counts
        dropped = _dropped(name, of_split, len(rows), trained, lengths[name], max_length)
        splits.append(
            {
                "name": name,
                "rows": len(rows),
                "prompts": len(prompts[name]),
                "repeated_prompts": len(rows) - len(prompts[name]),
                "equal_responses": counts.equal,
                "labels": count_labels(rows, data.objectives),
                "merged_rows": counts.merged,
                "contradictions": counts.contradictions,
                "pairs": count_labels(pairs, data.objectives),
                "pairs_of_several_objectives": sum(len(pair.preferred) > 1 for pair in pairs),
                "token_percentiles": percentiles(lengths[name]) if tokenizer else {},
                "kept": len(rows) - sum(dropped.values()),
                "dropped": dropped,
            }
        )
    every_pair = [pair for of_split in merged.values() for pair in of_split.labelled]
    return {
        "objectives": list(data.objectives),
        "files": data.formats,
        "max_seq_length": max_length if tokenizer else None,
        "bad_rows": {"count": data.problems.count, "first": data.problems.shown},
        "splits": splits,
        "shared_prompts": [
            {"splits": [a, b], "prompts": len(prompts[a] & prompts[b])} for a, b in combinations(merged, 2)
        ],
        "disagreement": [
            {"objectives": list(names), "judged_by_both": both, "differ": differ}
            for names, (both, differ) in disagreement(every_pair, data.objectives).items()
            if both
        ],
    }


def _measure(
    data: Dataset, tokenizer: TokenizerWrapper, template: str | None, embeddings: int | None, progress: Progress
) -> dict[str, list[int]]:
    """Returns the tokens of each row's longer response; rows that cannot be tokenised leave the data."""
    lengths: dict[str, list[int]] = {}
    for split, rows in data.splits.items():
        lengths[split], kept = [], list[Pair]()
        for row in progress(rows, len(rows), f"tokenizing {split}"):
            try:
                lengths[split].append(len(tokenize_pair(tokenizer, row, (), template, embeddings)))
                kept.append(row)
            except RowError as error:
                data.problems.add(row.where, error)
        rows[:] = kept
    return lengths


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """Returns lengths that occur; a share of the rows has at most so many tokens."""
    if not lengths:
        return {}
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return {str(share): int(value) for share, value in zip(PERCENTILES, values, strict=True)}


def _dropped(
    split: str, merged: Merged, rows: int, trained: set[bytes], lengths: Sequence[int], max_length: int
) -> dict[str, int]:
    """Counts the rows that training leaves out, by the first reason that holds."""
    if split == "test":
        return {UNUSED: rows}
    counts = merged.counts
    reasons = Counter(
        {EQUAL: counts.equal, MERGED: counts.merged, UNJUDGED: counts.unjudged, CONTRADICTED: counts.contradicted}
    )
    for first, pair in zip(merged.first, merged.different, strict=True):
        if not pair.preferred:
            continue
        if split == "valid" and pair.prompt_key in trained:
            reasons[SHARED] += 1
        elif lengths[first] > max_length:
            reasons[TOO_LONG] += 1
    return {reason: count for reason, count in reasons.items() if count}
