"""Many answers at once: prompts under different preferences in one continuous batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator

from parm_mlx.guidance.model import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.mlxlm import TokenizerWrapper, make_prompt_cache
from parm_mlx.preference import Alpha


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt: Its tokens for base and guide.
        alpha: The preference; None asks the base alone.
        sampling: How its tokens are chosen.
        number: Tells answers with the same seed apart.
    """

    prompt: PromptTokens
    alpha: Alpha | None
    sampling: Sampling
    number: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        index: Position of its request.
        text: The answer.
        tokens: Its token ids, without the end-of-sequence token.
        finish_reason: ``"stop"`` at the end of the sequence, ``"length"`` at the limit.
    """

    index: int
    text: str
    tokens: list[int]
    finish_reason: str


def generate_batch(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Sequence[Request],
    max_tokens: int,
    batch_size: int = 32,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Answer]:
    """Generates answers in one continuous batch, and yields each as it ends.

    Args:
        model: The guided model.
        tokenizer: The base's tokenizer.
        requests: What to answer; guided and unguided requests run in a batch each.
        max_tokens: Longest answer.
        batch_size: Most answers that run at the same time.
        stopped: Asked at every token; when it returns True, the unfinished answers are dropped.
    """
    guided = [i for i, request in enumerate(requests) if request.alpha is not None]
    plain = [i for i, request in enumerate(requests) if request.alpha is None]
    for runs, indices in ((model, guided), (model.base, plain)):
        if indices:
            yield from _run(runs, model, tokenizer, requests, indices, max_tokens, batch_size, stopped)


def in_order(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yields answers in the order of their requests, each as soon as it and all before it are known."""
    waiting: dict[int, Answer] = {}
    following = 0
    for answer in answers:
        waiting[answer.index] = answer
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _run(
    runs: nn.Module,
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Sequence[Request],
    indices: Sequence[int],
    max_tokens: int,
    batch_size: int,
    stopped: Callable[[], bool],
) -> Iterator[Answer]:
    generator = BatchGenerator(
        runs,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=min(8, batch_size),
    )
    prompts, caches = [], []
    samplers: list[Callable[[mx.array], mx.array]] = []
    for index in indices:
        request = requests[index]
        prompt, cache = _start(model, request)
        prompts.append(prompt)
        caches.append(cache)
        samplers.append(request.sampling.sampler(request.number))
    uids = generator.insert(prompts, caches=caches, samplers=samplers)
    running: dict[int, tuple[int, list[int]]] = {uid: (i, []) for uid, i in zip(uids, indices, strict=True)}
    try:
        while running and not stopped():
            for response in generator.next_generated():
                index, tokens = running[response.uid]
                if response.finish_reason != "stop":
                    tokens.append(response.token)
                if response.finish_reason is not None:
                    del running[response.uid]
                    yield Answer(index, tokenizer.decode(tokens), tokens, response.finish_reason)
    finally:
        generator.close()


def _start(model: GuidedModel, request: Request) -> tuple[list[int], list[Any]]:
    """The tokens still to be read, and the cache to read them into."""
    prompt = request.prompt
    if request.alpha is None:
        return prompt.base, make_prompt_cache(model.base)
    cache = model.make_cache(request.alpha)
    if prompt.base == prompt.guide:
        return prompt.base, cache
    return [prefill(model, cache, prompt.base, prompt.guide)], cache
