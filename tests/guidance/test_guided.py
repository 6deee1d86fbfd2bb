import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step, speculative_generate_step, stream_generate
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache
from tiny import VOCABULARY, tiny_guide, tiny_guided, tiny_model

import parm_mlx
from parm_mlx.errors import PreferenceError
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.pblora import PBLoRAConfig, load_into
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Unconditioned, conditioned

PROMPT = [3, 14, 15, 9, 26, 5]


def greedy(model: object, prompt: list[int], cache: list[object] | None = None, tokens: int = 12) -> list[int]:
    return [t for t, _ in generate_step(mx.array(prompt), model, max_tokens=tokens, prompt_cache=cache)]


@pytest.fixture(scope="module")
def official_guide(official: Path, official_parm: Path) -> parm_mlx.Guide:
    return parm_mlx.load_guide(official_parm, model=official / "arm_base")[0]


def test_logits_equal_the_official_ones_at_every_alpha(official: Path, official_guide: parm_mlx.Guide) -> None:
    expected = np.load(official / "expected_logits_k2.npz")
    layers = list(adapted_layers(official_guide.model).values())
    for i, alpha in enumerate(expected["alphas"]):
        bound = BoundPreferences(layers, mx.array(alpha[None], mx.float32))
        for j in range(int(expected["n_seqs"])):
            ids = mx.array(expected[f"ids_{j}"]).reshape(1, -1)
            logits = expected[f"logits_a{i}_s{j}"].reshape(1, ids.shape[1], -1)
            np.testing.assert_allclose(official_guide(ids, alpha=alpha.tolist()), logits, atol=1e-4, rtol=0)
            with conditioned(bound):
                np.testing.assert_allclose(official_guide.model(ids), logits, atol=1e-4, rtol=0)


def test_delta_w_equals_the_official_one_at_every_alpha(official: Path, official_guide: parm_mlx.Guide) -> None:
    expected = np.load(official / "expected_logits_k2.npz")
    layers = adapted_layers(official_guide.model)
    for i, alpha in enumerate(expected["alphas"]):
        for name in ("q_proj", "k_proj", "v_proj"):
            delta = layers[f"layers.0.self_attn.{name}"].delta(mx.array(alpha, mx.float32))
            np.testing.assert_allclose(delta, expected[f"delta_{name}_l0_a{i}"], atol=1e-6, rtol=1e-5)


def test_guided_greedy_tokens_equal_the_official_ones(official: Path, official_parm: Path) -> None:
    model, _ = parm_mlx.load(official / "base_lm", official_parm, guide_model=official / "arm_base")
    cases = json.loads((official / "expected_greedy.json").read_text())["cases"]
    for case in cases:
        expected = case["generated_ids"]
        cache = model.make_cache(case["alpha"])
        assert greedy(model, case["prompt_ids"], cache, len(expected)) == expected


