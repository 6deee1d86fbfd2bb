from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import OBJECTIVES, randomise, tiny_model

from parm_mlx.errors import AdapterError
from parm_mlx.pblora import PBLoRAConfig, adapter_tensors, attach, extend_objectives, load_into, soup
from parm_mlx.pblora.adapter import Tensors, adapted_layers
from parm_mlx.pblora.config import Kind
from parm_mlx.pblora.transform import matched, trainable_numbers


def adapter(**settings: Any) -> tuple[PBLoRAConfig, Tensors]:
    config = PBLoRAConfig(objectives=OBJECTIVES, objective_betas=(0.1, 0.2), **settings)
    model = tiny_model()
    attach(model, config)
    randomise(model)
    return config, adapter_tensors(model)


def deltas(config: PBLoRAConfig, tensors: Tensors, alpha: list[float]) -> list[np.ndarray]:
    model = tiny_model()
    load_into(model, config, tensors)
    return [np.array(layer.delta(mx.array(alpha))) for layer in adapted_layers(model).values()]


@pytest.mark.parametrize("kind", ["pblora", "moslora"])
def test_new_objectives_begin_as_the_balanced_answer(kind: str) -> None:
    """ΔW at the new corner is ΔW at equal weights of the old objectives, and every old α gives what it gave."""
    config, tensors = adapter(kind=kind, r1=2 if kind == "pblora" else 0, r2=3)
    wide, more = extend_objectives(config, tensors, ["humour", "brevity"])
    assert wide.objectives == (*OBJECTIVES, "humour", "brevity")
    assert wide.objective_betas is None
    assert {name: tensor.shape for name, tensor in more.items() if name.endswith("w2")} == {
        name: (4, 9) for name in tensors if name.endswith("w2")
    }
    for old, new in zip(deltas(config, tensors, [0.3, 0.7]), deltas(wide, more, [0.3, 0.7, 0, 0]), strict=True):
        np.testing.assert_array_equal(new, old)
    balanced = deltas(config, tensors, [0.5, 0.5])
    for corner in ([0.0, 0, 1, 0], [0.0, 0, 0, 1]):
        for old, new in zip(balanced, deltas(wide, more, corner), strict=True):
            np.testing.assert_allclose(new, old, atol=1e-6)


def test_no_new_objective_changes_nothing() -> None:
    config, tensors = adapter()
    assert extend_objectives(config, tensors, []) == (config, tensors)


def test_a_plain_lora_keeps_its_tensors() -> None:
    config, tensors = adapter(kind="lora", r1=4, r2=0)
    wide, more = extend_objectives(config, tensors, ["humour"])
    assert (wide.k, more) == (3, tensors)


def test_what_cannot_be_extended() -> None:
    with pytest.raises(AdapterError, match="an svd-lora for helpful, harmless cannot get more objectives"):
        extend_objectives(*adapter(kind="svd-lora", r1=3, r2=2), ["humour"])
    with pytest.raises(AdapterError, match="objective 'helpful' is named twice"):
        extend_objectives(*adapter(), ["helpful"])


def single(name: str, seed: int = 0, **settings: Any) -> tuple[PBLoRAConfig, Tensors]:
    """An adapter of one objective."""
    config = PBLoRAConfig(objectives=(name,), **settings)
    model = tiny_model()
    attach(model, config)
    randomise(model, seed)
    return config, adapter_tensors(model)


def test_a_soup_by_hand() -> None:
    """ΔW = ¼ · 2 · [3; 4] · 5 · [6 7] + ¾ · 10 · [8; 9] · [1 2] at α = (¼, ¾).

    That is 2.5 · [18 21; 24 28] = [45 52.5; 60 70], and 7.5 · [8 16; 9 18] = [60 120; 67.5 135].
    """
    warm = PBLoRAConfig(objectives=("warm",), r1=0, r2=1, scale=2.0)
    brief = PBLoRAConfig(objectives=("brief",), kind="lora", r1=1, r2=0, scale=10.0)
    own = {"l.a": mx.array([[6.0, 7]]), "l.b": mx.array([[3.0], [4]]), "l.w2": mx.array([[5.0]])}
    other = {"l.a": mx.array([[1.0, 2]]), "l.b": mx.array([[8.0], [9]])}
    config, tensors = soup([(warm, own), (brief, other)])
    assert (config.kind, config.objectives, config.r1, config.r2, config.scale) == (
        "pblora",
        ("warm", "brief"),
        0,
        2,
        1,
    )
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "l.a": [[6, 7], [1, 2]],
        "l.b": [[3, 8], [4, 9]],
        "l.w2": [[10, 0, 0, 0], [0, 0, 0, 10]],
    }
    core = 0.25 * tensors["l.w2"][0].reshape(2, 2) + 0.75 * tensors["l.w2"][1].reshape(2, 2)
    assert (tensors["l.b"] @ core @ tensors["l.a"]).tolist() == [[105, 172.5], [127.5, 205]]


