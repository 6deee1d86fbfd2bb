"""Guided decoding over model families and kinds of caches: two models, one shared backbone, batches, drafts.

The reference is always the two-model form, decoding one sequence alone.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache, trim_prompt_cache
from tiny import VOCABULARY, tiny_guide, tiny_guided, tiny_model, tiny_shared

from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import PrefixCaches, prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting, Speculation
from parm_mlx.mlxlm import can_batch
from parm_mlx.pblora.transform import fuse_model

PLAIN = [("llama", None), ("llama", 4), ("qwen2", None), ("gemma", None), ("phi3", None)]
PLAIN += [("gpt_neox", None), ("gpt2", None), ("mixtral", None)]
SLIDING, RECURRENT = [("gemma3_text", None)], [("mamba", None), ("jamba", None), ("falcon_h1", None)]
CHUNKED = [("llama4", None)]
CASES = PLAIN + SLIDING + RECURRENT + CHUNKED
KINDS = ["two", "shared"]
GREEDY = Sampling()


def build(kind: str, family: str, bits: int | None) -> tuple[GuidedModel, GuidedModel]:
    """A guided model, and the two-model form of the same weights."""
    if kind == "two":
        model = tiny_guided(family, bits)
        return model, model
    shared = tiny_shared(family, bits)
    return shared, GuidedModel(tiny_model(family, 1, bits), shared.guide)


def alone(model: Any, prompt: list[int], alpha: list[float], tokens: int, **settings: Any) -> list[int]:
    cache = model.make_cache(alpha)
    return [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=cache, **settings)]


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_one_backbone_gives_the_tokens_of_two_models(family: str, bits: int | None) -> None:
    shared, two = build("shared", family, bits)
    for alpha in ([1.0, 0.0], [0.3, 0.7]):
        for prompt in ([5], [5, 6, 7, 60, 3, 2, 9, 11, 40, 41, 12]):
            expected = alone(two, prompt, alpha, 14)
            assert alone(shared, prompt, alpha, 14) == expected
            assert alone(shared, prompt, alpha, 14, prefill_step_size=3) == expected


@pytest.mark.parametrize(("family", "bits"), CASES)
def test_one_backbone_reads_prompts_of_different_lengths(family: str, bits: int | None) -> None:
    shared, two = build("shared", family, bits)
    prompts = [5, 6, 7], [9, 60, 3, 2, 9, 11, 40, 41, 12, 8, 4]
    answers = []
    for model in (shared, two):
        cache = model.make_cache([0.3, 0.7])
        last = prefill(model, cache, *prompts)
        answers.append([t for t, _ in generate_step(mx.array([last]), model, max_tokens=12, prompt_cache=cache)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "bits"), [case for case in CASES if case not in CHUNKED])
def test_a_batch_of_mixed_preferences_gives_each_sequence_its_own_tokens(
    family: str, bits: int | None, kind: str
) -> None:
    """Seven sequences of different lengths and preferences join and leave while others run, and one is taken out."""
    model, reference = build(kind, family, bits)
    rng = np.random.default_rng(0)
    lengths = [3, 9, 1, 14, 5, 22, 2]
    prompts = [rng.integers(3, VOCABULARY, n).tolist() for n in lengths]
    alphas = [[w, 1 - w] for w in (1.0, 0.0, 0.3, 0.7, 0.5, 0.1, 0.9)]
    limits = [6, 12, 9, 5, 14, 7, 11]
    generator = BatchGenerator(model, completion_batch_size=5, prefill_batch_size=3)
    tokens: dict[int, list[int]] = {}
    inserted: list[int] = []

    def request(i: int) -> Request:
        return Request(PromptTokens(prompts[i], prompts[i]), (alphas[i][0], alphas[i][1]), Sampling())

    def insert(indices: range) -> None:
        requests = [request(i) for i in indices]
        tokens_left, caches = zip(*PrefixCaches(model, requests)(requests), strict=True)
        uids = generator.insert(list(tokens_left), max_tokens=[limits[i] for i in indices], caches=list(caches))
        inserted.extend(uids)
        tokens.update((uid, []) for uid in uids)

    insert(range(4))
    for step in range(200):
        if step == 3:
            insert(range(4, 7))
        if step == 7:
            generator.remove([inserted[5]])
        responses = generator.next_generated()
        if not responses:
            break
        for response in responses:
            tokens[response.uid].append(response.token)
    generator.close()
    for i, uid in enumerate(inserted):
        expected = alone(reference, prompts[i], alphas[i], limits[i])
        assert tokens[uid] == (expected[: len(tokens[uid])] if i == 5 else expected), f"sequence {i}"
    assert len(inserted) == 7
    assert len(tokens[inserted[5]]) < limits[5]


def test_caches_that_cannot_be_batched_are_known() -> None:
    for kind in KINDS:
        for family, bits in CASES:
            assert can_batch(build(kind, family, bits)[0].make_cache()) == ((family, bits) not in CHUNKED)
    model = tiny_shared("llama4")
    generator = BatchGenerator(model)
    generator.insert([[1, 2], [3]], caches=[model.make_cache(), model.make_cache()])
    with pytest.raises(ValueError, match="ChunkedKVCache holds one sequence only"):
        generator.next_generated()


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


def speculate(
    model: GuidedModel, prompt: list[int], alpha: list[float], drafting: Drafting, sampling: Sampling = GREEDY
) -> Iterator[int]:
    cache = model.make_cache(alpha)
    last = prefill(model, cache, prompt, prompt)
    draft = drafting.make_cache()
    drafting.prefill(draft, prompt)
    return iter(Speculation(model, cache, last, drafting, sampling, draft=draft))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "bits"), CASES)
def test_drafts_change_no_token_in_any_family(family: str, bits: int | None, kind: str) -> None:
    """Base and guide draft, ahead as they are sure or a fixed number; so does a good draft model of the same family."""
    model, reference = build(kind, family, bits)
    prompt, alpha = [5, 6, 7, 60, 3], [0.2, 0.8]
    expected = alone(reference, prompt, alpha, 12)
    good = tiny_model(family, 0 if kind == "two" else 1, bits)
    own = [Drafting(None, tokens, by_guide, sure) for by_guide in (False, True) for tokens, sure in ((4, 0), (12, 0.5))]
    for drafting in (*own, Drafting(good, 3, confidence=0), Drafting(good)):
        assert list(islice(speculate(model, prompt, alpha, drafting), 12)) == expected
    drawn = Sampling(temp=0.8, top_k=20, seed=3)
    expected = alone(reference, prompt, alpha, 12, sampler=drawn.sampler())
    for drafting in (own[1], own[3]):
        assert list(islice(speculate(model, prompt, alpha, drafting, drawn), 12)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "bits"), PLAIN)
def test_mlx_lms_own_speculation_and_reused_caches_change_no_token(family: str, bits: int | None, kind: str) -> None:
    """For caches that can be trimmed, which is what mlx-lm asks for."""
    model, reference = build(kind, family, bits)
    prompt, alpha = [5, 6, 7, 60, 3], [0.2, 0.8]
    expected = alone(reference, prompt, alpha, 12)
    draft = tiny_model(family, 0, bits)
    cache = model.make_cache(alpha) + make_prompt_cache(draft)
    steps = speculative_generate_step(mx.array(prompt), model, draft, max_tokens=12, prompt_cache=cache)
    assert [token for token, _, _ in steps] == expected
    cache = model.make_cache(alpha)
    first = [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=6, prompt_cache=cache)]
    trim_prompt_cache(cache, 6)
    assert [t for t, _ in generate_step(mx.array(first), model, max_tokens=6, prompt_cache=cache)] == expected[6:]


@pytest.mark.parametrize("start", [0, 9])
def test_one_backbone_with_quantised_keys_and_values(start: int) -> None:
    """From the first token, and from the middle of the answer."""
    guide = tiny_guide(changes={"hidden_size": 128})
    shared, two = SharedModel(guide), GuidedModel(tiny_model("llama", 1, hidden_size=128), guide)
    settings = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": start}
    prompt, alpha = [5, 6, 7, 60, 3], [0.2, 0.8]
    assert alone(shared, prompt, alpha, 12, **settings) == alone(two, prompt, alpha, 12, **settings)
    cache = shared.make_cache(alpha)
    list(generate_step(mx.array(prompt), shared, max_tokens=8, prompt_cache=cache, **settings))
    assert {type(part).__name__ for pair in cache[:-1] for part in pair.parts} == {"QuantizedKVCache"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "jamba", "falcon_h1"])
def test_a_prompt_cache_survives_a_file(family: str, tmp_path: Any) -> None:
    model, reference = build("shared", family, None)
    prompt, alpha = [5, 6, 7, 60, 3], [0.2, 0.8]
    expected = alone(reference, prompt, alpha, 12)
    cache = model.make_cache(alpha)
    first = [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=6, prompt_cache=cache)]
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    following = generate_step(mx.array(expected[6:7]), model, max_tokens=5, prompt_cache=loaded)
    assert first == expected[:6]
    assert [t for t, _ in following] == expected[7:]
