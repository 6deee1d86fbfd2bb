"""Layers and adapters that are cut for several processes: the parts together are the whole."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import tiny_guide, tiny_model

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import cut_blocks, cut_layers, shard_modes
from parm_mlx.pblora import PBLoRAConfig, load_into
from parm_mlx.pblora.adapter import adapted_layers, adapter_tensors
from parm_mlx.pblora.layer import PBLoRALinear, Preferences, conditioned

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WHERE = Path("folder/model")


class Place:
    """One process of so many, as mlx-lm's ``shard`` asks for it; nothing is exchanged."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


def cut_parts(size: int, bits: int | None) -> tuple[dict[str, PBLoRALinear], list[dict[str, PBLoRALinear]]]:
    """The adapted layers of a model by name, and those of each process."""
    guide = tiny_guide(bits=bits, target_modules=TARGETS)
    config: PBLoRAConfig = guide.config
    tensors = adapter_tensors(guide.model)
    parts = []
    for rank in range(size):
        model = tiny_model(seed=1, bits=bits)
        place: Any = Place(rank, size)
        cut_layers(model, place, WHERE)
        load_into(model, config, tensors)
        parts.append(adapted_layers(model))
    return adapted_layers(guide.model), parts


@pytest.mark.parametrize("bits", [None, 4])
def test_parts_of_a_layer_and_of_its_adapter_make_the_whole(bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, group: x)
    whole, parts = cut_parts(2, bits)
    for name, layer in whole.items():
        width = layer.a.shape[1]
        x = mx.random.normal((2, 3, width), key=mx.random.key(1))
        along_inputs = name.endswith(("o_proj", "down_proj"))
        with conditioned(Preferences(mx.array([0.3, 0.7]))):
            expected = layer(x)
            pieces = mx.split(x, 2, axis=-1) if along_inputs else [x, x]
            found = [part[name](piece) for part, piece in zip(parts, pieces, strict=True)]
        together = found[0] + found[1] if along_inputs else mx.concatenate(found, axis=-1)
        np.testing.assert_allclose(together, expected, atol=2e-4, err_msg=name)
        kept = parts[0][name]
        assert kept.a.size + kept.b.size < layer.a.size + layer.b.size
        assert kept.linear.weight.size * 2 == layer.linear.weight.size


def test_the_bias_of_a_layer_that_is_cut_along_its_inputs_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, group: 2 * x)  # of two processes that found the same
    place: Any = Place(0, 2)
    linear = nn.Linear(8, 4)
    linear.weight, linear.bias = mx.ones((4, 8)), mx.full((4,), 5.0)
    cut = nn.ShardedToAllLinear.from_linear(linear, group=place)
    layer = PBLoRALinear(cut, PBLoRAConfig(objectives=("a", "b"), r1=1, r2=1))
    with conditioned(Preferences(mx.array([0.5, 0.5]))):  # B is zero: no update
        assert layer(mx.ones((1, 1, 4))).tolist() == [[[13.0] * 4]]


@pytest.mark.parametrize(("heads", "kept", "size"), [(9, 3, 2), (4, 2, 4), (4, 4, 8)])
def test_heads_that_cannot_be_divided_are_refused(heads: int, kept: int, size: int) -> None:
    model = tiny_model(hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=kept, intermediate_size=64)
    place: Any = Place(0, size)
    with pytest.raises(ModelError, match=f"folder/model cannot be cut for {size} processes"):
        cut_layers(model, place, WHERE)


def test_heads_that_can_be_divided_are() -> None:
    model = tiny_model(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=63)
    place: Any = Place(1, 3)
    cut_layers(model, place, WHERE)
    attention = model.layers[0].self_attn
    assert (attention.n_heads, attention.n_kv_heads) == (3, 1)


def test_a_pipeline_needs_a_block_for_each_process() -> None:
    place: Any = Place(0, 3)
    with pytest.raises(ModelError, match="has 2 layers, too few for a pipeline of 3 processes"):
        cut_blocks(tiny_model("qwen2"), place, WHERE)


def test_the_ways_that_a_family_has_are_named() -> None:
    place: Any = Place(0, 2)
    assert shard_modes(tiny_model("qwen2")) == ("tensor", "pipeline")
    assert shard_modes(tiny_model("llama")) == ("tensor",)
    with pytest.raises(ModelError, match="mlx-lm's gemma cannot be sharded as tensor") as caught:
        cut_layers(tiny_model("gemma"), place, WHERE)
    assert caught.value.hint == "what it can be: apart"
