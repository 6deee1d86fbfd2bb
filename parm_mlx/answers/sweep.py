"""Prompts × preferences → answers and scores, in continuous batches of mixed α; what is there is not computed again.

The random numbers of an answer come from its prompt and seed alone. But sums are rounded differently for each shape of
a batch, and a rounding can change a token. So the work is split into fixed groups: their batches have the same members
in whichever process they run, and a group that was interrupted is computed again whole; only what was missing is kept.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any, TypeVar

from parm_mlx.answers.store import (
    RESULTS_FILE,
    SCORES_FILE,
    Key,
    Result,
    RunFolder,
    Scores,
    parse_results,
    rank_file,
    result_line,
    score_line,
)
from parm_mlx.distributed import Group
from parm_mlx.errors import InputError, RunError
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import Prompt, Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shard import Shard
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.guidance.templates import Content, as_messages
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.preference import Alpha
from parm_mlx.rewards.registry import Scorer

GROUP = 128  # answers
CHUNK = 256  # answers that are scored before their scores are written
T = TypeVar("T")
Progress = Callable[[Iterable[T], int, str], Iterable[T]]  # passes items on; called with their number and a label


def no_progress(items: Iterable[Any], _total: int, _label: str) -> Iterable[Any]:
    """Passes items on and shows nothing."""
    return items


@dataclass(frozen=True)
class Job:
    """An answer to generate."""

    prompt: Prompt
    alpha: Alpha | None
    seed: int

    @property
    def key(self) -> Key:
        """Identifies the answer."""
        return self.prompt.id, self.alpha, self.seed


def plan(prompts: Sequence[Prompt], alphas: Sequence[Alpha], seeds: Sequence[int]) -> list[list[Job]]:
    """Returns all jobs in groups: those of the base alone, then the guided ones, prompt by prompt."""
    plain = [Job(prompt, None, seed) for prompt, seed in product(prompts, seeds)]
    guided = [Job(prompt, alpha, seed) for prompt, seed, alpha in product(prompts, seeds, alphas)]
    return [jobs[i : i + GROUP] for jobs in (plain, guided) for i in range(0, len(jobs), GROUP)]


def answer_seed(content: Content, seed: int) -> int:
    """Returns the seed of an answer's random numbers: 32 bits of the SHA-256 of prompt and seed."""
    text = json.dumps([seed, content], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Sweep:
    """Generates answers.

    Attributes:
        tokenizer: The base's tokenizer.
        sampling: How tokens are chosen; its seed is not used.
        max_tokens: Length of the longest answer.
        batch_size: Number of answers generated at the same time.
        system: Messages before every prompt.
        drafting: Speculative decoding, if any.
    """

    model: GuidedModel
    tokenizer: TokenizerWrapper
    prompter: Prompter
    sampling: Sampling
    max_tokens: int
    batch_size: int = 32
    system: Sequence[dict[str, str]] = ()
    drafting: Drafting | None = None

    def __call__(
        self, groups: Sequence[Sequence[Job]], done: Collection[Key], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Result]:
        """Yields the answers that are not done yet, each as it ends.

        Raises:
            RunError: The logits of an answer are not finite; raised when all other answers are done.
        """
        failure = None
        for group in groups:
            if any(job.key not in done for job in group):
                try:
                    yield from self._answer(group, done, stopped)
                except RunError as error:
                    failure = failure or error
            if stopped():
                break
        if failure:
            raise failure

    def _answer(self, group: Sequence[Job], done: Collection[Key], stopped: Callable[[], bool]) -> Iterator[Result]:
        requests = [self._request(job) for job in group]
        settings = self.max_tokens, self.batch_size, stopped, self.drafting
        for answer in generate_batch(self.model, self.tokenizer, requests, *settings):
            job = group[answer.index]
            if job.key not in done:
                prompt, length = job.prompt, len(answer.tokens)
                yield Result(prompt.id, prompt.content, job.alpha, job.seed, answer.text, length, answer.finish_reason)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises InputError, which names the prompt, if the models cannot read one."""
        for prompt in prompts:
            try:
                self.prompt_tokens(prompt.content)
            except InputError as error:
                where = f"line {prompt.line}" if prompt.line else prompt.id
                raise InputError(f"prompt {where}: {error}", hint=error.hint) from None

    def _request(self, job: Job) -> Request:
        sampling = replace(self.sampling, seed=answer_seed(job.prompt.content, job.seed))
        return Request(self.prompt_tokens(job.prompt.content), job.alpha, sampling)

    def prompt_tokens(self, content: Content) -> PromptTokens:
        """Tokenises a prompt, after the messages that stand before every prompt."""
        if self.system:
            content = [*self.system, *as_messages(content)]
        return self.prompter(content)


def answer_all(
    folder: RunFolder,
    sweep: Sweep,
    groups: Sequence[Sequence[Job]],
    group: Group | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress[Result] = no_progress,
) -> tuple[list[Result], list[Result]]:
    """Generates the answers that are missing in a folder.

    Several processes take groups in turn; those that hold the model together answer all of them together, and the main
    one alone reads and writes. Each appends to a file of its own; the main one, which holds the folder
    (:meth:`RunFolder.locked`), has all answers at the end.

    Args:
        folder: Where the answers are kept.
        sweep: Generates them.
        groups: All jobs, as :func:`plan` groups them.
        group: The processes that share the work.
        stopped: Asked at every token; if it returns True, unfinished answers are dropped.
        progress: Passes on the answers.

    Returns:
        All answers in the order of the jobs, fewer if it was stopped; and those that are new.

    Raises:
        RunError: They cannot be written; what is written stays.
    """
    if (shard := sweep.model.shard) is not None:
        return _answer_together(folder, sweep, groups, shard, shard.watch(stopped), progress)
    return _answer_all(folder, sweep, groups, group or Group(), stopped, progress)


def _answer_all(
    folder: RunFolder,
    sweep: Sweep,
    groups: Sequence[Sequence[Job]],
    group: Group,
    stopped: Callable[[], bool],
    progress: Progress[Result],
) -> tuple[list[Result], list[Result]]:
    with group.agreed():
        done = folder.results()
    order = [job.key for jobs in groups for job in jobs]
    done = _of_all(group, done.values())
    name = RESULTS_FILE if group.main else rank_file(group.rank)
    with group.agreed():
        if group.main:
            folder.write_results(_in_order(done, order))
            for file in folder.rank_files():
                file.unlink()
    unfinished = [jobs for jobs in groups if any(job.key not in done for job in jobs)]
    mine = unfinished[group.rank :: group.size]
    missing = sum(job.key not in done for jobs in mine for job in jobs)
    fresh: list[Result] = []
    with group.agreed(), folder.appending(name) as append:
        for result in progress(sweep(mine, done.keys(), stopped), missing, "answers"):
            append(result_line(result))
            fresh.append(result)
    new = _of_all(group, fresh)
    done |= new
    results = [done[key] for key in order if key in done]
    with group.agreed():
        if group.main:
            folder.write_results(_in_order(done, order))
        else:
            (folder.path / name).unlink(missing_ok=True)
    return results, list(new.values())


def _in_order(done: Mapping[Key, Result], order: Sequence[Key]) -> list[Result]:
    """Answers in the order of the jobs; behind them those that no job asks for now, which were paid for, too."""
    asked = set(order)
    return [done[key] for key in order if key in done] + [each for key, each in done.items() if key not in asked]


def _answer_together(
    folder: RunFolder,
    sweep: Sweep,
    groups: Sequence[Sequence[Job]],
    shard: Shard,
    stopped: Callable[[], bool],
    progress: Progress[Result],
) -> tuple[list[Result], list[Result]]:
    """As :func:`answer_all`, where all processes hold the model together: the main one alone reads and writes.

    The others compute the same answers, and return none.
    """
    done: Collection[Key] = ()
    with shard.group.agreed():
        if shard.main:
            done = folder.results().keys()
    unfinished = shard.decide([any(job.key not in done for job in jobs) for jobs in groups])
    if shard.main:
        return _answer_all(folder, sweep, groups, Group(), stopped, progress)
    for _ in sweep([jobs for jobs, left in zip(groups, unfinished, strict=True) if left], (), stopped):
        pass
    return [], []


def _of_all(group: Group, results: Iterable[Result]) -> dict[Key, Result]:
    contents = group.union("".join(map(result_line, results)).encode())
    return {result.key: result for content in contents for result in parse_results(content)}


def score_all(
    folder: RunFolder, results: Sequence[Result], rewards: Mapping[str, Scorer], progress: Progress[Any] = no_progress
) -> dict[Key, Scores]:
    """Scores the answers that have no score yet, writes the scores of every CHUNK of them, and returns all scores.

    Raises:
        RunError: A reward failed, or scores cannot be written; what is written stays.
    """
    known = folder.scores()
    scores = {r.key: {n: v for n, v in known.get(r.key, {}).items() if n in rewards} for r in results}
    unscored = [result for result in results if len(scores[result.key]) < len(rewards)]
    left = iter(progress(unscored, len(unscored), "scores"))
    with folder.appending(SCORES_FILE) as append:
        while chunk := list(islice(left, CHUNK)):
            for name, reward in rewards.items():
                todo = [result for result in chunk if name not in scores[result.key]]
                values = reward([result.prompt for result in todo], [result.text for result in todo])
                for result, value in zip(todo, values, strict=True):
                    scores[result.key][name] = float(value)
            for result in chunk:
                append(score_line(result.key, scores[result.key]))
    ordered = {key: {name: values[name] for name in rewards} for key, values in scores.items()}
    folder.write_scores(ordered)
    return ordered
