"""From several scored answers to a prompt to pairs of them: which answers, which pairs, which labels."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parm_mlx.data.pairs import Pair
from parm_mlx.guidance.templates import Content
from parm_mlx.rewards.builtin import words

Choice = Literal["best", "conflict", "all"]
CONFLICTS = 3  # pairs of one prompt that ``conflict`` takes
ALIKE = 0.8  # share of the word triples of two texts that near-duplicates have in common
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]*]*(?=\s|$)""")
_ITEM_NUMBER = re.compile(r"(?:^|\n)\s*(?:\d+|[A-Za-z])\.$")  # "2." at the end: an item of a list that has only begun


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer: its text, whether it came to an end, its length in tokens, and its score by each objective."""

    text: str
    ended: bool
    tokens: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Pairing:
    """How pairs are made of the answers to a prompt.

    Attributes:
        choice: ``"best"``: for each objective the pair that it sees furthest apart. ``"conflict"``: the three pairs in
            which objectives disagree, then those furthest apart. ``"all"``: every pair.
        even_length: By how much the longer answer may be longer, as a share of it; 1 is no limit.
        min_margin: The smallest lead of each objective that is a label.
        units: What a lead of each objective is divided by where leads are added up, for instance the standard
            deviation of its scores.
    """

    choice: Choice
    even_length: float
    min_margin: Mapping[str, float]
    units: Mapping[str, float]

    def __call__(self, prompt: Content, answers: Sequence[ScoredAnswer], where: str) -> list[Pair]:
        """Returns the pairs of one prompt, labelled and with margins; none where no two answers fit."""
        candidates = list(self._candidates(prompt, answers, where))
        if self.choice == "all":
            return candidates
        if self.choice == "conflict":
            return sorted(candidates, key=lambda pair: (not _disagree(pair), -self._distance(pair)))[:CONFLICTS]
        furthest = {}
        for name in self.min_margin:
            judged = [pair for pair in candidates if name in pair.margins]
            if judged:
                best = max(judged, key=lambda pair: pair.margins[name])
                furthest[best.key] = best
        return list(furthest.values())

    def _candidates(self, prompt: Content, answers: Sequence[ScoredAnswer], where: str) -> Iterator[Pair]:
        for first, second in combinations(answers, 2):
            shorter, longer = sorted((first.tokens, second.tokens))
            if longer - shorter > self.even_length * longer or alike(first.text, second.text):
                continue
            leads = {name: first.scores[name] - second.scores[name] for name in self.min_margin}
            labels = {name: lead for name, lead in leads.items() if lead and abs(lead) >= self.min_margin[name]}
            if labels:
                preferred = {name: int(lead < 0) for name, lead in labels.items()}
                margins = {name: abs(lead) for name, lead in labels.items()}
                yield Pair(prompt, (first.text, second.text), preferred, where, margins, (first.ended, second.ended))

    def _distance(self, pair: Pair) -> float:
        return sum(margin / self.units[name] for name, margin in pair.margins.items())


def _disagree(pair: Pair) -> bool:
    return len(set(pair.preferred.values())) > 1


def trimmed(text: str) -> str:
    """Returns a text up to its last sentence end; "" where no sentence ends."""
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    while ends and _ITEM_NUMBER.search(text[: ends[-1]]):
        ends.pop()
    return text[: ends[-1]].strip() if ends else ""


def alike(text: str, other: str) -> bool:
    """Returns True for near-duplicates: texts that have four fifths of their word triples in common."""
    return _overlap(_triples(text), _triples(other))


def different(texts: Iterable[str]) -> Iterator[str]:
    """Yields texts without those that are near-duplicates of an earlier one."""
    kept: list[set[tuple[str, ...]]] = []
    for text in texts:
        triples = _triples(text)
        if not any(_overlap(triples, other) for other in kept):
            kept.append(triples)
            yield text


def _overlap(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> bool:
    return len(a & b) >= ALIKE * len(a | b)


def _triples(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    return {tuple(said[i : i + 3]) for i in range(max(len(said) - 2, 1))}


@dataclass(frozen=True)
class Distribution:
    """How the scores of answers are distributed."""

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Distribution":
        """Measures values, of which there is at least one."""
        array = np.array(values, np.float64)
        return cls(float(array.mean()), float(array.std()), float(array.min()), float(array.max()))


def correlations(columns: Mapping[str, Sequence[float]], groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Returns Pearson's correlation of each two columns within groups: of the differences from the group's mean.

    It is 0 where a column does not vary within any group.
    """
    _, index = np.unique(np.array(groups), return_inverse=True)
    counts = np.maximum(np.bincount(index), 1)

    def centred(values: Sequence[float]) -> NDArray[np.float64]:
        array = np.array(values, np.float64)
        return array - (np.bincount(index, array) / counts)[index]

    found = {}
    for (a, x), (b, y) in combinations({name: centred(values) for name, values in columns.items()}.items(), 2):
        size = float(np.sqrt((x @ x) * (y @ y)))
        found[a, b] = float(x @ y) / size if size > 0 else 0.0
    return found
