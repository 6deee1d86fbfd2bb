"""Labels by reward models: both responses of every pair are scored; a reward prefers the one it scores higher."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path

from parm_mlx.data.dataset import PairStream
from parm_mlx.data.formats import as_row
from parm_mlx.data.merging import Ledger
from parm_mlx.data.pairs import Pair, Problems
from parm_mlx.data.sources import DataReader, Track, find_parts
from parm_mlx.errors import ConfigError, DataError, OutputError
from parm_mlx.files import disk_errors
from parm_mlx.guidance.templates import Content
from parm_mlx.outputs import check_new_file, new_file
from parm_mlx.preference import parse_objectives

CHUNK = 64
Scorer = Callable[[Sequence[Content], Sequence[str]], Sequence[float]]


@dataclass
class Tally:
    """What became of the pairs of a source.

    Attributes:
        rows: Rows read.
        equal: Rows left out because both responses are equal.
        repeated: Rows left out because an earlier row is of the same pair.
        written: Pairs that some reward has labelled.
        labels: For each objective, the pairs it labelled.
        ties: For each objective, the pairs whose responses it scores alike.
        near_ties: For each objective, the pairs it left unlabelled because of the smallest margin asked for.
        disagreement: For two objectives, the pairs both labelled and those of them they disagree about.
    """

    rows: int = 0
    equal: int = 0
    repeated: int = 0
    written: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    ties: dict[str, int] = field(default_factory=dict)
    near_ties: dict[str, int] = field(default_factory=dict)
    disagreement: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Pairs that no reward has labelled."""
        return self.rows - self.equal - self.repeated - self.written


class Source:
    """The different pairs of a source, every row of which has been read and checked.

    The labels of its rows are not used, and its splits are put together. No text is held.

    Args:
        source: A file, a folder or a data set on the hub, as training reads it.
        track: Passes on the rows of a part, for a progress bar.

    Attributes:
        pairs: The pairs, read anew each time.
        tally: What was read.

    Raises:
        DataError: There are no such data, or rows cannot be used; all of them are reported together.
        RunError: The hub cannot be reached.
    """

    def __init__(self, source: str | Path, track: Track = iter) -> None:
        problems, ledger = Problems(), Ledger()
        # Rows of chosen and rejected need not say what they judge: nothing is made of it.
        parts = [replace(part, split="train", objective=part.objective or "unnamed") for part in find_parts(source)]
        reader = DataReader(parts, None, problems, track=track)
        for _, pair in reader:
            ledger.add(pair)
        problems.raise_any(source)
        merged = ledger.merge(reader.objectives)
        self.source = source
        self.pairs = PairStream(parts, None, reader.objectives, merged, merged.first)
        self.tally = Tally(len(ledger), merged.equal, int(merged.repeated.sum()))


def relabel(
    source: Source,
    rewards: Mapping[str, Scorer],
    out: str | Path,
    *,
    min_margin: Mapping[str, float] | None = None,
    track: Callable[[Iterable[Pair], int], Iterable[Pair]] = lambda pairs, _: pairs,
) -> Tally:
    """Writes the pairs of a source with labels and margins by rewards, as JSON lines, whole or not at all.

    The margin is by how much the preferred response is ahead. An objective does not label a pair whose responses it
    scores alike, or nearly so; a pair without any label is dropped.

    Args:
        source: Where the pairs are.
        rewards: What scores the responses, higher is better, by the name of its objective.
        out: The file to write, ``.jsonl``.
        min_margin: For some objectives the smallest margin that is a label.
        track: Passes on so many pairs, for a progress bar.

    Returns:
        What became of the pairs.

    Raises:
        DataError: No pair gets a label, or the data have changed meanwhile.
        OutputError: ``out`` exists, which is never replaced, or cannot be written.
        PreferenceError: A name cannot be that of an objective.
        RunError: A reward fails, or the disk is full or failed.
    """
    path, names = check_output(out), parse_objectives(list(rewards))
    none = dict.fromkeys(names, 0)
    tally = replace(source.tally, labels=none.copy(), ties=none.copy(), near_ties=none.copy())
    tally.disagreement = dict.fromkeys(combinations(names, 2), (0, 0))
    pairs = track(source.pairs, len(source.pairs))
    with new_file(path) as partial, disk_errors(path), partial.open("w", encoding="utf-8") as file:
        file.writelines(_rows(pairs, rewards, min_margin or {}, tally, source.source))
    return tally


def parse_min_margins(specs: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Reads the smallest margins that are labels.

    Args:
        specs: ``"0.5"`` for all objectives, ``"helpful=0.5"`` for one, which goes before.
        names: The objectives.

    Raises:
        ConfigError: A margin is no finite number ≥ 0 or given twice, or an objective is unknown.
    """
    found: dict[str | None, float] = {}
    for spec in specs:
        given, equals, number = spec.rpartition("=")
        name = given.strip() if equals else None
        if name is not None and name not in names:
            raise ConfigError(f"min-margin {spec}: no reward is called {name!r}; there are {', '.join(names)}")
        if name in found:
            raise ConfigError(f"min-margin {spec}: a margin {f'of {name}' if name else 'for all'} is given already")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] < math.inf:
            raise ConfigError(f"min-margin {spec}: a margin must be a finite number ≥ 0, got {number!r}")
    return {name: found.get(name, found.get(None, 0.0)) for name in names}


def check_output(out: str | Path) -> Path:
    """Checks that the file may be written.

    Raises:
        OutputError: It may not, or its name does not end with ``.jsonl``.
    """
    path = check_new_file(out)
    if path.suffix != ".jsonl":
        raise OutputError(f"{path}: the name of the file must end with .jsonl")
    return path


def _rows(
    pairs: Iterable[Pair],
    rewards: Mapping[str, Scorer],
    min_margin: Mapping[str, float],
    tally: Tally,
    source: str | Path,
) -> Iterator[str]:
    left = iter(pairs)
    while chunk := list(islice(left, CHUNK)):
        prompts = [pair.prompt for pair in chunk for _ in pair.responses]
        answers = [response for pair in chunk for response in pair.responses]
        scores = {name: list(reward(prompts, answers)) for name, reward in rewards.items()}
        for i, pair in enumerate(chunk):
            leads = {name: values[2 * i] - values[2 * i + 1] for name, values in scores.items()}
            labels = {name: lead for name, lead in leads.items() if abs(lead) >= min_margin.get(name, 0) and lead}
            _count(leads, labels, tally)
            if labels:
                preferred = {name: int(lead < 0) for name, lead in labels.items()}
                margins = {name: abs(lead) for name, lead in labels.items()}
                yield as_row(replace(pair, preferred=preferred, margins=margins))
    if not tally.written:
        raise DataError(
            f"data {source}: no pair gets a label: of {tally.rows} rows {tally.equal} have equal responses, "
            f"{tally.dropped} are ties or below the smallest margin"
        )


def _count(leads: Mapping[str, float], labels: Mapping[str, float], tally: Tally) -> None:
    for name, lead in leads.items():
        where = tally.labels if name in labels else tally.near_ties if lead else tally.ties
        where[name] += 1
    for a, b in combinations(labels, 2):
        both, differ = tally.disagreement[a, b]
        tally.disagreement[a, b] = both + 1, differ + ((labels[a] < 0) != (labels[b] < 0))
    tally.written += bool(labels)
