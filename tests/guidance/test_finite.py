"""Logits that are not finite end an answer with an error, wherever tokens are chosen."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import pytest
from tiny import VOCABULARY, tiny_guided, tiny_shared
from tiny_across import PROMPTS, tiny_across

from parm_mlx.errors import RunError
from parm_mlx.guidance.generate import Answer, generate_batch, in_order
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import NOT_FINITE, Request, Sampling, likeliest
from parm_mlx.guidance.speculation import Chooser, Drafting

ALPHA = (0.3, 0.7)
POISON = 90
"""A prompt token whose embedding is NaN in the model that is to blame."""


class NoEnd:
    """A tokenizer whose answers do not end."""

    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def request(tokens: list[int], alpha: tuple[float, ...] | None = ALPHA, temp: float = 0.0) -> Request:
    return Request(PromptTokens(tokens, tokens), alpha, Sampling(temp=temp))


def poisoned(model: GuidedModel, guide: bool) -> GuidedModel:
    table = (model.guide.model if guide else model.base).model.embed_tokens  # type: ignore[union-attr]
    table.weight = mx.where(mx.arange(VOCABULARY)[:, None] == POISON, mx.nan, table.weight)
    # The token itself can never be generated, so that only prompts bring it.
    for each in (model.base, getattr(model.guide, "model", None)):
        assert each is not None
        head = each.lm_head
        head.weight = mx.where(mx.arange(VOCABULARY)[:, None] == POISON, 0.0, head.weight)
    return model


def answers(model: GuidedModel, requests: list[Request], drafting: Drafting | None = None) -> Iterable[Answer]:
    return generate_batch(model, NoEnd(), requests, 6, batch_size=4, drafting=drafting)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [mx.nan, mx.inf])
@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_a_token_of_a_row_that_is_not_finite_is_none(bad: float, temp: float) -> None:
    """Minus infinity is a token that never comes, and no harm."""
    logits = mx.array([[0.0, bad, 1, 2], [0, -mx.inf, 1, 50]])
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    sampler = Sampling(temp=temp).sampler()
    assert mx.concatenate([sampler(logprobs[:1]), sampler(logprobs[1:])]).tolist() == [NOT_FINITE, 3]
    assert likeliest(logprobs).tolist() == [NOT_FINITE, 3]


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_drafts_are_kept_up_to_the_row_that_is_not_finite(temp: float) -> None:
    """Draft 1 is certain in the first row; of the second row nothing is known, nor what would come after it."""
    sure, bad = [0.0, 200, 0], [0.0, mx.nan, 0]
    chooser = Chooser(Sampling(temp=temp), 0, 3)
    drafts = mx.array([1, 1], mx.uint32)
    assert chooser.judge(mx.array([sure, bad, sure]), drafts) == (1, [1, NOT_FINITE])
    assert chooser.judge(mx.array([sure, sure, bad]), drafts) == (2, [1, 1, NOT_FINITE])
    assert chooser.judge(mx.array([sure, sure, sure]), drafts) == (2, [1, 1, 1])


@pytest.mark.parametrize("temp", [0.0, 1.0])
@pytest.mark.parametrize("guide", [False, True])
def test_in_a_batch_the_others_go_on(guide: bool, temp: float) -> None:
    model = poisoned(tiny_guided(), guide)
    good = [request([3, 1, 4], temp=temp), request([1, 5], temp=temp), request([9, 2, 6, 5], temp=temp)]
    bad = request([8, POISON, 7], temp=temp)
    expected = [next(iter(answers(model, [each]))).tokens for each in good]
    found: list[Answer] = []
    whose = "the guide" if guide else "the base"
    with pytest.raises(
        RunError, match=rf"logits of {whose} are not finite: an answer ended after 0 tokens \(and 1 more\)"
    ):
        found.extend(in_order(answers(model, [bad, good[0], bad, *good[1:]])))
    assert [answer.index for answer in found] == [1, 3, 4]
    assert [answer.tokens for answer in found] == expected


@pytest.mark.parametrize("drafting", [Drafting(None, 3), "model"])
def test_one_after_the_other_too(drafting: Any) -> None:
    model = poisoned(tiny_guided(), False)
    drafting = Drafting(tiny_guided().base, 2) if drafting == "model" else drafting
    found: list[Answer] = []
    with pytest.raises(RunError, match=r"the logits of the base are not finite: an answer ended after 0 tokens$"):
        found.extend(answers(model, [request([POISON, 7]), request([3, 1, 4])], drafting))
    assert [(answer.index, len(answer.tokens)) for answer in found] == [(1, 6)]


def test_the_base_alone_and_a_shared_backbone() -> None:
    model = poisoned(tiny_guided(), False)
    with pytest.raises(RunError, match="the logits of the base are not finite"):
        list(answers(model, [request([POISON, 7], None)]))
    shared = tiny_shared()
    table = shared.guide.model.model.embed_tokens
    table.weight = mx.where(mx.arange(VOCABULARY)[:, None] == POISON, mx.nan, table.weight)
    with pytest.raises(RunError, match="the logits of the base and the guide are not finite"):
        list(answers(shared, [request([POISON, 7])]))


@pytest.mark.parametrize("guide", [False, True])
def test_across_vocabularies_too(guide: bool) -> None:
    """What stands for such a token is read once more before the answer ends."""
    model = tiny_across()
    part: Any = model.guide.guide.model if guide else model.base
    part.model.norm.weight = part.model.norm.weight * mx.nan
    asked = [Request(PromptTokens(*prompt, shift=model.shift), ALPHA, Sampling()) for prompt in PROMPTS]
    with pytest.raises(RunError, match="are not finite"):
        list(answers(model, asked))
