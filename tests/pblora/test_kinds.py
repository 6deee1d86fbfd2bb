"""The core matrices of the kinds of adapter that PBLoRA is compared with, and what all kinds have in common."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tiny import OBJECTIVES, tiny_guide, tiny_model

from parm_mlx.errors import AdapterError
from parm_mlx.pblora import PBLoRAConfig, PBLoRALinear, adapter_tensors, attach, load_into, read_adapter, save_adapter
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Preferences, conditioned
from parm_mlx.pblora.transform import fuse_model

KINDS: dict[str, dict[str, Any]] = {
    "pblora": {"kind": "pblora", "r1": 2, "r2": 3},
    "lora": {"kind": "lora", "r1": 3, "r2": 0},
    "svd-lora": {"kind": "svd-lora", "r1": 2, "r2": 2},
    "moslora": {"kind": "moslora", "r1": 0, "r2": 3},
}
TENSORS = {
    "pblora": ["a", "b", "w1", "w2"],
    "lora": ["a", "b"],
    "svd-lora": ["a", "b", "factor", "sigma"],
    "moslora": ["a", "b", "mixer", "w2"],
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def layer_of(settings: dict[str, Any], in_dims: int = 1, out_dims: int = 1) -> PBLoRALinear:
    linear = nn.Linear(in_dims, out_dims, bias=False)
    linear.weight = mx.ones((out_dims, in_dims))
    return PBLoRALinear(linear, PBLoRAConfig(objectives=("a", "b"), scale=2.0, **settings))


def test_lora_by_hand() -> None:
    """A = [2; 3], B = [5 7], s = 2: ΔW = 2 · (5 · 2 + 7 · 3) = 62 at every α, so y = (1 + 62) · x with W = 1."""
    layer = layer_of({"kind": "lora", "r1": 2, "r2": 0})
    layer.a, layer.b = mx.array([[2.0], [3.0]]), mx.array([[5.0, 7.0]])
    for alpha in ([1.0, 0.0], [0.25, 0.75]):
        assert layer.delta(mx.array(alpha)).item() == 62
        with conditioned(Preferences(mx.array(alpha))):
            assert layer(mx.array([[[2.0]]])).item() == 63 * 2


def test_svd_lora_by_hand() -> None:
    """σ = 11, c = 4, α = (1/4, 3/4): M = diag(11, 1, 3).

    A = [2; 3; 1], B = [5 7 10], s = 2: ΔW = 2 · (5 · 11 · 2 + 7 · 1 · 3 + 10 · 3 · 1) = 2 · 161 = 322.
    """
    layer = layer_of({"kind": "svd-lora", "r1": 1, "r2": 2})
    layer.a, layer.b = mx.array([[2.0], [3.0], [1.0]]), mx.array([[5.0, 7.0, 10.0]])
    layer.sigma, layer.factor = mx.array([11.0]), mx.array([4.0])
    alpha = mx.array([0.25, 0.75])
    assert layer.core(alpha[None])[0].tolist() == [[11, 0, 0], [0, 1, 0], [0, 0, 3]]
    assert layer.delta(alpha).item() == 322


def test_moslora_by_hand() -> None:
    """M0 = [1 2; 3 4], W2 = [[8 0 0 4], [0 4 8 0]], α = (1/4, 3/4): M = [1 2; 3 4] + [2 3; 6 1] = [3 5; 9 5].

    A = [2; 3], B = [5 7], s = 2: M A = [6 + 15; 18 + 15] = [21; 33], ΔW = 2 · (5 · 21 + 7 · 33) = 672.
    """
    layer = layer_of({"kind": "moslora", "r1": 0, "r2": 2})
    layer.a, layer.b = mx.array([[2.0], [3.0]]), mx.array([[5.0, 7.0]])
    layer.mixer, layer.w2 = mx.array([[1.0, 2], [3, 4]]), mx.array([[8.0, 0, 0, 4], [0, 4, 8, 0]])
    alpha = mx.array([0.25, 0.75])
    assert layer.core(alpha[None])[0].tolist() == [[3, 5], [9, 5]]
    assert layer.delta(alpha).item() == 672
    with conditioned(Preferences(alpha)):
        assert layer(mx.array([[[2.0]]])).item() == 673 * 2


def test_moslora_starts_in_its_ranges() -> None:
    """r2 = 4, k = 2: M0 in ± 1/√4, W2 in ± 1/√16, A in ± 1/√in; B is zero."""
    layer = layer_of({"kind": "moslora", "r1": 0, "r2": 4}, in_dims=16, out_dims=8)
    assert [layer[key].shape for key in ("a", "b", "mixer", "w2")] == [(4, 16), (8, 4), (4, 4), (2, 16)]
    for key, limit in (("a", 1 / 4), ("mixer", 1 / 2), ("w2", 1 / 4)):
        assert 0.5 * limit < mx.abs(layer[key]).max().item() <= limit
    assert not mx.any(layer.b).item()


@every_kind
def test_a_fresh_adapter_changes_nothing_and_trains_its_tensors_alone(kind: str) -> None:
    model = tiny_model()
    ids = mx.array([[1, 2, 3]])
    plain = model(ids)
    attach(model, PBLoRAConfig(objectives=OBJECTIVES, **KINDS[kind]))
    with conditioned(Preferences(mx.array([0.5, 0.5]))):
        assert mx.array_equal(model(ids), plain)
    names = {name.rsplit(".", 1)[-1] for name, _ in tree_flatten(model.trainable_parameters())}
    assert names == set(TENSORS[kind])


@every_kind
def test_every_row_keeps_its_own_preference_bound_or_not_and_fused(kind: str) -> None:
    guide = tiny_guide(**KINDS[kind])
    ids = mx.array([[1, 2, 3], [4, 5, 6]])
    alphas = mx.array([[1.0, 0.0], [0.3, 0.7]])
    both = guide(ids, alpha=alphas)
    with conditioned(BoundPreferences(guide.adapted, alphas)):
        assert mx.allclose(guide.model(ids), both, atol=1e-4)
    for row in (0, 1):
        assert mx.allclose(guide(ids[row : row + 1], alpha=alphas[row]), both[row : row + 1], atol=1e-4)
    assert bool(mx.allclose(guide(ids, alpha=alphas[0]), guide(ids, alpha=alphas[1]), atol=1e-3)) == (kind == "lora")
    fuse_model(guide.model, (0.3, 0.7))
    assert mx.allclose(guide.model(ids[1:]), both[1:], atol=1e-4)


@every_kind
def test_an_adapter_comes_back_as_it_was_and_loading_is_strict(kind: str, tmp_path: Path) -> None:
    guide = tiny_guide(**KINDS[kind])
    tensors = adapter_tensors(guide.model)
    assert sorted(name.rpartition(".")[2] for name in tensors if "0.self_attn.q_proj" in name) == TENSORS[kind]
    save_adapter(tmp_path, guide.config, tensors)
    config, read = read_adapter(tmp_path)
    assert config == guide.config
    model = tiny_model(seed=1)
    load_into(model, config, read)
    assert all(mx.array_equal(value, tensors[name]) for name, value in adapter_tensors(model).items())

    last = f"layers.1.self_attn.v_proj.{TENSORS[kind][-1]}"
    del tensors[last]
    tensors["layers.0.self_attn.q_proj.w3"] = mx.zeros((1,))
    save_adapter(tmp_path, guide.config, tensors)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    assert f"missing tensor {last}" in str(caught.value)
    assert "unknown tensor layers.0.self_attn.q_proj.w3" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kind": "lora", "r1": 2, "r2": 1}, "r2 of lora must be 0, got 1"),
        ({"kind": "svd-lora", "r1": 2, "r2": 3}, "r2 of svd-lora must be 2, got 3"),
        ({"kind": "moslora", "r1": 2, "r2": 3}, "r1 of moslora must be 0, got 2"),
    ],
)
def test_ranks_that_a_kind_does_not_have(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterError, match=reason):
        PBLoRAConfig(objectives=OBJECTIVES, **settings)
