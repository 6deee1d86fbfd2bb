"""Prompts × preferences → answers, in continuous batches of mixed α; what is done already is not done again.

An answer depends on (prompt, α, seed): its random numbers are made of the prompt and the seed alone. In a batch a
floating-point sum is rounded as the batch's shape has it, and a rounding can turn a token over. So the work is dealt in
groups that never change: a group's batches have the same members whoever computes them, and one that was interrupted is
computed again whole, and only its missing answers are kept.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from parm_mlx.answers.results import Key, Result
from parm_mlx.errors import InputError, RunError
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import Prompt, Prompter, PromptTokens
from parm_mlx.guidance.requests import Request
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.guidance.templates import Content
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.preference import Alpha

GROUP = 128  # answers


@dataclass(frozen=True)
class Job:
    """An answer to generate."""

    prompt: Prompt
    alpha: Alpha | None
    seed: int

    @property
    def key(self) -> Key:
        """What the answer is told by."""
        return self.prompt.id, self.alpha, self.seed


def plan(prompts: Sequence[Prompt], alphas: Sequence[Alpha], seeds: Sequence[int]) -> list[list[Job]]:
    """All the work, in groups: first the answers of the base alone, then the guided ones, prompt by prompt."""
    plain = [Job(prompt, None, seed) for prompt, seed in product(prompts, seeds)]
    guided = [Job(prompt, alpha, seed) for prompt, seed, alpha in product(prompts, seeds, alphas)]
    return [jobs[i : i + GROUP] for jobs in (plain, guided) for i in range(0, len(jobs), GROUP)]


def answer_seed(content: Content, seed: int) -> int:
    """The seed of an answer's random numbers: 32 bits of the SHA-256 of prompt and seed."""
    text = json.dumps([seed, content], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class Sweep:
    """Generates answers.

    Args:
        model: The guided model.
        tokenizer: The base's tokenizer.
        prompter: Renders prompts.
        sampling: How tokens are chosen; the seed in it does not count.
        max_tokens: Longest answer.
        batch_size: Most answers that run at the same time.
        system: Messages before every prompt.
        drafting: Who drafts tokens, if anyone.
    """

    def __init__(
        self,
        model: GuidedModel,
        tokenizer: TokenizerWrapper,
        prompter: Prompter,
        sampling: Sampling,
        max_tokens: int,
        batch_size: int = 32,
        system: Sequence[dict[str, str]] = (),
        drafting: Drafting | None = None,
    ) -> None:
        self._model, self._tokenizer, self._prompter = model, tokenizer, prompter
        self._sampling, self._max_tokens, self._batch_size = sampling, max_tokens, batch_size
        self._system, self._drafting = list(system), drafting

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
        for answer in generate_batch(
            self._model,
            self._tokenizer,
            requests,
            self._max_tokens,
            self._batch_size,
            stopped,
            self._drafting,
        ):
            job = group[answer.index]
            if job.key not in done:
                length = len(answer.tokens)
                yield Result(
                    job.prompt.id,
                    job.prompt.content,
                    job.alpha,
                    job.seed,
                    answer.text,
                    length,
                    answer.finish_reason,
                )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Checks that the models can read all prompts.

        Raises:
            InputError: They cannot; the prompt is named.
        """
        for prompt in prompts:
            try:
                self._tokens(prompt)
            except InputError as error:
                where = f"line {prompt.line}" if prompt.line else prompt.id
                raise InputError(f"prompt {where}: {error}", hint=error.hint) from None

    def _request(self, job: Job) -> Request:
        sampling = replace(self._sampling, seed=answer_seed(job.prompt.content, job.seed))
        return Request(self._tokens(job.prompt), job.alpha, sampling)

    def _tokens(self, prompt: Prompt) -> PromptTokens:
        content = prompt.content
        if self._system:
            messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
            content = [*self._system, *messages]
        return self._prompter(content)
