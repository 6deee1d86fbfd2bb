from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from parm_mlx.training.loss import token_logprobs
from parm_mlx.training.output import chunked_logprobs, chunked_logprobs_with_grad

HIDDEN, VOCABULARY = 64, 96


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
        logprobs = score(layer, hidden, targets, 8) if chunked else token_logprobs(layer(hidden), targets)
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
    """256 chunks of 32 tokens instead of 32 of them: far from 8 times the memory of the logits."""
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

    assert peak(512) < 1.5 * peak(64) < 64 * 8 * vocabulary
