"""GenARM: several reward models of one objective each guide one base."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from tiny import tiny_guide, tiny_model

from parm_mlx.errors import AdapterError, PreferenceError
from parm_mlx.guidance.guide import Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill

PROMPT = [3, 14, 15, 9, 26, 5]
ALPHAS = ([0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def guided() -> GuidedModel:
    """A base and three reward models with backbones of their own, one of another family."""
    lora = {"kind": "lora", "r1": 4, "r2": 0}
    guides = [
        tiny_guide("llama", 1, objectives=("kind",), **lora),
        tiny_guide("gemma3_text", 2, objectives=("brief",), **lora),
        tiny_guide("llama", 3, objectives=("funny",), r1=2, r2=2),
    ]
    return GuidedModel(tiny_model(), Guides(guides), beta=0.5)


def greedy(model: GuidedModel, prompt: Sequence[int], cache: list[object], tokens: int = 8) -> list[int]:
    return [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=cache)]


def log_softmax(logits: mx.array) -> np.ndarray:
    values = np.array(logits, np.float64)
    return (
        values
        - np.log(np.exp(values - values.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - values.max(-1, keepdims=True)
    )


def test_the_equation(guided: GuidedModel) -> None:
    """log π̃ = log π_base + Σ_i (α_i / β) log π_i − log Z, each model run alone and normalised in float64."""
    ids = mx.array([PROMPT])
    for alpha in ALPHAS:
        mixed = log_softmax(guided.base(ids)) + sum(
            weight / 0.5 * log_softmax(guide(ids)) for weight, guide in zip(alpha, guided.guide.guides, strict=True)
        )
        expected = mixed - np.log(np.exp(mixed).sum(-1, keepdims=True))
        found = log_softmax(guided(ids, cache=guided.make_cache(alpha)))
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-5)


def test_every_guide_may_have_a_strength_of_its_own(guided: GuidedModel) -> None:
    """log π̃ = log π_base + Σ_i (α_i / β_i) log π_i − log Z."""
    own = GuidedModel(guided.base, Guides(guided.guide.guides, betas=(0.5, 1.0, 2.0)))
    ids = mx.array([PROMPT])
    for alpha in ALPHAS:
        mixed = log_softmax(own.base(ids)) + sum(
            weight / beta * log_softmax(guide(ids))
            for weight, beta, guide in zip(alpha, (0.5, 1.0, 2.0), guided.guide.guides, strict=True)
        )
        expected = mixed - np.log(np.exp(mixed).sum(-1, keepdims=True))
        found = log_softmax(own(ids, cache=own.make_cache(alpha)))
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-5)


def test_objectives_are_those_of_the_guides_in_order(guided: GuidedModel) -> None:
    assert guided.objectives == ("kind", "brief", "funny")
    assert guided.guide.alpha == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert len(guided.layers) == len(guided.make_cache("kind=1"))


def test_a_mixed_batch_gives_what_each_gives_alone_while_others_join_and_leave(guided: GuidedModel) -> None:
    alone = {i: greedy(guided, PROMPT[: 3 + i], guided.make_cache(alpha), 4 + i) for i, alpha in enumerate(ALPHAS)}
    generator = BatchGenerator(guided, completion_batch_size=4, prefill_batch_size=2)
    found: dict[int, list[int]] = {}

    def insert(numbers: Sequence[int]) -> None:
        uids = generator.insert(
            [PROMPT[: 3 + i] for i in numbers],
            max_tokens=[4 + i for i in numbers],
            caches=[guided.make_cache(ALPHAS[i]) for i in numbers],
        )
        owner.update(zip(uids, numbers, strict=True))

    owner: dict[int, int] = {}
    insert((0, 1))
    steps = 0
    while len(found) < 2 or any(len(found[i]) < 4 + i for i in owner.values()):
        for response in generator.next_generated():
            found.setdefault(owner[response.uid], []).append(response.token)
        steps += 1
        if steps == 2:
            insert((2, 3))
        assert steps < 100
    generator.close()
    assert found == alone


def test_a_trimmed_cache_and_prompts_of_their_own(guided: GuidedModel) -> None:
    alpha = ALPHAS[0]
    short = GuidedModel(guided.base, Guides([guided.guide.guides[0], guided.guide.guides[2]]))
    whole = greedy(short, PROMPT, short.make_cache([0.2, 0.8]))
    cache = short.make_cache([0.2, 0.8])
    generated = greedy(short, PROMPT, cache, 5)
    assert can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, len(generated)) == len(generated)
    assert greedy(short, generated, cache, 3) == whole[5:]

    guide_prompt = [7, 7, 40, 41, 60]
    logits = guided.base(mx.array([PROMPT]))[:, -1] + 2 * sum(
        weight * guide(mx.array([guide_prompt]))[:, -1]
        for weight, guide in zip(alpha, guided.guide.guides, strict=True)
    )
    cache = guided.make_cache(alpha)
    token = prefill(guided, cache, PROMPT, guide_prompt)
    assert greedy(guided, [token], cache, 1) == mx.argmax(logits, axis=-1).tolist()


def test_guides_that_do_not_go_together() -> None:
    one, other = (tiny_guide(seed=i, objectives=(name,)) for i, name in enumerate(("kind", "brief")))
    with pytest.raises(AdapterError, match="if each has one objective; one of these has helpful, harmless"):
        Guides([one, tiny_guide()])
    with pytest.raises(PreferenceError, match="objective 'kind' is named twice"):
        Guides([one, one])
    with pytest.raises(AdapterError, match="need one chat template; these record none and hh"):
        Guides([one, tiny_guide(objectives=("brief",), chat_template="hh")])
    with pytest.raises(PreferenceError, match="alpha has 3 weight"):
        GuidedModel(tiny_model(), Guides([one, other])).make_cache([1, 2, 3])
