"""Scores of responses, prefixes that are read once per pair, and logits in chunks."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import FAMILIES, VOCABULARY, random_pairs, randomise, targets, tiny_model

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.guidance.guide import Guide
from parm_mlx.kernels.logprob import target_logprobs
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training.batching import Batch, make_batch
from parm_mlx.training.loss import preference_loss
from parm_mlx.training.response_logprobs import (
    ResponseScorer,
    chunked_logprobs,
    chunked_logprobs_with_grad,
    corner_distance,
)


def unrelated_pairs(count: int = 3) -> list[TokenPair]:
    rng = np.random.default_rng(0)

    def row() -> TokenRow:
        prompt, response = rng.integers(2, 7), rng.integers(1, 9)
        return TokenRow(rng.integers(0, VOCABULARY, prompt + response).astype(np.int32), int(prompt))

    return [TokenPair((row(), row()), np.array([0, 1], np.int8), "x") for _ in range(count)]


SPLIT = ("llama", "qwen2", "gemma", "gemma3_text", "phi3", "mixtral", "jamba")


@pytest.mark.parametrize(("family", "bits"), [*((family, None) for family in FAMILIES), ("llama", 4)])
def test_response_scores_are_sums_over_the_guides_logits(family: str, bits: int | None) -> None:
    """Each row alone, unpadded, through the guide and numpy; in a batch, padded, at one α per pair."""
    model: Any = tiny_model(family, bits=bits)
    config = PBLoRAConfig(objectives=("a", "b"), target_modules=targets(family, model))
    attach(model, config)
    randomise(model)
    guide = Guide(model, config)
    pairs, alpha = unrelated_pairs(), np.array([[1, 0], [0.5, 0.5], [0.1, 0.9]], np.float32)
    scorer = ResponseScorer(model, 2)
    assert (scorer.trunk_and_head is not None) == (family in SPLIT)
    scores = np.array(scorer(make_batch(pairs), mx.array(alpha)))
    for number, pair in enumerate(pairs):
        for side in (0, 1):
            ids, start = pair.rows[side].ids, pair.rows[side].start
            logits = np.array(guide(mx.array(ids[None]), alpha=mx.array(alpha[number])))[0].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected = sum(logprobs[t - 1, ids[t]] for t in range(start, len(ids)))
            assert scores[side, number] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_does_more_after_its_output_layer_is_run_whole() -> None:
    model: Any = tiny_model("llama")
    whole = type(model).__call__

    class Capped(type(model)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
            return 2 * mx.tanh(whole(self, *args, **kwargs) / 2)

    model.__class__ = Capped
    attach(model, PBLoRAConfig(objectives=("a",)))
    scorer = ResponseScorer(model, 1)
    assert scorer.trunk_and_head is None
    assert scorer(make_batch(unrelated_pairs()), mx.array([1.0])).shape == (2, 3)


SHARING = ("llama", "qwen2", "gemma", "gemma3_text", "phi3", "mixtral")
EVEN = [(20, 5, 5)] * 3
UNEVEN = [(24, 3, 6), (9, 5, 1), (17, 2, 2)]
Gradients = tuple[float, dict[str, np.ndarray]]


def adapted(family: str, bits: int | None = None, **changes: Any) -> nn.Module:
    model = tiny_model(family, bits=bits, **changes)
    attach(model, PBLoRAConfig(objectives=("a", "b"), target_modules=targets(family, model)))
    randomise(model, size=0.1)
    return model


def value_and_grad(scorer: ResponseScorer, batch: Batch) -> Gradients:
    alpha = mx.array([[1, 0], [0.5, 0.5], [0.1, 0.9]], mx.float32)

    def loss() -> mx.array:
        beta = mx.array([0.1, 0.1])
        return preference_loss(scorer(batch, alpha), batch.preferred, batch.labelled, alpha, beta).total

    value, grads = nn.value_and_grad(scorer.model, loss)()
    return value.item(), {name: np.array(grad, np.float64) for name, grad in tree_flatten(grads)}


def error(ours: Gradients, expected: Gradients) -> float:
    """Largest difference of a gradient, relative to the largest number of its tensor."""
    assert ours[0] == pytest.approx(expected[0], rel=1e-5)
    return max(float(np.abs(ours[1][name] - g).max() / np.abs(g).max()) for name, g in expected[1].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_share(family: str) -> None:
    model = adapted(family)
    assert ResponseScorer(model, 2).shares == (family in SHARING)
    assert not ResponseScorer(model, 2, share=False).shares


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="double precision is for the CPU")
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN])
@pytest.mark.parametrize("family", [family for family in SHARING if family != "mixtral"])
def test_it_is_exact(family: str, sizes: list[tuple[int, int, int]]) -> None:
    """In double precision, so that what is left is a matter of the method and not of rounding.

    The windows of gemma3_text (8 tokens) are shorter than the prompts; MLX has no experts in double precision.
    """
    model = adapted(family)
    batch = make_batch(random_pairs(*sizes))
    shared, rows = ResponseScorer(model, 2), ResponseScorer(model, 2, share=False)
    assert shared.pack(batch).prefixes.size
    model.set_dtype(mx.float64)
    assert error(value_and_grad(shared, batch), value_and_grad(rows, batch)) < 2e-6


@pytest.mark.parametrize(("family", "bits"), [("llama", None), ("llama", 4), ("mixtral", None)])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN])
def test_gradients_in_single_precision(family: str, bits: int | None, sizes: list[tuple[int, int, int]]) -> None:
    model = adapted(family, bits)
    batch = make_batch(random_pairs(*sizes))
    shared, rows = ResponseScorer(model, 2), ResponseScorer(model, 2, share=False)
    assert error(value_and_grad(shared, batch), value_and_grad(rows, batch)) < 1e-5


def test_a_joined_boundary_an_alike_beginning_and_no_common_token() -> None:
    """The pairs share less than the prompt, more than the prompt, and nothing."""
    joined, alike, apart = random_pairs((30, 4, 4), (24, 4, 4), (9, 4, 4))
    first, second = joined.rows
    first.ids[first.start - 1] = (first.ids[first.start - 1] + 1) % VOCABULARY
    joined = TokenPair((TokenRow(first.ids, first.start - 1), second), joined.preferred, "x")
    alike.rows[1].ids[24:26] = alike.rows[0].ids[24:26]
    apart.rows[1].ids[0] = (apart.rows[0].ids[0] + 1) % VOCABULARY
    batch = make_batch([joined, alike, apart])
    model = adapted("llama")
    shared, rows = ResponseScorer(model, 2), ResponseScorer(model, 2, share=False)
    assert shared.pack(batch).lengths == (29, 26, 0)
    assert error(value_and_grad(shared, batch), value_and_grad(rows, batch)) < 1e-5


def test_a_prefix_may_be_all_there_is() -> None:
    """Responses of one token are predicted from the prefix alone."""
    model = adapted("llama")
    batch = make_batch(random_pairs((12, 1, 1), (20, 1, 1), (15, 1, 1)))
    shared, rows = ResponseScorer(model, 2), ResponseScorer(model, 2, share=False)
    assert shared.pack(batch).inputs.size == 0
    assert error(value_and_grad(shared, batch), value_and_grad(rows, batch)) < 1e-5


def test_a_model_that_ignores_its_caches_positions_is_found_out() -> None:
    model: Any = adapted("llama")
    for layer in model.layers:
        rope = layer.self_attn.rope
        layer.self_attn.rope = lambda x, offset=0, rope=rope: rope(x)
    assert not ResponseScorer(model, 2).shares


def test_a_model_with_other_caches_does_not_share() -> None:
    model: Any = adapted("llama")
    kind = type(model)
    model.__class__ = type("Recurrent", (kind,), {"make_cache": lambda self: [object() for _ in self.layers]})
    assert not ResponseScorer(model, 2).shares


HIDDEN = 64


def output_layers() -> dict[str, Any]:
    mx.random.seed(0)
    plain, biased = nn.Linear(HIDDEN, VOCABULARY, bias=False), nn.Linear(HIDDEN, VOCABULARY)
    tied = nn.Embedding(VOCABULARY, HIDDEN)
    quantised = {f"{bits} bits": nn.QuantizedLinear.from_linear(plain, 32, bits) for bits in (2, 4, 8)}
    tied_quantised = nn.QuantizedEmbedding.from_embedding(tied, 32, 4)
    return {
        "plain": plain,
        "bias": biased,
        "tied": tied.as_linear,
        "tied, 4 bits": tied_quantised.as_linear,
    } | quantised


@pytest.mark.parametrize("name", output_layers().keys())
@pytest.mark.parametrize("tokens", [1, 7, 8, 21])
@pytest.mark.parametrize("score", [chunked_logprobs, chunked_logprobs_with_grad])
def test_values_and_gradients_are_those_of_all_logits_at_once(name: str, tokens: int, score: Any) -> None:
    """Chunks of 8, each token with its own weight in the sum."""
    layer = output_layers()[name]
    hidden, targets = mx.random.normal((tokens, HIDDEN)), mx.random.randint(0, VOCABULARY, (tokens,))
    weights = mx.random.normal((tokens,))

    def total(hidden: mx.array, chunked: bool) -> mx.array:
        logprobs = score(layer, hidden, targets, 8) if chunked else target_logprobs(layer(hidden), targets)
        return (weights * logprobs).sum()

    value, slope = mx.value_and_grad(total)(hidden, True)
    expected_value, expected_slope = mx.value_and_grad(total)(hidden, False)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5, abs=1e-5)
    largest = np.abs(np.array(expected_slope)).max()
    np.testing.assert_allclose(np.array(slope), np.array(expected_slope), rtol=0, atol=1e-5 * largest)


def test_a_gradient_by_hand() -> None:
    """W = [[0], [ln 3]], h = 1: p = (1/4, 3/4), log p(1) = ln 3/4, d log p / d h = ln 3 − 3/4 · ln 3 = ln 3 / 4."""
    layer = nn.Linear(1, 2, bias=False)
    layer.weight = mx.log(mx.array([[1.0], [3.0]]))
    value, slope = mx.value_and_grad(lambda h: chunked_logprobs_with_grad(layer, h, mx.array([1])).sum())(
        mx.ones((1, 1))
    )
    assert value.item() == pytest.approx(np.log(3 / 4))
    assert slope.item() == pytest.approx(np.log(3) / 4)


@pytest.mark.parametrize("score", [chunked_logprobs, chunked_logprobs_with_grad])
def test_memory_does_not_grow_with_the_tokens(score: Any) -> None:
    """128 chunks of 8 tokens take what 16 take, which is far from the memory of 16 chunks of logits and slopes."""
    vocabulary = 20_000
    layer = nn.Linear(8, vocabulary, bias=False)
    mx.eval(layer.parameters())

    def peak(tokens: int) -> int:
        hidden, targets = mx.random.normal((tokens, 8)), mx.random.randint(0, vocabulary, (tokens,))
        mx.eval(hidden, targets)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        if score is chunked_logprobs:
            mx.eval(score(layer, hidden, targets, 8))
        else:
            mx.eval(mx.grad(lambda h: score(layer, h, targets, 8).sum())(hidden))
        return mx.get_peak_memory() - before

    assert peak(1024) < 1.5 * peak(128) < 128 * 8 * vocabulary


def test_the_distance_of_the_corners_by_hand() -> None:
    """The mean of |log p| differences over response tokens, between those two corners that are furthest apart."""
    model: Any = tiny_model("llama")
    config = PBLoRAConfig(objectives=("a", "b", "c"), target_modules=targets("llama", model))
    attach(model, config)
    scorer = ResponseScorer(model, 3)
    batches = [make_batch(unrelated_pairs()), make_batch(unrelated_pairs(2))]
    assert corner_distance(scorer, batches, 3) == 0, "B is zero at first"
    randomise(model)
    guide = Guide(model, config)
    apart = np.zeros((3, 3))
    tokens = 0
    for pair in [*unrelated_pairs(), *unrelated_pairs(2)]:
        for row in pair.rows:
            at = []
            for corner in np.eye(3, dtype=np.float32):
                logits = np.array(guide(mx.array(row.ids[None]), alpha=mx.array(corner)))[0].astype(np.float64)
                logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                at.append([logprobs[t - 1, row.ids[t]] for t in range(row.start, len(row.ids))])
            apart += np.abs(np.array(at)[:, None] - np.array(at)[None]).sum(-1)
            tokens += len(row.ids) - row.start
    assert corner_distance(scorer, batches, 3) == pytest.approx(apart.max() / tokens, rel=1e-4)
    assert not model.training


def test_one_objective_has_no_corners_to_compare() -> None:
    model: Any = tiny_model("llama")
    attach(model, PBLoRAConfig(objectives=("a",), target_modules=targets("llama", model)))
    assert corner_distance(ResponseScorer(model, 1), [make_batch(unrelated_pairs())], 1) is None
