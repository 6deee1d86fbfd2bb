"""Mixed preferences in one continuous batch, over families and cache types, against each sequence alone."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from tiny import VOCABULARY, tiny_guide, tiny_guided

from parm_mlx.pblora.fuse import fuse_model

CASES = [("llama", None), ("llama", 4), ("qwen2", None), ("gemma", None), ("gemma3_text", None), ("phi3", None)]
CASES += [("gpt_neox", None), ("gpt2", None), ("mixtral", None)]


def alone(model: Any, prompt: list[int], alpha: list[float], tokens: int) -> list[int]:
    return [
        t for t, _ in generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=model.make_cache(alpha))
    ]


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_a_batch_of_mixed_preferences_gives_each_sequence_its_own_tokens(family: str, bits: int | None) -> None:
    """Ten sequences of different lengths and preferences join and leave while others run, and one is taken out."""
    model = tiny_guided(family, bits)
    rng = np.random.default_rng(0)
    lengths = [3, 9, 1, 14, 5, 22, 2, 7, 11, 4]
    prompts = [rng.integers(3, VOCABULARY, n).tolist() for n in lengths]
    alphas = [[w, 1 - w] for w in (1.0, 0.0, 0.3, 0.7, 0.5, 0.1, 0.9, 1.0, 0.25, 0.0)]
    limits = [6, 12, 9, 5, 14, 7, 11, 8, 10, 13]
    generator = BatchGenerator(model, completion_batch_size=6, prefill_batch_size=3)
    tokens: dict[int, list[int]] = {}
    inserted: list[int] = []

    def insert(indices: range) -> None:
        caches = [model.make_cache(alphas[i]) for i in indices]
        uids = generator.insert(
            [list(prompts[i]) for i in indices], max_tokens=[limits[i] for i in indices], caches=caches
        )
        inserted.extend(uids)
        tokens.update((uid, []) for uid in uids)

    insert(range(4))
    for step in range(200):
        if step in (3, 6):
            insert(range(len(inserted), len(inserted) + 3))
        if step == 8:
            generator.remove([inserted[5]])
        responses = generator.next_generated()
        if not responses:
            break
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    for i, uid in enumerate(inserted):
        expected = alone(model, prompts[i], alphas[i], limits[i])
        assert tokens[uid] == (expected[: len(tokens[uid])] if i == 5 else expected), f"sequence {i}"
    assert len(inserted) == 10
    assert len(tokens[inserted[5]]) < limits[5]


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_the_preference_changes_what_every_family_says(family: str, bits: int | None) -> None:
    model = tiny_guided(family, bits)
    logits = [model.guide(mx.array([[5, 6, 7]]), alpha=alpha) for alpha in ([1, 0], [0, 1])]
    assert mx.abs(logits[0] - logits[1]).max().item() > 1e-2


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_the_adapter_is_the_fused_weight_in_every_family(family: str, bits: int | None) -> None:
    ids, alpha = mx.array([[5, 6, 7, 60, 3]]), (0.3, 0.7)
    guide, twin = tiny_guide(family, bits=bits), tiny_guide(family, bits=bits)
    fuse_model(twin.model, alpha, dequantize=True)
    logits = guide(ids, alpha=alpha)
    assert mx.allclose(twin.model(ids), logits, rtol=1e-3, atol=2e-3)
    assert mx.allclose(guide(ids, cache=guide.make_cache(alpha)), logits, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("family", "bits"), [case for case in CASES if case[0] != "gemma3_text"])
def test_drafts_and_reused_caches_change_no_token_in_any_family(family: str, bits: int | None) -> None:
    """Not on gemma3_text: mlx-lm cannot trim a sliding window that has been passed."""
    model = tiny_guided(family, bits)
    prompt, alpha = [5, 6, 7, 60, 3], [0.2, 0.8]
    expected = alone(model, prompt, alpha, 12)
    cache = model.make_cache(alpha) + make_prompt_cache(model.base)
    steps = speculative_generate_step(mx.array(prompt), model, model.base, max_tokens=12, prompt_cache=cache)
    assert [token for token, _, _ in steps] == expected
    cache = model.make_cache(alpha)
    first = [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=6, prompt_cache=cache)]
    trim_prompt_cache(cache, 6)
    assert [t for t, _ in generate_step(mx.array(first), model, max_tokens=6, prompt_cache=cache)] == expected[6:]
