"""Eq. 13 with 16-bit models of a large vocabulary: the numbers are those of float64."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guide import Guide, Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Chooser
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.pblora.adapter import adapted_layers

VOCABULARY = 32_000
ROWS, LENGTH = 2, 40
BETA = 0.1
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def half(model: Any, dtype: mx.Dtype) -> Any:
    """The model in a 16-bit type, its adapters in float32 as they are when loaded."""
    model.update(tree_map(lambda x: x.astype(dtype), model.parameters()))
    for layer in adapted_layers(model).values():
        layer.update({name: layer[name].astype(mx.float32) for name in layer.tensors})
    model.eval()
    return model


def guide(dtype: mx.Dtype, seed: int = 1, **settings: Any) -> Guide:
    return half(tiny_guide("llama", seed, changes={"vocab_size": VOCABULARY}, **settings), dtype)  # type: ignore[no-any-return]


def base(dtype: mx.Dtype) -> Any:
    return half(tiny_model("llama", 0, vocab_size=VOCABULARY), dtype)


def ids() -> mx.array:
    mx.random.seed(7)
    return mx.random.randint(0, VOCABULARY, (ROWS, LENGTH))


def wide(logits: mx.array) -> Numbers:
    return np.array(logits.astype(mx.float32)).astype(np.float64)


def probabilities(logits: Numbers) -> Numbers:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def two_models(dtype: mx.Dtype) -> tuple[GuidedModel, mx.array, Numbers]:
    model, tokens = GuidedModel(base(dtype), guide(dtype), BETA), ids()
    return model, tokens, wide(model.base(tokens)) + wide(model.guide(tokens)) / BETA


def one_backbone(dtype: mx.Dtype) -> tuple[GuidedModel, mx.array, Numbers]:
    """Both are rows of one pass, so that pass is where the expected numbers come from."""
    model, tokens = SharedModel(guide(dtype), BETA), ids()
    rows = mx.repeat(tokens, 2, axis=0)
    both = wide(model.guide.run(rows, None, model._bind(mx.array([model.guide.alpha] * ROWS))))
    return model, tokens, both[0::2] + both[1::2] / BETA


def several_guides(dtype: mx.Dtype) -> tuple[GuidedModel, mx.array, Numbers]:
    guides = [guide(dtype, seed, objectives=(name,)) for seed, name in ((1, "kind"), (2, "brief"))]
    model, tokens = GuidedModel(base(dtype), Guides(guides, "0.3,0.7"), BETA), ids()
    kind, brief = (wide(guide.run(tokens, None, guide.bind(mx.ones((1, 1))))) for guide in guides)
    weighted = 0.3 * kind + 0.7 * brief
    return model, tokens, wide(model.base(tokens)) + weighted / BETA


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("make", [two_models, one_backbone, several_guides])
def test_guided_tokens_and_probabilities_are_those_of_float64(
    make: Callable[[mx.Dtype], tuple[GuidedModel, mx.array, Numbers]], dtype: mx.Dtype
) -> None:
    model, tokens, expected = make(dtype)
    found = model(tokens)
    assert found.dtype == mx.float32
    assert wide(mx.argmax(found, axis=-1)).tolist() == expected.argmax(-1).tolist()
    logprobs = found - mx.logsumexp(found, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(wide(logprobs)).sum(-1), 1, atol=1e-3)
    np.testing.assert_allclose(np.exp(wide(logprobs)), probabilities(expected), atol=1e-3)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_mlx_lm_normalises_guided_and_unguided_logits_in_float32(dtype: mx.Dtype) -> None:
    """mlx-lm's generators subtract the normaliser in the type that a model returns."""
    model, tokens = GuidedModel(base(dtype), guide(dtype), BETA), ids()[0]
    for runs, cache in ((model, model.make_cache()), (model.base_logits, make_prompt_cache(model.base))):
        for _, logprobs in generate_step(tokens, runs, max_tokens=3, prompt_cache=cache):  # type: ignore[arg-type]
            assert np.exp(wide(logprobs)).sum() == pytest.approx(1, abs=1e-3)
    answer = next(generate_batch(model, NoEnd(), [request(tokens, None)], 3))  # type: ignore[arg-type]
    logits = wide(model.base(mx.array([[*tokens.tolist(), *answer.tokens[:-1]]])))[0, LENGTH - 1 :]  # type: ignore[misc]
    for row, token in zip(logits, answer.tokens, strict=True):
        assert row[token] == row.max()


class NoEnd:
    """A tokenizer whose answers do not end."""

    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def request(tokens: mx.array, alpha: tuple[float, ...] | None) -> Request:
    prompt: list[int] = tokens.tolist()  # type: ignore[assignment]
    return Request(PromptTokens(prompt, prompt), alpha, Sampling())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_drafts_are_judged_in_float32(dtype: mx.Dtype) -> None:
    """The likeliest tokens in float64 are kept as drafts, all of them; the drafter's highest probability is right."""
    model, tokens = GuidedModel(base(dtype), guide(dtype), BETA), ids()
    bases, guides = model.base(tokens).reshape(-1, VOCABULARY), model.guide(tokens).reshape(-1, VOCABULARY)
    best = (wide(bases) + wide(guides) / BETA).argmax(-1)
    drafts = mx.array(best, mx.uint32)
    judged = Chooser(Sampling(), 0, VOCABULARY).judge(combine_logits(bases, guides, 1 / BETA), drafts)
    assert judged == (len(best), best.tolist())
    _, highest = Chooser(Sampling(temp=1.0), 0, VOCABULARY).draft(bases[:1], 0)
    right = wide(bases[0])
    assert highest.item() == pytest.approx(right.max() - np.log(np.exp(right).sum()), abs=1e-3)
