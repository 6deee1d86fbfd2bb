"""Labels by reward models: both responses of every pair are scored; a reward prefers the one it scores higher."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from parm_mlx.data.dataset import Disagreement, Progress, count_labels, disagreement, merge, no_progress, read_dataset
from parm_mlx.data.formats import as_row
from parm_mlx.data.pairs import Pair, Problems
from parm_mlx.data.sources import find_files
from parm_mlx.errors import ConfigError, DataError, OutputError
from parm_mlx.files import disk_errors
from parm_mlx.outputs import check_new_file, new_file
from parm_mlx.preference import parse_objectives
from parm_mlx.rewards.registry import Scorer

CHUNK = 64


@dataclass(frozen=True)
class Relabelled:
    """Counts of relabelled and dropped pairs of a source; ``labels`` and ties are counted for each objective."""

    rows: int
    equal: int  # rows whose responses are equal
    repeated: int  # rows of the same pair as an earlier one
    written: int
    dropped: int  # pairs that no reward has labelled
    labels: dict[str, int]
    ties: dict[str, int]  # pairs whose responses are scored alike
    near_ties: dict[str, int]  # pairs below the smallest margin
    disagreement: Disagreement
    bad: Problems


def relabel(
    source: str | Path,
    rewards: Mapping[str, Scorer],
    out: str | Path,
    *,
    min_margin: Mapping[str, float] | None = None,
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> Relabelled:
    """Writes the pairs of a source with labels and margins by rewards, as JSON lines, whole or not at all.

    The labels of the source are not used, and its splits are put together. The margin is by how much the preferred
    response is ahead. An objective does not label a pair whose responses it scores alike, or nearly so; a pair without
    any label is dropped.

    Args:
        source: A file, a folder or a data set on the hub, as training reads it.
        rewards: What scores the responses, higher is better, by the name of its objective.
        out: The file to write, ``.jsonl``.
        min_margin: For some objectives the smallest margin that is a label.
        skip_bad: Leave out rows that cannot be used rather than refusing the data.
        progress: Shows how many rows are read, and how many pairs are scored.

    Raises:
        DataError: There are no such data, rows cannot be used, or no pair gets a label.
        OutputError: ``out`` exists, which is never replaced, or cannot be written.
        PreferenceError: A name cannot be that of an objective.
        RunError: A reward fails, the disk is full or failed, or the hub cannot be reached.
    """
    path, names = check_output(out), parse_objectives(list(rewards))
    # rows of chosen and rejected need not say what they judge
    files = [replace(file, split="train", objective=file.objective or "unnamed") for file in find_files(source)]
    data = read_dataset(source, files, skip_bad=skip_bad, progress=progress)
    merged = merge(data.splits["train"], ())
    pairs = progress(merged.different, len(merged.different), "pairs scored")
    rows, labelled = len(data.splits["train"]), list[Pair]()
    ties, near_ties = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for pair, leads in _scored(pairs, rewards):
        labels = {name: lead for name, lead in leads.items() if lead and abs(lead) >= (min_margin or {}).get(name, 0)}
        for name in leads.keys() - labels.keys():
            (near_ties if leads[name] else ties)[name] += 1
        if labels:
            preferred = {name: int(lead < 0) for name, lead in labels.items()}
            margins = {name: abs(lead) for name, lead in labels.items()}
            labelled.append(replace(pair, preferred=preferred, margins=margins))
    dropped = len(merged.different) - len(labelled)
    if not labelled:
        raise DataError(
            f"data {source}: no pair gets a label: of {rows} rows {merged.counts.equal} have equal responses, "
            f"{dropped} are ties or below the smallest margin"
        )
    with new_file(path) as partial, disk_errors(path), partial.open("w", encoding="utf-8") as file:
        file.writelines(map(as_row, labelled))
    return Relabelled(
        rows=rows,
        equal=merged.counts.equal,
        repeated=merged.counts.merged,
        written=len(labelled),
        dropped=dropped,
        labels=count_labels(labelled, names),
        ties=ties,
        near_ties=near_ties,
        disagreement=disagreement(labelled, names),
        bad=data.problems,
    )


def parse_min_margins(specs: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Reads the smallest margins that are labels: ``"0.5"`` for all objectives, ``"helpful=0.5"`` for one.

    Raises:
        ConfigError: A margin is not a finite number ≥ 0 or given twice, or an objective is unknown.
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
    """Raises OutputError where the file may not be written, or its name does not end with ``.jsonl``."""
    path = check_new_file(out)
    if path.suffix != ".jsonl":
        raise OutputError(f"{path}: the name of the file must end with .jsonl")
    return path


def _scored(pairs: Iterable[Pair], rewards: Mapping[str, Scorer]) -> Iterator[tuple[Pair, dict[str, float]]]:
    """Yields each pair with the lead of its first response in the score of each reward."""
    left = iter(pairs)
    while chunk := list(islice(left, CHUNK)):
        prompts = [pair.prompt for pair in chunk for _ in pair.responses]
        answers = [response for pair in chunk for response in pair.responses]
        scores = {name: list(reward(prompts, answers)) for name, reward in rewards.items()}
        for i, pair in enumerate(chunk):
            yield pair, {name: values[2 * i] - values[2 * i + 1] for name, values in scores.items()}