def test_a_soup_is_the_weighted_sum_of_its_updates() -> None:
    """Adapters of different kinds, ranks and scales, in a model."""
    several = [
        single("a", 1, r1=2, r2=3, scale=0.5),
        single("b", 2, kind="lora", r1=3, r2=0, scale=2.0),
        single("c", 3, kind="moslora", r1=0, r2=2),
        single("d", 4, kind="svd-lora", r1=1, r2=1),
    ]
    alpha = [0.1, 0.4, 0.2, 0.3]
    config, tensors = soup(several)
    expected = [
        sum(weight * delta for weight, delta in zip(alpha, layer, strict=True))
        for layer in zip(*(deltas(*each, [1.0]) for each in several), strict=True)
    ]
    for found, wanted in zip(deltas(config, tensors, alpha), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_mixed() -> None:
    with pytest.raises(AdapterError, match="one of these has helpful, harmless"):
        soup([single("a"), adapter()])
    with pytest.raises(AdapterError, match="objective 'a' is named twice"):
        soup([single("a"), single("a", 1)])
    with pytest.raises(AdapterError, match="need the same target_modules"):
        soup([single("a"), single("b", target_modules=("q_proj",))])
    with pytest.raises(AdapterError, match="need the same chat_template; they have None for a, beaver for b"):
        soup([single("a"), single("b", chat_template="beaver")])
    config, tensors = single("b")
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.1.")}
    with pytest.raises(AdapterError, match="the adapters for a and b are on different layers"):
        soup([single("a"), (config, fewer)])


def test_matched_numbers_by_hand() -> None:
    """A layer of 10 inputs and 6 outputs; PBLoRA with r1 = r2 = 1, k = 2 has 2 · 16 + 1 + 2 = 35 numbers.

    LoRA of rank 2 has 32; SVD-LoRA of rank 2 has 32 + 0 + 1 = 33. With r1 = r2 = 4 the cores have 16 + 32 = 48 numbers,
    three more ranks: LoRA of rank 11 has 176 = 8 · 16 + 48, and SVD-LoRA of rank 11 has 176 + 9 + 1 = 186, of rank 10
    169, which is nearer. MoSLoRA has 16 r + 3 r² numbers: 19 of rank 1 and 44 of rank 2, nearer to 35; of
    rank 5 155, nearer to 176 than the 204 of rank 6.
    """
    linears = [nn.Linear(10, 6)]
    small, large = (PBLoRAConfig(objectives=OBJECTIVES, r1=r, r2=r) for r in (1, 4))
    found = {
        (config.r1, kind): matched(config, kind, 8.0, linears)  # type: ignore[arg-type]
        for config in (small, large)
        for kind in ("pblora", "lora", "svd-lora", "moslora")
    }
    assert found[1, "pblora"] is small
    ranks = {key: (c.r1, c.r2, trainable_numbers(c, linears)) for key, c in found.items()}
    assert ranks == {
        (1, "pblora"): (1, 1, 35),
        (1, "lora"): (2, 0, 32),
        (1, "svd-lora"): (0, 2, 33),
        (1, "moslora"): (0, 2, 44),
        (4, "pblora"): (4, 4, 176),
        (4, "lora"): (11, 0, 176),
        (4, "svd-lora"): (8, 2, 169),
        (4, "moslora"): (0, 5, 155),
    }
    assert found[4, "lora"].scale == 8 / 11


@pytest.mark.parametrize(("kind", "rank"), [("lora", 8), ("svd-lora", 8), ("moslora", 7)])
def test_as_many_numbers_as_a_large_adapter(kind: Kind, rank: int) -> None:
    """More numbers in all than the highest rank that settings allow: no such rank is tried on the way.

    A layer of PBLoRA has 128 · 8 + 16 + 32 = 1,072; of MoSLoRA 1,043 of rank 7 and 1,216 of rank 8.
    """
    linears = [nn.Linear(64, 64)] * 1000
    config = PBLoRAConfig(objectives=OBJECTIVES, r1=4, r2=4)
    found = matched(config, kind, 8.0, linears)
    assert found.rank == rank
    assert trainable_numbers(found, linears) == pytest.approx(trainable_numbers(config, linears), rel=0.06)
