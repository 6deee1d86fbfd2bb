"""Answers: prompts under different preferences in one continuous batch, or one after the other."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import RunError
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import PrefixCaches, prefill, read
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import NOT_FINITE, Request, Sampling
from parm_mlx.guidance.shard import STOPPED
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation
from parm_mlx.kernels import widened
from parm_mlx.mlxlm import (
    AgreedBatchGenerator,
    BatchGenerator,
    TokenizerWrapper,
    can_batch,
    generate_step,
    make_prompt_cache,
    wired_limit,
)
from parm_mlx.preference import Alpha

BROKEN = "broken"  # the finish reason of an answer whose logits are not finite; it leaves this module as an error
_THOUGHT = "thought"  # the finish reason where a thought is over, or was none
JOIN = 8  # answers that join a running batch together: reading prompts and joining caches is cheaper for several


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        index: Index of its request.
        text: The answer, without what was thought before it.
        tokens: Token ids of thought and answer, without the end-of-sequence token.
        finish_reason: ``"stop"`` at the end of the sequence, ``"length"`` at the limit.
        drafts: How drafted tokens fared; None where none were drafted.
        reasoning: What was thought before the answer, with its marks.
    """

    index: int
    text: str
    tokens: list[int]
    finish_reason: str
    drafts: DraftCount | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, or of the thought before it.

    The last one has the finish reason, ``"stop"`` or ``"length"``.
    """

    text: str
    finish_reason: str | None
    is_thought: bool = False


def pieces(
    tokens: Iterator[int], tokenizer: TokenizerWrapper, max_tokens: int, prompt: PromptTokens
) -> Iterator[Piece]:
    """Decodes the tokens after a prompt as they come, up to an end-of-sequence token or ``max_tokens``."""
    detokenizer, marks = tokenizer.detokenizer, prompt.thinking
    reason, thinks, read = "length", marks is not None, list[int]()
    for token in tokens:
        if token in tokenizer.eos_token_ids:
            reason = "stop"
            break
        read.append(token)
        detokenizer.add_token(token)
        if thinks and marks is not None and not marks.lasts(prompt.opened, read):
            thinks = False
            if marks.split(prompt.opened, read)[0]:
                detokenizer.finalize()
                yield Piece(detokenizer.last_segment, None, True)
                detokenizer = tokenizer.detokenizer
        if len(read) == max_tokens:
            break
        yield Piece(detokenizer.last_segment, None, thinks)
    detokenizer.finalize()
    yield Piece(detokenizer.last_segment, reason, thinks)


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
        requests: Guided and unguided ones run in a batch each.
        max_tokens: Most tokens of an answer.
        batch_size: Most answers that run, and most of their prompt caches that live, at the same time.
        stopped: Asked at every token; when it returns True, the unfinished answers are dropped.
        drafting: The drafter for guided answers, optional.

    Raises:
        RunError: The logits of an answer are not finite; raised when all other answers are done.
    """
    asked = dict(enumerate(requests))
    broken: list[Answer] = []

    def run(asked: Mapping[int, Request], thinking: bool = False) -> Iterator[Answer]:
        if not asked:
            return
        guided = any(request.alpha is not None for request in asked.values())
        together = not (drafting and guided) and can_batch(make_prompt_cache(model if guided else model.base))
        if model.shard is not None:  # processes with different parts of the models do the same
            together = all(model.shard.union(together))
        if not together:
            answers = _one_by_one(model, tokenizer, asked, max_tokens, stopped, drafting, thinking)
        else:
            answers = _together(model, tokenizer, asked, max_tokens, batch_size, stopped, thinking)
        for answer in answers:
            if answer.finish_reason == BROKEN:
                broken.append(answer)
            else:
                yield answer

    for answer in run({i: request.of_thought() for i, request in asked.items() if request.thinks_alone}, True):
        if answer.finish_reason == _THOUGHT and len(answer.tokens) == max_tokens:
            del asked[answer.index]
            yield replace(answer, finish_reason="length")
        elif answer.finish_reason == _THOUGHT:
            asked[answer.index] = asked[answer.index].after(answer.tokens)
        else:
            del asked[answer.index]
            yield answer
    for answer in broken:
        del asked[answer.index]
    first = bool(requests) and requests[0].alpha is not None  # what is asked for first is answered first
    for guided in (first, not first):
        yield from run({i: request for i, request in asked.items() if (request.alpha is not None) == guided})
    if broken:
        request = requests[broken[0].index]
        raise not_finite(model, request.prompt, request.alpha, broken[0].tokens, len(broken) - 1)


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


