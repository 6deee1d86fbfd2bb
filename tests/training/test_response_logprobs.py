from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import FAMILIES, VOCABULARY, randomise, targets, tiny_model

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.guidance.guide import Guide
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training.batching import make_batch
from parm_mlx.training.response_logprobs import ResponseScorer


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
    assert (scorer.parts is not None) == (family in SPLIT)
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
    assert scorer.parts is None
    assert scorer(make_batch(unrelated_pairs()), mx.array([1.0])).shape == (2, 3)
