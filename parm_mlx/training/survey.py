"""What is in preference data, and what training would make of it; read row by row, whatever its size."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.training.rows import Pair, Problems, RowError
from parm_mlx.training.sources import SPLITS, DataReader, check_objectives, find_files, stem
from parm_mlx.training.tokenize import check_eos, tokenize_pair

PERCENTILES = (50, 90, 95, 99, 100)
EQUAL, SHARED, TOO_LONG = "both responses are equal", "prompt is in train too", "longer than the limit"
UNLABELLED = "no label for the objectives"
UNUSED = "training does not read it"

Track = Callable[[Iterable[Pair]], Iterable[Pair]]


@dataclass(frozen=True)
class Ruler:
    """How training would measure rows.

    Attributes:
        tokenizer: The backbone's tokenizer.
        limit: Most tokens that a prompt with its response may have.
        chat_template: Name of a built-in chat template; None is the tokenizer's own.
    """

    tokenizer: TokenizerWrapper
    limit: int
    chat_template: str | None = None

    def __call__(self, pair: Pair) -> int:
        """Tokens of the prompt with the longer response, BOS and EOS included.

        Raises:
            RowError: The prompt cannot be tokenised.
            ModelError: The tokenizer has no chat template for a prompt that needs one.
        """
        return len(tokenize_pair(self.tokenizer, pair, (), self.chat_template))


@dataclass
class Split:
    """One split of the data, or all of it where it is not split.

    Attributes:
        name: ``train``, ``valid`` or ``test``.
        rows: Number of rows.
        labels: For each objective, how many rows it judged.
        equal: Rows whose responses are equal.
        dropped: Rows that training leaves out, by the first reason that holds.
        prompts: Keys of the different prompts.
        lengths: Tokens of each row.
    """

    name: str
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    prompts: set[bytes] = field(default_factory=set)
    lengths: "array[int]" = field(default_factory=lambda: array("L"))

    @property
    def kept(self) -> int:
        """Rows that training uses."""
        return self.rows - self.dropped.total()

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
        formats: The format of each file, by name.
        splits: The splits in the order train, valid, test.
        disagreement: For two objectives, how many rows both judged and in how many of those they differ.
        limit: The length limit, None without a model.
    """

    objectives: tuple[str, ...]
    formats: dict[str, str]
    splits: tuple[Split, ...]
    disagreement: dict[tuple[str, str], tuple[int, int]]
    limit: int | None

    def shared_prompts(self) -> dict[tuple[str, str], int]:
        """How many prompts each two splits have in common."""
        return {(a.name, b.name): len(a.prompts & b.prompts) for a, b in combinations(self.splits, 2)}

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
                    "equal_responses": split.equal,
                    "labels": {name: split.labels[name] for name in self.objectives},
                    "token_percentiles": split.percentiles(),
                    "kept": split.kept,
                    "dropped": dict(split.dropped),
                }
                for split in self.splits
            ],
            "shared_prompts": [{"splits": pair, "prompts": count} for pair, count in self.shared_prompts().items()],
            "disagreement": [
                {"objectives": pair, "judged_by_both": both, "differ": differ}
                for pair, (both, differ) in self.disagreement.items()
            ],
        }


def survey(
    source: str | Path, *, objectives: Sequence[str] | None = None, ruler: Ruler | None = None, track: Track = iter
) -> Survey:
    """Reads preference data and counts what is in it.

    Args:
        source: A file or a folder, as training reads it; ``test`` is looked at as well.
        objectives: Their names in the order of α; by default those of the data, in order of appearance. The labels of
            others are left out.
        ruler: How to measure lengths; without, there are none.
        track: Passes on the rows of a file, for a progress bar.

    Raises:
        DataError: There are no such files, rows cannot be used (all of them are reported together), or an objective is
            not in the data.
        ModelError: The ruler's tokenizer cannot be trained with.
    """
    source = Path(source).expanduser()
    if ruler:
        check_eos(ruler.tokenizer)
    problems, splits = Problems(), dict[str, Split]()
    paths = find_files(source)
    reader = DataReader(objectives, problems, paths)
    both: Counter[tuple[str, str]] = Counter()
    differ: Counter[tuple[str, str]] = Counter()
    names = list(objectives or ())
    for path in paths:
        name = stem(path) if source.is_dir() and stem(path) in SPLITS else "train"
        split = splits.setdefault(name, Split(name))
        for pair in track(reader.read(path)):
            if objectives is None and name == "train":
                names += [each for each in pair.preferred if each not in names]
            if name != "test":
                check_objectives(pair, names, problems)
            _count(split, pair, splits["train"], ruler, problems)
            for two in combinations([each for each in names if each in pair.preferred], 2):
                both[two] += 1
                differ[two] += pair.preferred[two[0]] != pair.preferred[two[1]]
    problems.raise_any(source)
    reader.check_found(source)
    disagreement = {two: (both[two], differ[two]) for two in combinations(names, 2) if both[two]}
    formats = {path.name: found or "" for path, found in reader.formats.items()}
    return Survey(tuple(names), formats, tuple(splits.values()), disagreement, ruler.limit if ruler else None)


def _count(split: Split, pair: Pair, train: Split, ruler: Ruler | None, problems: Problems) -> None:
    key = pair.prompt_key
    split.rows += 1
    split.labels.update(pair.preferred.keys())
    split.equal += pair.undecidable
    split.prompts.add(key)
    if ruler:
        try:
            split.lengths.append(ruler(pair))
        except RowError as error:
            problems.add(pair.where, error)
            return
    if split.name == "test":
        split.dropped[UNUSED] += 1
    elif not pair.preferred:
        split.dropped[UNLABELLED] += 1
    elif pair.undecidable:
        split.dropped[EQUAL] += 1
    elif split is not train and key in train.prompts:
        split.dropped[SHARED] += 1
    elif ruler and split.lengths[-1] > ruler.limit:
        split.dropped[TOO_LONG] += 1