def batch_generator(model: GuidedModel, guided: bool = True, **settings: Any) -> BatchGenerator:
    """Makes mlx-lm's generator of a batch of guided answers, or of the base's; ``settings`` are the generator's."""
    runs: Any = model if guided else model.base_logits
    if model.shard is None:
        return BatchGenerator(runs, **settings)
    return AgreedBatchGenerator(runs, model.shard.agree, **settings)


def sampling_of(model: GuidedModel, request: Request) -> Sampling:
    """How the tokens of an answer are chosen."""
    if request.alpha is None:
        return request.sampling
    return request.sampling.guided(model.sharpness(request.alpha, request.beta))


def _together(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Mapping[int, Request],
    max_tokens: int,
    batch_size: int,
    stopped: Callable[[], bool],
    thinking: bool,
) -> Iterator[Answer]:
    """Answers requests, all guided or none, in one batch; or, ``thinking``, up to the end of what they think."""
    at_once = min(JOIN, batch_size)
    waiting, running = deque(requests), dict[int, tuple[int, list[int]]]()
    prefix_caches = PrefixCaches(model, list(requests.values()))
    generator = batch_generator(
        model,
        guided=requests[waiting[0]].alpha is not None,
        max_tokens=max_tokens,
        stop_tokens=[[token] for token in tokenizer.eos_token_ids],
        completion_batch_size=batch_size,
        prefill_batch_size=at_once,
    )
    try:
        while (waiting or running) and not stopped():
            while waiting and len(running) + at_once <= batch_size:
                indices = [waiting.popleft() for _ in range(min(at_once, len(waiting)))]
                joining = [requests[index] for index in indices]
                prompts, caches = zip(*prefix_caches(joining), strict=True)
                samplers = [sampling_of(model, request).sampler(request.seed_offset) for request in joining]
                room = [each.prompt.room(model.context_length, max_tokens - len(each.thought)) for each in joining]
                uids = generator.insert(list(prompts), max_tokens=room, caches=list(caches), samplers=samplers)
                running.update((uid, (index, [])) for uid, index in zip(uids, indices, strict=True))
            for response in generator.next_generated():
                index, tokens = running[response.uid]
                reason = response.finish_reason
                if response.token == STOPPED:
                    note_stop(model)
                    return
                if response.token == NOT_FINITE:
                    if reason is None:
                        generator.remove([response.uid])
                    reason = BROKEN
                if reason in (None, "length"):
                    tokens.append(response.token)
                if thinking and reason != BROKEN and thought_is_over(requests[index], tokens, reason == "stop"):
                    if reason is None:
                        generator.remove([response.uid])
                    reason = _THOUGHT
                if reason is not None:
                    del running[response.uid]
                    yield _answer(tokenizer, index, requests[index], tokens, reason)
    finally:
        generator.close()


def _one_by_one(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    requests: Mapping[int, Request],
    max_tokens: int,
    stopped: Callable[[], bool],
    drafting: Drafting | None,
    thinking: bool,
) -> Iterator[Answer]:
    """As :func:`_together`, but each by itself, up to the one that is stopped."""
    for index, request in requests.items():
        produced, drafts = _tokens(model, request, drafting)
        tokens: list[int] = []
        reason = None
        room = request.prompt.room(model.context_length, max_tokens - len(request.thought))
        for token in islice(produced, room):
            if token == STOPPED:
                note_stop(model)
            if token == STOPPED or stopped():
                return
            if token == NOT_FINITE or token in tokenizer.eos_token_ids:
                reason = BROKEN if token == NOT_FINITE else "stop"
            else:
                tokens.append(token)
            if thinking and reason != BROKEN and thought_is_over(request, tokens, reason == "stop"):
                reason = _THOUGHT
            if reason is not None:
                break
        yield _answer(tokenizer, index, request, tokens, reason or "length", drafts)


def note_stop(model: GuidedModel) -> None:
    """Notes that rank 0 was asked to stop, as ``STOPPED`` has told in place of a token."""
    if model.shard is not None:
        model.shard.stopped = True


def thought_is_over(request: Request, tokens: Sequence[int], stopped: bool) -> bool:
    """Returns True if the guided answer is to follow what the base has written so far, ``stopped`` at its end."""
    thinking, opened = request.prompt.thinking, request.prompt.opened
    assert thinking is not None
    if stopped:  # an answer ends at once, before a thought begins
        return not opened and len(tokens) < len(thinking.start)
    return not thinking.lasts(opened, tokens)


