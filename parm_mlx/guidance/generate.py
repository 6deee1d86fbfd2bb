"""Many answers: prompts under different preferences in one continuous batch, or one after the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step

from parm_mlx.errors import RunError
from parm_mlx.guidance.finite import not_finite
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill, read
from parm_mlx.guidance.prefix_caches import Beginnings
from parm_mlx.guidance.requests import Answer, Request
from parm_mlx.guidance.sampling import NOT_FINITE
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation, Track
from parm_mlx.mlxlm import TokenizerWrapper, can_batch, make_prompt_cache, wired_limit

BROKEN = "broken"
"""The finish reason of an answer whose logits are not finite; it leaves this module as an error."""

JOIN = 8  # answers that join a running batch together: reading prompts and joining caches is cheaper for several


def generate_batch(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Sequence[Request],
    max_tokens: int,
    batch_size: int = 32,
    stopped: Callable[[], bool] = lambda: False,
    drafting: Drafting | None = None,
) -> Iterator[Answer]:
    """Generates answers in one continuous batch, and yields each as it ends.

    They come one after the other where tokens are drafted, and where mlx-lm cannot batch the model's prompt cache.

    Args:
        model: The guided model.
        tokenizer: The base's tokenizer.
        requests: What to answer; guided and unguided requests run in a batch each.
        max_tokens: Longest answer.
        batch_size: Most answers that run, and most prompt caches that live, at the same time.
        stopped: Asked at every token; when it returns True, the unfinished answers are dropped.
        drafting: Who drafts tokens for guided answers, if anyone.

    Raises:
        RunError: The logits of an answer are not finite; raised when all other answers are done.
    """
    guided = [i for i, request in enumerate(requests) if request.alpha is not None]
    plain = [i for i, request in enumerate(requests) if request.alpha is None]
    ended: list[Answer] = []
    for alone, runs, indices in ((model, model, guided), (model.base, model.base_logits, plain)):
        if not indices:
            continue
        if (drafting and alone is model) or not can_batch(make_prompt_cache(alone)):
            answers = _one_by_one(model, tokenizer, requests, indices, max_tokens, stopped, drafting)
        else:
            answers = _run(runs, model, tokenizer, requests, indices, max_tokens, batch_size, stopped)
        for answer in answers:
            if answer.finish_reason == BROKEN:
                ended.append(answer)
            else:
                yield answer
    if ended:
        request = requests[ended[0].index]
        raise not_finite(model, request.prompt, request.alpha, ended[0].tokens, len(ended) - 1)


def in_order(answers: Iterable[Answer]) -> Iterator[Answer]:
    """Yields answers in the order of their requests, each as soon as it and all before it are known.

    Raises:
        RunError: What the answers raise, after all that are known.
    """
    waiting: dict[int, Answer] = {}
    following = 0
    try:
        for answer in answers:
            waiting[answer.index] = answer
            while following in waiting:
                yield waiting.pop(following)
                following += 1
    except RunError:
        yield from (waiting[index] for index in sorted(waiting))
        raise


def _run(
    runs: Any,
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Sequence[Request],
    indices: Sequence[int],
    max_tokens: int,
    batch_size: int,
    stopped: Callable[[], bool],
) -> Iterator[Answer]:
    together = min(JOIN, batch_size)
    generator = BatchGenerator(
        runs,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=together,
    )
    begin = Beginnings(model, [requests[index] for index in indices])
    waiting, running = deque(indices), dict[int, tuple[int, list[int]]]()

    def join() -> None:
        joining = [waiting.popleft() for _ in range(min(together, len(waiting)))]
        prompts, caches = zip(*(begin(requests[index]) for index in joining), strict=True)
        samplers = [requests[index].sampling.sampler(requests[index].number) for index in joining]
        uids = generator.insert(list(prompts), caches=list(caches), samplers=samplers)
        running.update((uid, (index, [])) for uid, index in zip(uids, joining, strict=True))

    try:
        while (waiting or running) and not stopped():
            while waiting and len(running) + together <= batch_size:
                join()
            for response in generator.next_generated():
                index, tokens = running[response.uid]
                reason = _reason(response, generator)
                if reason in (None, "length"):
                    tokens.append(response.token)
                if reason is not None:
                    del running[response.uid]
                    yield Answer(index, tokenizer.decode(tokens), tokens, reason)
    finally:
        generator.close()


def _reason(response: Any, generator: BatchGenerator) -> str | None:
    """Why a sequence of the generator ended, None where it goes on. One that cannot go on leaves the batch here."""
    if response.token != NOT_FINITE:
        reason: str | None = response.finish_reason
        return reason
    if response.finish_reason is None:
        generator.remove([response.uid])
    return BROKEN


def _one_by_one(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Sequence[Request],
    indices: Sequence[int],
    max_tokens: int,
    stopped: Callable[[], bool],
    drafting: Drafting | None,
) -> Iterator[Answer]:
    """Answers, each by itself, up to the one that is stopped."""
    for index in indices:
        produced, drafts = _tokens(model, requests[index], drafting)
        tokens: list[int] = []
        reason = "length"
        for token in islice(produced, max_tokens):
            if stopped():
                return
            if token == NOT_FINITE or token in tokenizer.eos_token_ids:
                reason = BROKEN if token == NOT_FINITE else "stop"
                break
            tokens.append(token)
        yield Answer(index, tokenizer.decode(tokens), tokens, reason, drafts)


def _tokens(model: GuidedModel, request: Request, drafting: Drafting | None) -> tuple[Iterator[int], DraftCount | None]:
    prompt, sampling = request.prompt, request.sampling
    if request.alpha is None or drafting is None:
        return _plain_tokens(model, request), None
    cache = model.make_cache(request.alpha)
    last = prefill(model, cache, prompt.base, prompt.guide)
    draft = None
    if drafting.model is not None:
        draft = Track(make_prompt_cache(drafting.model))
        read(drafting.model, drafting.readable(prompt.base[:-1]), draft.cache)
    speculation = Speculation(model, cache, last, drafting, sampling, request.number, draft)
    return iter(speculation), speculation.count


def _plain_tokens(model: GuidedModel, request: Request) -> Iterator[int]:
    runs: Any = model.base_logits if request.alpha is None else model
    tokens, cache = Beginnings(model, [request])(request)
    sampler = request.sampling.sampler(request.number)
    with wired_limit(model):
        for token, _ in generate_step(mx.array(tokens), runs, max_tokens=-1, sampler=sampler, prompt_cache=cache):
            yield int(token)
