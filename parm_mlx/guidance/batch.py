"""Many answers: prompts under different preferences in one continuous batch, or one after the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generate_step

from parm_mlx.guidance.beginnings import Beginnings
from parm_mlx.guidance.model import GuidedModel
from parm_mlx.guidance.prefill import prefill, read
from parm_mlx.guidance.requests import Answer, Request
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation, Track
from parm_mlx.mlxlm import TokenizerWrapper, can_batch, make_prompt_cache, wired_limit

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
    """
    guided = [i for i, request in enumerate(requests) if request.alpha is not None]
    plain = [i for i, request in enumerate(requests) if request.alpha is None]
    for runs, indices in ((model, guided), (model.base, plain)):
        if (drafting and runs is model) or not can_batch(make_prompt_cache(runs)):
            for index in indices:
                answer = _alone(model, tokenizer, index, requests[index], max_tokens, stopped, drafting)
                if answer is not None:
                    yield answer
        elif indices:
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
                if response.finish_reason != "stop":
                    tokens.append(response.token)
                if response.finish_reason is not None:
                    del running[response.uid]
                    yield Answer(index, tokenizer.decode(tokens), tokens, response.finish_reason)
    finally:
        generator.close()


def _alone(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    index: int,
    request: Request,
    max_tokens: int,
    stopped: Callable[[], bool],
    drafting: Drafting | None,
) -> Answer | None:
    """One answer by itself; None when it was stopped."""
    produced, drafts = _tokens(model, request, drafting)
    tokens: list[int] = []
    for token in islice(produced, max_tokens):
        if stopped():
            return None
        if token in tokenizer.eos_token_ids:
            return Answer(index, tokenizer.decode(tokens), tokens, "stop", drafts)
        tokens.append(token)
    return Answer(index, tokenizer.decode(tokens), tokens, "length", drafts)


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
    runs = model.base if request.alpha is None else model
    tokens, cache = Beginnings(model, [request])(request)
    sampler = request.sampling.sampler(request.number)
    with wired_limit(runs):
        for token, _ in generate_step(mx.array(tokens), runs, max_tokens=-1, sampler=sampler, prompt_cache=cache):
            yield int(token)
