"""Why a guided answer says what it says: what base and guide each gave every token (Eq. 13, term by term)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from parm_mlx.errors import InputError
from parm_mlx.guidance.guide import Cache
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
        base: log π_base.
        guide: log π_θ(α).
        top: The likeliest tokens of π̃.
        base_top: What the base alone would have said.
        guide_top: What the guide prefers.
    """

    token: int
    logprob: float
    base: float
    guide: float
    top: Likeliest
    base_top: Likeliest
    guide_top: Likeliest


def explain(model: GuidedModel, request: Request, tokens: Sequence[int]) -> list[TokenReasons]:
    """Reads an answer once more and tells, for each of its tokens, what base and guide gave it.

    Args:
        model: The guided model.
        request: The request that was answered; a thought that comes before ``tokens`` ends its prompt.
        tokens: The answer.

    Raises:
        InputError: The request asks the base alone.
    """
    return [reasons for piece in explaining(model, request, tokens) for reasons in piece]


def explaining(
    model: GuidedModel,
    request: Request,
    tokens: Sequence[int],
    base: CachedTokens | None = None,
    guide: CachedTokens | None = None,
) -> Iterator[list[TokenReasons]]:
    """As :func:`explain`, piece by piece, for whoever has other work between: an empty one for each that is read only.

    ``base`` and ``guide`` hold what they have read of the prompts, but for the last token, where that is kept.
    """
    if request.alpha is None:
        raise InputError("the base answers alone: no guide has moved its answer")
    base = base or CachedTokens(make_prompt_cache(model.base))
    guide = guide or CachedTokens(model.guide.make_cache(request.alpha))
    for run, prompt, cached in ((model.base, request.prompt.base, base), (model.guide, request.prompt.guide, guide)):
        for start in range(len(cached.tokens), len(prompt) - 1, READ):
            read(run, prompt[start : min(start + READ, len(prompt) - 1)], cached.cache)
            yield []
    caches, strength = (base.cache, guide.cache), model.strength(request.beta)
    for start in range(0, len(tokens), STEP):
        yield list(_explained(model, request, tokens, start, caches, strength))


def _explained(
    model: GuidedModel,
    request: Request,
    tokens: Sequence[int],
    start: int,
    caches: tuple[Cache, Cache],
    strength: float,
) -> Iterator[TokenReasons]:
    end, prompt = min(start + STEP, len(tokens)), request.prompt
    inputs = mx.array([[*prompt.base[-1:], *tokens][start:end]])
    symbols = mx.array([[*prompt.guide[-1:], *prompt.for_guide(tokens)][start:end]])
    base = model.base(inputs, cache=caches[0])
    logits = [base[0], model.guide_logits(symbols, base, caches[1])[0]]
    said = mx.array(list(tokens[start:end]))[:, None]
    columns = [
        _column(each, said) for each in (combine_logits(logits[0], logits[1], strength), *over_common_tokens(*logits))
    ]
    for i, token in enumerate(tokens[start:end]):
        (guided, top), (base, base_top), (guide, guide_top) = (column[i] for column in columns)
        yield TokenReasons(token, guided, base, guide, top, base_top, guide_top)


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

    ``before`` are tokens that the answer continues, where it is no answer of its own.
    """
    texts = texts_of(tokenizer, [*before, *(each.token for each in reasons)])[len(before) :]

    def top(likeliest: Likeliest) -> list[dict[str, Any]]:
        return [
            {"id": token, "token": tokenizer.decode([token]), "logprob": finite(value)} for token, value in likeliest
        ]

    return [
        {
            "id": each.token,
            "token": text,
            "logprob": finite(each.logprob),
            "base": finite(each.base),
            "guide": finite(each.guide),
            "top": top(each.top),
            "base_top": top(each.base_top),
            "guide_top": top(each.guide_top),
        }
        for each, text in zip(reasons, texts, strict=True)
    ]


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
