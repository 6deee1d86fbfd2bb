"""Contents of preference data, and what training would keep and drop of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.data.dataset import (
    Dataset,
    Disagreement,
    Merged,
    Progress,
    count_labels,
    disagreement,
    merge,
    no_progress,
    read_dataset,
)
from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.data.sources import SPLITS, find_files
from parm_mlx.data.tokenize import check_eos, tokenize_pair
from parm_mlx.mlxlm import TokenizerWrapper

PERCENTILES = (50, 90, 95, 99, 100)
EQUAL, SHARED, TOO_LONG = "both responses are equal", "prompt is in train too", "longer than the limit"
MERGED, CONTRADICTED = "merged with an earlier row of the same pair", "labels contradict each other"
UNJUDGED = "no label for the objectives"
UNUSED = "training does not read it"


@dataclass(frozen=True)
class SplitSummary:
    """Numbers of one split, or of all data if they are not split.

    Attributes:
        name: ``train``, ``valid`` or ``test``.
        rows: Number of rows.
        prompts: Number of different prompts.
        repeated_prompts: Rows whose prompt an earlier row has.
        equal_responses: Rows whose responses are equal.
        labels: For each objective, how many rows it judged.
        merged_rows: Rows of the same pair as an earlier one.
        contradictions: For each objective, pairs whose labels contradict each other.
        pairs: For each objective, how many pairs it judged: the sizes of the data sets D_i.
        pairs_of_several_objectives: Pairs that serve several objectives.
        token_percentiles: Tokens per row; a share of the rows has at most so many. Empty without a tokenizer.
        kept: Pairs that training uses.
        dropped: Rows that training leaves out, by the first reason that holds.
    """

    name: str
    rows: int
    prompts: int
    repeated_prompts: int
    equal_responses: int
    labels: dict[str, int]
    merged_rows: int
    contradictions: dict[str, int]
    pairs: dict[str, int]
    pairs_of_several_objectives: int
    token_percentiles: dict[str, int]
    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """Contents of preference data.

    Attributes:
        objectives: In the order of α that training would use.
        formats: The format of each file or hub split, by name.
        splits: The splits in the order train, valid, test.
        shared_prompts: How many prompts two splits have in common.
        disagreement: For two objectives, how many pairs both judged and in how many of those they differ.
        limit: The length limit, None without a tokenizer.
        bad: Rows that cannot be used.
    """

    objectives: tuple[str, ...]
    formats: dict[str, str]
    splits: tuple[SplitSummary, ...]
    shared_prompts: dict[tuple[str, str], int]
    disagreement: Disagreement
    limit: int | None
    bad: Problems

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            "objectives": list(self.objectives),
            "files": self.formats,
            "max_seq_length": self.limit,
            "bad_rows": {"count": self.bad.count, "first": self.bad.shown},
            "splits": [asdict(split) for split in self.splits],
            "shared_prompts": [{"splits": pair, "prompts": count} for pair, count in self.shared_prompts.items()],
            "disagreement": [
                {"objectives": pair, "judged_by_both": both, "differ": differ}
                for pair, (both, differ) in self.disagreement.items()
            ],
        }


def inspect_data(
    source: str | Path,
    *,
    objectives: Sequence[str] | None = None,
    tokenizer: TokenizerWrapper | None = None,
    max_length: int = 1024,
    chat_template: str | None = None,
    embeddings: int | None = None,
    progress: Progress = no_progress,
) -> Inspection:
    """Reads preference data and counts what is in it; rows that cannot be used are counted as well.

    Args:
        source: A file, a folder or a data set on the hub, as training reads it; ``test`` is looked at as well.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels of
            others are left out.
        tokenizer: The backbone's tokenizer, to measure lengths; without, there are none.
        max_length: Most tokens that a prompt with its response may have.
        chat_template: Name of a built-in chat template; None is the tokenizer's own.
        embeddings: Rows of the backbone's embedding; None is not checked.
        progress: Shows how many rows are read.

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
    merged = {split: merge(rows, data.objectives) for split, rows in data.splits.items()}
    prompts = {split: {row.prompt_key for row in rows} for split, rows in data.splits.items()}
    trained = {pair.prompt_key for pair in merged["train"].labelled}
    splits = []
    for split in (split for split in SPLITS if split in merged):
        rows, pairs, of_split = data.splits[split], merged[split].labelled, merged[split]
        counts, labels = of_split.counts, count_labels(rows, data.objectives)
        dropped = _dropped(split, of_split, len(rows), trained, lengths[split], max_length)
        splits.append(
            SplitSummary(
                name=split,
                rows=len(rows),
                prompts=len(prompts[split]),
                repeated_prompts=len(rows) - len(prompts[split]),
                equal_responses=counts.equal,
                labels=labels,
                merged_rows=counts.merged,
                contradictions=counts.contradictions,
                pairs=count_labels(pairs, data.objectives),
                pairs_of_several_objectives=sum(len(pair.preferred) > 1 for pair in pairs),
                token_percentiles=percentiles(lengths[split]) if tokenizer else {},
                kept=len(rows) - sum(dropped.values()),
                dropped=dropped,
            )
        )
    names = [split.name for split in splits]
    shared = {(a, b): len(prompts[a] & prompts[b]) for a, b in combinations(names, 2)}
    every_pair = [pair for name in names for pair in merged[name].labelled]
    differing = {both: count for both, count in disagreement(every_pair, data.objectives).items() if count[0]}
    limit = max_length if tokenizer else None
    return Inspection(data.objectives, data.formats, tuple(splits), shared, differing, limit, data.problems)


def _measure(
    data: Dataset,
    tokenizer: TokenizerWrapper,
    chat_template: str | None,
    embeddings: int | None,
    progress: Progress,
) -> dict[str, list[int]]:
    """Returns the tokens of each row's longer response; rows that cannot be tokenised leave the data."""
    lengths: dict[str, list[int]] = {}
    for split, rows in data.splits.items():
        lengths[split], kept = [], list[Pair]()
        for row in progress(rows, len(rows), f"tokenizing {split}"):
            try:
                lengths[split].append(len(tokenize_pair(tokenizer, row, (), chat_template, embeddings)))
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
    """Returns the rows that training leaves out, by the first reason that holds."""
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
