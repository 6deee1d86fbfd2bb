"""How far one-pass guidance is from exact guidance, measured on answers, token by token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from parm_mlx.errors import InputError
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.prefill import read
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.preference import Alpha


@dataclass(frozen=True)
class ReadAnswer:
    """An answer that is read again.

    Attributes:
        prompt: Tokens of its prompt, those that the base reads; one pass has no other, and exact guidance is given the
            same here.
        answer: Its own tokens.
        alpha: The preference that it was generated under, or is read under.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    alpha: Alpha


def guide_of(model: GuidedModel) -> Guide:
    """Returns the guide that shares its weights with the base.

    Raises:
        InputError: They do not share weights, so that one pass cannot stand for both.
    """
    if isinstance(model, SharedModel | OnePassModel):
        return model.guide
    raise InputError(
        "--fidelity compares exact guidance with one pass, for which base and guide need the same weights",
        hint="leave out --fidelity",
    )


def compare_distributions(guide: Guide, beta: float, answers: Iterable[ReadAnswer]) -> dict[str, Any]:
    """Compares the distributions of exact and one-pass guidance at every token of answers.

    Args:
        guide: A guide; its backbone is the base.
        beta: β of both.
        answers: The answers; empty ones count nothing.

    Returns:
        ``positions``, their number; ``total_variation``, the mean of ½ Σ |p − q| over them; ``same_token``, the share
        at which both have the same likeliest token. None where there are no positions. The same for each preference in
        ``by_alpha``, with ``alpha``.
    """
    exact, one_pass = SharedModel(guide, beta), OnePassModel(guide, beta)
    sums: dict[Alpha, list[float]] = {}
    for each in answers:
        found = sums.setdefault(each.alpha, [0, 0.0, 0.0])
        if each.answer:
            variation, same = _at_tokens(exact, one_pass, each)
            found[0] += len(each.answer)
            found[1] += float(variation.sum())
            found[2] += float(same.sum())
    whole = [sum(column) for column in zip(*sums.values(), strict=True)] or [0, 0.0, 0.0]
    return {**_means(whole), "by_alpha": [{"alpha": list(alpha), **_means(own)} for alpha, own in sums.items()]}


def _at_tokens(exact: SharedModel, one_pass: OnePassModel, each: ReadAnswer) -> tuple[mx.array, mx.array]:
    """Total variation and equality of the likeliest token where each of n answer tokens is predicted: (n,) both."""
    ids = mx.array([[each.prompt[-1], *each.answer[:-1]]])

    def logprobs(model: GuidedModel) -> mx.array:
        cache = model.make_cache(each.alpha)
        read(model, each.prompt[:-1], cache)
        logits = model(ids, cache=cache)[0]
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    p, q = logprobs(exact), logprobs(one_pass)
    variation = 0.5 * mx.abs(mx.exp(p) - mx.exp(q)).sum(axis=-1)
    same = mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)
    mx.eval(variation, same)
    return variation, same


def _means(sums: Sequence[float]) -> dict[str, Any]:
    positions, variation, same = sums
    found = {"total_variation": variation, "same_token": same}
    return {
        "positions": int(positions),
        **{name: value / positions if positions else None for name, value in found.items()},
    }
