"""Why a guided answer says what it says: what base and guide each gave every token (Eq. 13, term by term)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx

from parm_mlx.errors import InputError
from parm_mlx.guidance.apart import ApartModel
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens, read
from parm_mlx.guidance.sampling import Request
from parm_mlx.kernels.combine import combine_logits, over_common_tokens
from parm_mlx.mlxlm import TokenizerWrapper, make_prompt_cache

READ = 512  # tokens of the prompt that are read at a time
STEP = 32  # tokens whose logits live at the same time
TOP = 5

Likeliest = list[tuple[int, float]]  # tokens and their log-probabilities, the likeliest first


@dataclass(frozen=True)
class TokenReasons:
    """A token of a guided answer.

    Attributes:
        token: Its id.
        logprob: log π̃, before temperature and filters.
        top: The likeliest tokens of π̃.
        base: log π_base; None, as the others below, where one pass stands for both and they were not asked for.
        base_top: What the base alone would have said.
        guide: log π_θ(α).
        guide_top: What the guide prefers.
    """

    token: int
    logprob: float
    top: Likeliest
    base: float | None = None
    base_top: Likeliest | None = None
    guide: float | None = None
    guide_top: Likeliest | None = None


def explain(model: GuidedModel, request: Request, tokens: Sequence[int], parts: bool = False) -> list[TokenReasons]:
    """Reads an answer once more and tells, for each of its tokens, what base and guide gave it.

    Args:
        model: The guided model.
        request: The request that was answered; a thought that comes before ``tokens`` ends its prompt.
        tokens: The answer.
        parts: Of a model that reads once, also tell what base and guide give, which takes a pass of each.

    Raises:
        InputError: The request asks the base alone.
    """
    return [reasons for piece in explaining(model, request, tokens, parts) for reasons in piece]


def explaining(
    model: GuidedModel,
    request: Request,
    tokens: Sequence[int],
    parts: bool = False,
    kept: tuple[CachedTokens | None, CachedTokens | None] = (None, None),
) -> Iterator[list[TokenReasons]]:
    """As :func:`explain`, piece by piece, for whoever has other work between: an empty one for each that is read only.

    ``kept`` is what base and guide, or the model that reads once, have read of the prompts but for the last token.
    """
    if request.alpha is None:
        raise InputError("the base answers alone: no guide has moved its answer")
    if isinstance(model, ApartModel):
        raise InputError("base and guide are apart: what each gave a token is not told", hint="--shard tensor tells it")
    readers = _readers(model, request, parts, kept)
    for reader in readers:
        for start in range(len(reader.cached.tokens), len(reader.prompt) - 1, READ):
            read(reader.model, reader.prompt[start : min(start + READ, len(reader.prompt) - 1)], reader.cached.cache)
            yield []
    for start in range(0, len(tokens), STEP):
        yield list(_explained(model, request, tokens, start, readers))


class _Reader(NamedTuple):
    """A network that reads the answer: the model that reads once, then the base and the guide, as far as needed."""

    model: Any
    prompt: Sequence[int]
    cached: CachedTokens


def _readers(
    model: GuidedModel, request: Request, parts: bool, kept: tuple[CachedTokens | None, CachedTokens | None]
) -> list[_Reader]:
    prompt, (base, guide), once = request.prompt, kept, []
    if model.reads_once:
        own = guide or CachedTokens(model.make_cache(request.alpha, model.strength(request.beta)))
        once, base, guide = [_Reader(model, prompt.base, own)], None, None
        if not parts:
            return once
    base = base or CachedTokens(make_prompt_cache(model.base))
    strength = model.strength(request.beta)
    guide = guide or CachedTokens(model.guide.make_cache(request.alpha, strength))
    return [*once, _Reader(model.base, prompt.base, base), _Reader(model.guide, prompt.guide, guide)]


def _explained(
    model: GuidedModel, request: Request, tokens: Sequence[int], start: int, readers: Sequence[_Reader]
) -> Iterator[TokenReasons]:
    end, prompt = min(start + STEP, len(tokens)), request.prompt
    logits: list[mx.array] = []
    for reader in readers:
        if reader.model is model.guide:
            symbols = mx.array([[*reader.prompt[-1:], *prompt.for_guide(tokens)][start:end]])
            logits.append(model.guide_logits(symbols, logits[-1][None], reader.cached.cache)[0])
        else:
            inputs = mx.array([[*reader.prompt[-1:], *tokens][start:end]])
            logits.append(reader.model(inputs, cache=reader.cached.cache)[0])
    said = mx.array(list(tokens[start:end]))[:, None]
    parts = over_common_tokens(*logits)
    if not model.reads_once:
        parts = [combine_logits(logits[0], logits[1], model.strength(request.beta)), *parts]
    guided, *others = (_column(each, said) for each in parts)
    for i, token in enumerate(tokens[start:end]):
        reasons = TokenReasons(token, *guided[i])
        if others:
            (base, base_top), (guide, guide_top) = (column[i] for column in others)
            reasons = replace(reasons, base=base, base_top=base_top, guide=guide, guide_top=guide_top)
        yield reasons


def _column(logits: mx.array, said: mx.array) -> list[tuple[float, Likeliest]]:
    """What a distribution gave each token that was said, (n, 1), and its likeliest ones; logits are (n, V)."""
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    vocabulary = logprobs.shape[-1]
    likeliest = mx.argpartition(-logprobs, min(TOP, vocabulary - 1), axis=-1)[:, :TOP]
    own: Any = mx.take_along_axis(logprobs, said, axis=-1)[:, 0].tolist()
    ids: Any = likeliest.tolist()
    values: Any = mx.take_along_axis(logprobs, likeliest, axis=-1).tolist()
    return [
        (value, sorted(zip(row, row_values, strict=True), key=lambda pair: -pair[1]))
        for value, row, row_values in zip(own, ids, values, strict=True)
    ]


def described(
    tokenizer: TokenizerWrapper, reasons: Sequence[TokenReasons], before: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """What :func:`explain` has found as JSON can hold it, with the text that each token adds to those before it.

    What was not computed of base and guide is left out.

    ``before`` are tokens that the answer continues, where it is no answer of its own.
    """
    texts = texts_of(tokenizer, [*before, *(each.token for each in reasons)])[len(before) :]

    def top(likeliest: Likeliest) -> list[dict[str, Any]]:
        return [
            {"id": token, "token": tokenizer.decode([token]), "logprob": finite(value)} for token, value in likeliest
        ]

    def record(each: TokenReasons, text: str) -> dict[str, Any]:
        found = {"id": each.token, "token": text, "logprob": finite(each.logprob), "top": top(each.top)}
        for name in ("base", "guide"):
            value, likeliest = getattr(each, name), getattr(each, f"{name}_top")
            if value is not None:
                found |= {name: finite(value), f"{name}_top": top(likeliest)}
        return found

    return [record(each, text) for each, text in zip(reasons, texts, strict=True)]


def texts_of(tokenizer: TokenizerWrapper, tokens: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; joined, they are the text of all."""
    detokenizer, found = tokenizer.detokenizer, list[str]()
    for token in tokens:
        detokenizer.add_token(token)
        found.append(detokenizer.last_segment)
    detokenizer.finalize()
    if found:
        found[-1] += detokenizer.last_segment
    return found


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold: −9999, as OpenAI has it, for what is impossible."""
    return max(logprob, -9999.0) if logprob == logprob else -9999.0