def _answer(
    tokenizer: TokenizerWrapper,
    index: int,
    request: Request,
    tokens: list[int],
    reason: str,
    drafts: DraftCount | None = None,
) -> Answer:
    prompt = request.prompt
    thought, answer = [*request.thought], tokens
    if prompt.thinking is not None and not thought:
        thought, answer = prompt.thinking.split(prompt.opened, tokens)
    if reason == _THOUGHT:  # what else the base has written does not count
        answer = []
    reasoning = tokenizer.decode(thought) if thought else ""
    text = tokenizer.decode(answer)
    return Answer(index, text.lstrip() if thought else text, [*thought, *answer], reason, drafts, reasoning)


def stream(
    model: GuidedModel,
    tokenizer: TokenizerWrapper,
    request: Request,
    max_tokens: int,
    drafting: Drafting | None = None,
    count: DraftCount | None = None,
) -> Iterator[Piece]:
    """Generates the answer to one request, piece by piece; ``count`` is told how drafted tokens fared.

    Raises:
        RunError: The logits are not finite.
    """
    read: list[int] = []
    drafted = []
    marks = request.prompt.thinking

    def produced() -> Iterator[int]:
        if marks is not None and request.thinks_alone:
            yield from marks.think(_plain_tokens(model, request.of_thought()), request.prompt.opened)
        tokens, drafts = _tokens(model, request.after(read), drafting)
        drafted.append(drafts)
        yield from tokens

    def checked() -> Iterator[int]:
        for token in produced():
            if token == STOPPED:
                note_stop(model)
                return
            if token == NOT_FINITE:
                raise not_finite(model, request.prompt, request.alpha, read)
            read.append(token)
            yield token

    room = request.prompt.room(model.context_length, max_tokens)
    yield from pieces(checked(), tokenizer, room, request.prompt)
    for drafts in drafted:
        if count is not None and drafts is not None:
            count.add(drafts)


def _tokens(model: GuidedModel, request: Request, drafting: Drafting | None) -> tuple[Iterator[int], DraftCount | None]:
    """The tokens of an answer, without end, and how drafted ones fare; None where none are drafted."""
    if request.alpha is None or drafting is None:
        return _plain_tokens(model, request), None
    prompt, draft = request.prompt, drafting.make_cache()
    cache = model.make_cache(request.alpha, model.strength(request.beta))
    last = prefill(model, cache, prompt.base, prompt.guide)
    drafting.prefill(draft, prompt.base)
    speculation = Speculation(model, cache, last, drafting, sampling_of(model, request), request.seed_offset, draft)
    return iter(speculation), speculation.count


def _plain_tokens(model: GuidedModel, request: Request) -> Iterator[int]:
    ((tokens, cache),) = PrefixCaches(model, [request])([request])
    sampler = model.agreed(sampling_of(model, request).sampler(request.seed_offset))
    runs: Any = model.base_logits if request.alpha is None else model
    with wired_limit(model):
        for token, _ in generate_step(mx.array(tokens), runs, max_tokens=-1, sampler=sampler, prompt_cache=cache):
            yield int(token)


def not_finite(
    model: GuidedModel, prompt: PromptTokens, alpha: Alpha | None, tokens: Sequence[int], others: int = 0
) -> RunError:
    """The error of an answer that cannot go on after ``tokens``, as ``others`` cannot.

    It reads the answer once more, to tell whose logits are not finite.
    """
    names = []
    if _is_broken(model.base, make_prompt_cache(model.base), [*prompt.base, *tokens]):
        names.append("the base")
    if alpha is not None and _is_broken(model.guide, model.guide.make_cache(alpha), prompt.after(tokens).guide):
        names.append("the guide")
    whose = " and ".join(names) or "base and guide together"
    more = f" (and {others} more)" if others else ""
    return RunError(
        f"the logits of {whose} are not finite: an answer ended after {len(tokens)} tokens{more}",
        hint="the weights may be damaged, or their 16-bit type too narrow: try the model in float32",
    )


def _is_broken(model: nn.Module, cache: Cache, tokens: Sequence[int]) -> bool:
    read(model, tokens[:-1], cache)
    logits = widened(model(mx.array([tokens[-1:]]), cache=cache))
    return not mx.isfinite(mx.logsumexp(logits)).item()
