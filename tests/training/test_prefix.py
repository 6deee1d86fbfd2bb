from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import FAMILIES, VOCABULARY, random_pairs, randomise, targets, tiny_model

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training.batching import Batch, make_batch
from parm_mlx.training.loss import preference_loss
from parm_mlx.training.response_logprobs import ResponseScorer

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
    assert shared.layout(batch).prefixes.size
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
    assert shared.layout(batch).lengths == (29, 26, 0)
    assert error(value_and_grad(shared, batch), value_and_grad(rows, batch)) < 1e-5


def test_a_prefix_may_be_all_there_is() -> None:
    """Responses of one token are predicted from the prefix alone."""
    model = adapted("llama")
    batch = make_batch(random_pairs((12, 1, 1), (20, 1, 1), (15, 1, 1)))
    shared, rows = ResponseScorer(model, 2), ResponseScorer(model, 2, share=False)
    assert shared.layout(batch).inputs.size == 0
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
