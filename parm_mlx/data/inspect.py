"""What is in preference data, and what training would make of it; read row by row, whatever its size."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.data.merging import Keys, Ledger, Merged
from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.data.sources import DataReader, Track, find_parts
from parm_mlx.data.tokenize import UNLABELLED, check_eos, tokenize_pair
from parm_mlx.mlxlm import TokenizerWrapper

PERCENTILES = (50, 90, 95, 99, 100)
EQUAL, SHARED, TOO_LONG = "both responses are equal", "prompt is in train too", "longer than the limit"
MERGED, CONTRADICTED = "merged with an earlier row of the same pair", "labels contradict each other"
UNJUDGED = "no label for the objectives"
UNUSED = "training does not read it"


@dataclass(frozen=True)
class Ruler:
    """How training would measure rows.

    Attributes:
        tokenizer: The backbone's tokenizer.
        limit: Most tokens that a prompt with its response may have.
        chat_template: Name of a built-in chat template; None is the tokenizer's own.
        rows: Rows of the backbone's embedding; None is not checked.
    """

    tokenizer: TokenizerWrapper
    limit: int
    chat_template: str | None = None
    rows: int | None = None

    def __call__(self, pair: Pair) -> int:
        """Tokens of the prompt with the longer response, BOS and EOS included.

        Raises:
            RowError: The prompt cannot be tokenised, or the backbone has no embedding for a token.
            ModelError: The tokenizer has no chat template for a prompt that needs one.
        """
        return len(tokenize_pair(self.tokenizer, pair, (), self.chat_template, self.rows))


@dataclass(frozen=True)
class Split:
    """One split of the data, or all of it where it is not split.

    Attributes:
        name: ``train``, ``valid`` or ``test``.
        labels: For each objective, how many rows it judged.
        merged: What the rows are.
        lengths: Tokens of each row; empty without a model.
        dropped: Rows that training leaves out, by the first reason that holds.
    """

    name: str
    labels: dict[str, int]
    merged: Merged
    lengths: "array[int]"
    dropped: dict[str, int]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.merged.pair)

    @cached_property
    def prompts(self) -> Keys:
        """Keys of the different prompts."""
        return np.unique(self.merged.prompts)

    @property
    def kept(self) -> int:
        """Pairs that training uses."""
        return self.rows - sum(self.dropped.values())

    @property
    def judged(self) -> tuple[int, ...]:
        """(k,) how many pairs each objective judged: the sizes of the data sets D_i."""
        return tuple((self.merged.labels != UNLABELLED).sum(axis=0).tolist())

    @property
    def judged_by_several(self) -> int:
        """How many pairs serve several objectives."""
        return int(((self.merged.labels != UNLABELLED).sum(axis=1) > 1).sum())

    def percentiles(self) -> dict[str, int]:
        """Tokens per row; a share of the rows has at most so many. Empty without a model."""
        if not self.lengths:
            return {}
        values = np.percentile(np.array(self.lengths), PERCENTILES, method="inverted_cdf")
        return {str(share): int(value) for share, value in zip(PERCENTILES, values, strict=True)}


@dataclass(frozen=True)
class Survey:
    """What is in the data.

    Attributes:
        objectives: In the order of α that training would use.
        formats: The format of each file or hub split, by name.
        splits: The splits in the order train, valid, test.
        disagreement: For two objectives, how many pairs both judged and in how many of those they differ.
        limit: The length limit, None without a model.
    """

    objectives: tuple[str, ...]
    formats: dict[str, str]
    splits: tuple[Split, ...]
    disagreement: dict[tuple[str, str], tuple[int, int]]
    limit: int | None

    def shared_prompts(self) -> dict[tuple[str, str], int]:
        """How many prompts each two splits have in common."""
        return {
            (a.name, b.name): len(np.intersect1d(a.prompts, b.prompts, assume_unique=True))
            for a, b in combinations(self.splits, 2)
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "objectives": list(self.objectives),
            "files": self.formats,
            "max_seq_length": self.limit,
            "splits": [
                {
                    "name": split.name,
                    "rows": split.rows,
                    "prompts": len(split.prompts),
                    "repeated_prompts": split.rows - len(split.prompts),
                    "equal_responses": split.merged.equal,
                    "labels": {name: split.labels.get(name, 0) for name in self.objectives},
                    "merged_rows": int(split.merged.repeated.sum()),
                    "contradictions": self.named(split.merged.contradictions.tolist()),
                    "pairs": self.named(split.judged),
                    "pairs_of_several_objectives": split.judged_by_several,
                    "token_percentiles": split.percentiles(),
                    "kept": split.kept,
                    "dropped": split.dropped,
                }
                for split in self.splits
            ],
            "shared_prompts": [{"splits": pair, "prompts": count} for pair, count in self.shared_prompts().items()],
            "disagreement": [
                {"objectives": pair, "judged_by_both": both, "differ": differ}
                for pair, (both, differ) in self.disagreement.items()
            ],
        }

    def named(self, values: Sequence[int]) -> dict[str, int]:
        """A value for each objective, by name."""
        return dict(zip(self.objectives, values, strict=True))


def survey(
    source: str | Path, *, objectives: Sequence[str] | None = None, ruler: Ruler | None = None, track: Track = iter
) -> Survey:
    """Reads preference data and counts what is in it.

    Args:
        source: A file, a folder or a data set on the hub, as training reads it; ``test`` is looked at as well.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels of
            others are left out.
        ruler: How to measure lengths; without, there are none.
        track: Passes on the rows of a part, for a progress bar.

    Raises:
        DataError: There are no such data, rows cannot be used (all of them are reported together), or an objective is
            not in the data.
        ModelError: The ruler's tokenizer cannot be trained with.
        RunError: The hub cannot be reached.
    """
    if ruler:
        check_eos(ruler.tokenizer)
    problems, parts = Problems(), find_parts(source, objectives)
    reader = DataReader(parts, objectives, problems, track=track)
    ledgers = {part.split: Ledger() for part in parts}
    lengths = {part.split: array("q") for part in parts}
    for part, pair in reader:
        if ruler:
            try:
                lengths[part.split].append(ruler(pair))
            except RowError as error:
                problems.add(pair.where, error)
                continue
        ledgers[part.split].add(pair)
    problems.raise_any(source)
    reader.check_found(source)
    names, limit = tuple(reader.objectives), ruler.limit if ruler else None
    merged = {split: ledger.merge(names) for split, ledger in ledgers.items()}
    splits = tuple(
        Split(
            split, ledgers[split].labels, rows, lengths[split], _dropped(split, rows, merged["train"], lengths, limit)
        )
        for split, rows in merged.items()
    )
    formats = {name: found or "" for name, found in reader.formats.items()}
    return Survey(names, formats, splits, _disagreement(names, merged), limit)


def _dropped(
    split: str, rows: Merged, train: Merged, lengths: "dict[str, array[int]]", limit: int | None
) -> dict[str, int]:
    """The rows that training leaves out, by the first reason that holds, without reasons that never do."""
    everything = np.ones(len(rows.pair), np.bool_)
    reasons = {
        UNUSED: everything & (split == "test"),
        EQUAL: rows.pair < 0,
        MERGED: rows.repeated,
        UNJUDGED: rows.unjudged,
        CONTRADICTED: rows.unlabelled,
        SHARED: np.isin(rows.prompts, train.prompts[train.kept]) & (split == "valid"),
        TOO_LONG: everything & False if limit is None else np.array(lengths[split]) > limit,
    }
    left, counts = everything, {}
    for reason, rows_of_it in reasons.items():
        if count := int((left & rows_of_it).sum()):
            counts[reason] = count
        left = left & ~rows_of_it
    return counts


def _disagreement(names: Sequence[str], merged: dict[str, Merged]) -> dict[tuple[str, str], tuple[int, int]]:
    labels = np.concatenate([rows.labels for rows in merged.values()])
    found = {}
    for i, j in combinations(range(len(names)), 2):
        both = labels[(labels[:, i] != UNLABELLED) & (labels[:, j] != UNLABELLED)]
        if len(both):
            found[names[i], names[j]] = len(both), int((both[:, i] != both[:, j]).sum())
    return found
