"""A run: the answers of a sweep and their scores, kept in its folder as they come."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from parm_mlx.answers.results import (
    RESULTS_FILE,
    SCORES_FILE,
    Key,
    Result,
    RunFolder,
    Scores,
    parse_results,
    part_file,
    result_line,
    score_line,
)
from parm_mlx.answers.sweep import Job, Sweep
from parm_mlx.distributed import Group
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.guides import Guides
from parm_mlx.guidance.templates import Content
from parm_mlx.pblora.adapter import adapter_tensors

T = TypeVar("T")
Watch = Callable[[Iterable[T], int, str], Iterable[T]]
Scorer = Callable[[Sequence[Content], Sequence[str]], Sequence[float]]

CHUNK = 256  # answers that are scored before their scores are written


def _unwatched(items: Iterable[Any], _total: int, _label: str) -> Iterable[Any]:
    return items


def answer_all(
    folder: RunFolder,
    sweep: Sweep,
    groups: Sequence[Sequence[Job]],
    group: Group | None = None,
    stopped: Callable[[], bool] = lambda: False,
    watch: Watch[Result] = _unwatched,
) -> tuple[list[Result], list[Result]]:
    """Generates the answers that are missing in the folder.

    Several processes take groups in turn. Each appends to a file of its own; the main one, which holds the folder
    (:meth:`RunFolder.locked`), has all answers at the end.

    Args:
        folder: Where the answers are kept.
        sweep: Generates them.
        groups: All the work, as :func:`parm_mlx.answers.sweep.plan` deals it.
        group: The processes that share the work.
        stopped: Asked at every token; when it returns True, the answers in work are dropped.
        watch: Passes answers on and shows progress; called with their number and a label.

    Returns:
        All answers in the order of the work (fewer where it was stopped), and those that are new.

    Raises:
        RunError: They cannot be written; what is written stays.
    """
    group = group or Group()
    with group.agreed():
        done = folder.results()
    order = [job.key for jobs in groups for job in jobs]
    done = _of_all(group, done.values())
    name = RESULTS_FILE if group.main else part_file(group.rank)
    with group.agreed():
        if group.main:
            folder.write_results(done[key] for key in order if key in done)
            for part in folder.parts():
                part.unlink()
    open_groups = [jobs for jobs in groups if any(job.key not in done for job in jobs)]
    mine = open_groups[group.rank :: group.size]
    missing = sum(job.key not in done for jobs in mine for job in jobs)
    fresh: list[Result] = []
    with group.agreed(), folder.appending(name) as append:
        for result in watch(sweep(mine, done.keys(), stopped), missing, "answers"):
            append(result_line(result))
            fresh.append(result)
    new = _of_all(group, fresh)
    done |= new
    results = [done[key] for key in order if key in done]
    with group.agreed():
        if group.main:
            folder.write_results(results)
        else:
            (folder.path / name).unlink(missing_ok=True)
    return results, list(new.values())


def score_all(
    folder: RunFolder, results: Sequence[Result], rewards: Mapping[str, Scorer], watch: Watch[Result] = _unwatched
) -> dict[Key, Scores]:
    """Scores the answers that have no score yet; every few hundred are written before the next.

    Args:
        folder: Where the scores are kept.
        results: All answers of the run.
        rewards: By name, from prompts and answers to scores.
        watch: Passes answers on and shows progress.

    Returns:
        The scores of all answers.

    Raises:
        RunError: A reward failed, or scores cannot be written; what is written stays.
    """
    known = folder.scores()
    scores = {r.key: {n: v for n, v in known.get(r.key, {}).items() if n in rewards} for r in results}
    pending = [result for result in results if len(scores[result.key]) < len(rewards)]
    with folder.appending(SCORES_FILE) as append:
        for chunk in _chunks(watch(pending, len(pending), "scores")):
            for name, reward in rewards.items():
                unscored = [result for result in chunk if name not in scores[result.key]]
                values = reward([result.prompt for result in unscored], [result.text for result in unscored])
                for result, value in zip(unscored, values, strict=True):
                    scores[result.key][name] = float(value)
            for result in chunk:
                append(score_line(result.key, scores[result.key]))
    ordered = {key: {name: values[name] for name in rewards} for key, values in scores.items()}
    folder.write_scores(ordered)
    return ordered


def _chunks(results: Iterable[Result]) -> Iterator[list[Result]]:
    chunk: list[Result] = []
    for result in results:
        chunk.append(result)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _of_all(group: Group, results: Iterable[Result]) -> dict[Key, Result]:
    """The answers of all processes."""
    if group.size == 1:
        return {result.key: result for result in results}
    found: dict[Key, Result] = {}
    for content in group.union("".join(map(result_line, results)).encode()):
        found |= parse_results(content)
    return found


def model_digest(model: GuidedModel) -> str:
    """16 hexadecimal digits of the SHA-256 of the adapters that guide: a model trained anew is another one."""
    digest = hashlib.sha256()
    for guide in model.guide.guides if isinstance(model.guide, Guides) else [model.guide]:
        for name, tensor in sorted(adapter_tensors(guide.model).items()):
            digest.update(name.encode() + np.array(tensor.astype(mx.float32)).tobytes())
    return digest.hexdigest()[:16]