def test_a_zero_core_is_the_backbone(official: Path, official_guide: parm_mlx.Guide) -> None:
    """The plain rows of a pair, and the model without conditioning, are the official base logits."""
    expected = np.load(official / "expected_logits_k2.npz")
    ids = mx.array(expected["ids_0"]).reshape(1, -1)
    layers = list(adapted_layers(official_guide.model).values())
    for alphas in ([[0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]):
        rows = 2 * len(alphas)
        with conditioned(BoundPreferences(layers, mx.array(alphas), paired=True)):
            logits = official_guide.model(mx.repeat(ids, rows, axis=0))
        for row in range(0, rows, 2):
            np.testing.assert_allclose(logits[row].squeeze(), expected["base_logits_s0"].squeeze(), atol=1e-4, rtol=0)
            guided = official_guide(ids, alpha=alphas[row // 2])
            np.testing.assert_allclose(logits[row + 1], guided[0], atol=1e-4, rtol=0)
    with conditioned(Unconditioned()):
        plain = official_guide.model(ids)
    np.testing.assert_allclose(plain.squeeze(), expected["base_logits_s0"].squeeze(), atol=1e-4, rtol=0)


def test_the_mix_by_hand() -> None:
    """β = 1/2 counts the guide twice: (1, 2) + 2 · (3, −1) = (7, 0); the third token is the base's padding."""
    mixed = combine_logits(mx.array([1.0, 2.0, 9.0]), mx.array([3.0, -1.0]), 2.0)
    assert mixed.tolist() == [7.0, 0.0]


def test_guided_probabilities_are_the_product_of_base_and_guide() -> None:
    guided = tiny_guided(beta=0.5)
    ids = mx.array([PROMPT])
    base, guide = mx.softmax(guided.base(ids), axis=-1), mx.softmax(guided.guide(ids), axis=-1)
    product = base * guide**2
    expected = product / product.sum(-1, keepdims=True)
    assert mx.allclose(mx.softmax(guided(ids), axis=-1), expected, rtol=1e-3, atol=1e-6)


def test_a_smaller_vocabulary_bounds_the_tokens() -> None:
    guided = GuidedModel(tiny_model(vocab_size=VOCABULARY + 32), tiny_guide())
    assert guided(mx.array([PROMPT])).shape == (1, len(PROMPT), VOCABULARY)


@pytest.mark.parametrize("beta", [0, -1.0, float("nan")])
def test_a_wrong_beta_is_refused(beta: float) -> None:
    with pytest.raises(PreferenceError, match="beta"):
        GuidedModel(tiny_model(), tiny_guide(), beta)


def test_alpha_may_differ_from_row_to_row() -> None:
    guide = tiny_guide()
    ids = mx.array([PROMPT, PROMPT])
    both = guide(ids, alpha=[[1, 0], "harmless=1"])
    assert mx.allclose(both[:1], guide(ids[:1], alpha="1,0"), atol=1e-4)
    assert mx.allclose(both[1:], guide(ids[:1], alpha=mx.array([0.0, 1.0])), atol=1e-4)
    assert not mx.allclose(both[:1], both[1:], atol=1e-2)


@pytest.mark.parametrize(
    ("alpha", "reason"),
    [
        ([0.5, 0.3, 0.2], "3 weight"),
        ([[1, 0], [0, 1], [1, 1]], "3 preference vectors given for 2 rows"),
        (mx.array([1.0, 0, 0]), "it must be \\(2,\\) or \\(2, 2\\)"),
    ],
)
def test_an_alpha_that_does_not_fit_is_refused(alpha: object, reason: str) -> None:
    with pytest.raises(PreferenceError, match=reason):
        tiny_guide()(mx.array([PROMPT, PROMPT]), alpha=alpha)  # type: ignore[arg-type]


def test_alpha_is_bound_once_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    guided = tiny_guided()
    bound = []
    bind = guided.guide.bind
    monkeypatch.setattr(guided.guide, "bind", lambda alpha: bound.append(alpha) or bind(alpha))
    greedy(guided, PROMPT, guided.make_cache([0.3, 0.7]))
    assert len(bound) == 1


def test_the_cache_carries_the_preference() -> None:
    guided = tiny_guided()
    tokens = {alpha: greedy(guided, PROMPT, guided.make_cache(alpha)) for alpha in ("1,0", "0,1", "0.5,0.5")}
    assert len({tuple(t) for t in tokens.values()}) == 3
    assert greedy(guided, PROMPT) == tokens["0.5,0.5"]


def test_a_reused_trimmed_and_extended_cache_gives_the_same_tokens() -> None:
    guided = tiny_guided()
    alpha = [0.2, 0.8]
    whole = greedy(guided, PROMPT, guided.make_cache(alpha))
    cache = guided.make_cache(alpha)
    generated = greedy(guided, PROMPT, cache, 5)
    assert can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, len(generated)) == len(generated)
    assert greedy(guided, generated, cache, 7) == whole[5:]
    assert trim_prompt_cache(make_prompt_cache(guided), 3) == 0


def test_speculative_decoding_gives_the_same_tokens() -> None:
    guided = tiny_guided()
    for draft in (guided.base, tiny_model(seed=7)):
        for alpha in ([1, 0], [0.3, 0.7]):
            steps = speculative_generate_step(
                mx.array(PROMPT),
                guided,
                draft,
                max_tokens=16,
                num_draft_tokens=3,
                prompt_cache=guided.make_cache(alpha) + make_prompt_cache(draft),
            )
            assert [t for t, _, _ in steps] == greedy(guided, PROMPT, guided.make_cache(alpha), 16)


def test_stream_generate_runs_a_guided_model(official: Path, official_parm: Path) -> None:
    model, tokenizer = parm_mlx.load(official / "base_lm", official_parm, official / "arm_base", alpha="1,0", beta=2)
    responses = list(stream_generate(model, tokenizer, "Tell me a joke.", max_tokens=8))
    ids = tokenizer.encode("Tell me a joke.")
    expected = greedy(model, ids, model.make_cache("harmless=1"), 8)
    assert [r.token for r in responses] == expected[: len(responses)]


def test_the_guide_alone_is_a_model_too() -> None:
    guide = tiny_guide()
    tokens = greedy(guide, PROMPT, guide.make_cache("0.3,0.7"))
    ids = mx.array([PROMPT + tokens])
    alone = mx.argmax(guide(ids, alpha="0.3,0.7"), axis=-1)[0, len(PROMPT) - 1 : -1]
    assert alone.tolist() == tokens


def test_two_prompts_are_continued_by_the_same_tokens() -> None:
    """Reference: at every step the base sees its prompt and the guide its own, both followed by what was generated."""
    guided = tiny_guided(beta=0.5)
    base, guide, alpha = PROMPT, [7, 7, 40, 41, 42, 43, 44, 45, 60], [0.4, 0.6]
    expected: list[int] = []
    for _ in range(8):
        b = guided.base(mx.array([base + expected]))[:, -1]
        g = guided.guide(mx.array([guide + expected]), alpha=alpha)[:, -1]
        expected.append(int(mx.argmax(combine_logits(b, g, 2.0), axis=-1).item()))
    cache = guided.make_cache(alpha)
    assert greedy(guided, [prefill(guided, cache, base, guide)], cache, 8) == expected
    cache, draft = guided.make_cache(alpha), make_prompt_cache(guided.base)
    steps = speculative_generate_step(
        mx.array([prefill(guided, cache, base, guide)]), guided, guided.base, max_tokens=8, prompt_cache=cache + draft
    )
    assert [t for t, _, _ in steps] == expected


def test_layers_match_the_cache_entry_for_entry() -> None:
    for model in (tiny_guided(), tiny_guide(), tiny_guided("gemma3_text")):
        assert len(model.layers) == len(model.make_cache())


def test_the_official_adapter_on_the_wrong_backbone_is_refused(official: Path, official_parm: Path) -> None:
    with pytest.raises(parm_mlx.errors.AdapterError, match="does not fit the model"):
        parm_mlx.load_guide(official_parm, model=official / "base_lm")


def test_loading_into_a_quantised_backbone_matches_its_dequantised_twin() -> None:
    guide = tiny_guide(bits=4)
    alpha = mx.array([0.3, 0.7])
    ids = mx.array([PROMPT])
    layer = next(iter(adapted_layers(guide.model).values()))
    assert "QuantizedLinear" in repr(layer.linear)
    config = PBLoRAConfig(objectives=guide.objectives)
    from parm_mlx.pblora import adapter_tensors

    twin = tiny_model(seed=1, bits=4)
    load_into(twin, config, adapter_tensors(guide.model))
    from parm_mlx.pblora.transform import fuse_model

    fuse_model(twin, (0.3, 0.7), dequantize=True)
    assert mx.allclose(guide(ids, alpha=alpha), twin(ids), atol=2e-3)


def test_sharpness_counts_base_and_guide() -> None:
    model = tiny_guided()
    assert model.sharpness((0.3, 0.7)) == 2.0
    model.beta = 0.5
    assert model.sharpness((0.3, 0.7)) == 3.0
