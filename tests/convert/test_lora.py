"""Plain LoRA adapters as guides with one fixed objective."""

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import tiny_guide

import parm_mlx
from parm_mlx.convert import peft
from parm_mlx.convert.detect import detect
from parm_mlx.convert.run import Request, convert
from parm_mlx.errors import AdapterError, PreferenceError
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.pblora.adapter import Tensors, adapter_tensors, read_adapter, save_adapter
from parm_mlx.pblora.config import PBLoRAConfig

IDS = mx.array([[1, 40, 80, 120, 160]])


def read(path: Path) -> tuple[PBLoRAConfig, Tensors]:
    return peft.read(path, detect(path).config)


def test_settings(lora: Path) -> None:
    config, tensors = peft.read(lora, detect(lora).config, "helpful")
    assert (config.kind, config.objectives, config.r1, config.r2) == ("lora", ("helpful",), 2, 0)
    assert config.scale == 6 / 2
    assert config.dropout == 0.05
    assert config.target_modules == ("v_proj", "q_proj")
    assert len(tensors) == 4 * 2


@pytest.mark.parametrize("rooted", [False, True])
def test_the_guide_is_the_model_with_the_update_added_to_its_weights(
    lora: Path, arm: Path, tmp_path: Path, edit: Callable[..., Path], rooted: bool
) -> None:
    """W + s·B·A with s = lora_alpha / r = 6 / 2, or lora_alpha / √r for rank-stabilised LoRA."""
    convert(Request(str(edit(lora, use_rslora=rooted)), tmp_path / "guide", guide_model=str(arm)), lambda _: None)
    guide, _ = parm_mlx.load_guide(tmp_path / "guide")

    scale = 6 / sqrt(2) if rooted else 3.0
    model, _ = load_weights_and_tokenizer(arm)
    tensors = load_file(lora / "adapter_model.safetensors")
    for number, block in enumerate(model.layers):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{number}.self_attn.{name}"
            update = scale * tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
            layer = block.self_attn[name]
            layer.weight = layer.weight + mx.array(update)

    plain, updated = load_weights_and_tokenizer(arm)[0](IDS), model(IDS)
    assert float(mx.abs(updated - plain).max()) > 0.1
    np.testing.assert_allclose(np.array(guide(IDS, alpha=[1.0])), np.array(updated), atol=2e-5)


@pytest.mark.parametrize("rooted", [False, True])
def test_there_and_back(lora: Path, tmp_path: Path, edit: Callable[..., Path], rooted: bool) -> None:
    edit(lora, use_rslora=rooted)
    convert(Request(str(lora), tmp_path / "ours", objectives="helpful"), lambda _: None)
    assert read_adapter(tmp_path / "ours")[0].kind == "lora"
    convert(Request(str(tmp_path / "ours"), tmp_path / "theirs", to_peft=True), lambda _: None)

    original, again = (load_file(path / "adapter_model.safetensors") for path in (lora, tmp_path / "theirs"))
    assert {name: tensor.tobytes() for name, tensor in original.items()} == {
        name: tensor.tobytes() for name, tensor in again.items()
    }
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (lora, tmp_path / "theirs")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("kind", "r1"), [("svd-lora", 2), ("moslora", 0)])
def test_a_kind_that_peft_does_not_know_is_refused(tmp_path: Path, kind: str, r1: int) -> None:
    guide = tiny_guide(kind=kind, r1=r1, r2=2)
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", guide.config, adapter_tensors(guide.model))
    with pytest.raises(AdapterError, match=f"PEFT has no format for {kind} adapters; only pblora and lora"):
        convert(Request(str(tmp_path / "ours"), tmp_path / "theirs", to_peft=True), lambda _: None)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"peft_version": "0.99", "runtime_config": {"ephemeral_gpu_offload": False}, "use_later": False, "later": None},
        {
            "exclude_modules": ["k_proj"],
            "megatron_core": "megatron.core",
            "qalora_group_size": 16,
            "lora_dropout": None,
        },
    ],
)
def test_settings_that_change_nothing_are_taken(
    lora: Path, edit: Callable[..., Path], settings: dict[str, Any]
) -> None:
    plain, tensors = read(lora)
    config, again = read(edit(lora, **settings))
    assert (config.r1, config.scale) == (plain.r1, plain.scale)
    assert all(mx.array_equal(tensors[name], again[name]) for name in tensors)


def test_numbers_that_are_not_finite_are_refused(lora: Path) -> None:
    tensors = mx.load(str(lora / "adapter_model.safetensors"))
    assert isinstance(tensors, dict)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    tensors[name] = mx.where(mx.arange(64).reshape(32, 2) == 5, mx.inf, tensors[name])
    mx.save_safetensors(str(lora / "adapter_model.safetensors"), tensors)
    with pytest.raises(AdapterError, match=r"numbers that are not finite: layers\.1\.self_attn\.v_proj$"):
        read(lora)


def test_transposed_weights_do_not_change_the_update(lora: Path, edit: Callable[..., Path]) -> None:
    """A and B of a layer whose weight is stored (in, out) have the same shapes: the update acts on x alone."""
    _, plain = read(lora)
    _, transposed = read(edit(lora, fan_in_fan_out=True))
    assert all(mx.array_equal(plain[name], transposed[name]) for name in plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora is True: DoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only': trained biases"),
        ({"lora_bias": True}, "lora_bias is True: trained biases"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is ['embed_tokens']"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is {'q_proj': 8}: every layer must have the same rank"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is {'q_proj': 8}: every layer must have the same lora_alpha"),
        ({"layers_to_transform": [1]}, "layers_to_transform is [1]"),
        ({"target_parameters": ["experts.w"]}, "target_parameters is ['experts.w']"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS': only causal language models can guide"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4': that may change the backbone"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga': that may change the backbone"),
        ({"init_lora_weights": {"name": "olora"}}, "init_lora_weights is {'name': 'olora'}: that may change"),
        ({"init_lora_weights": "of_next_year"}, "init_lora_weights is 'of_next_year': that may change"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config is {'loftq_bits': 4}: what that changes is not known"),
        ({"use_later": 1}, "use_later is 1: what that changes is not known"),
        ({"r": 10**6}, "r must be a whole number from 1 to 65536, got 1000000"),
        ({"lora_alpha": 10**200}, "lora_alpha must be a number from 1e-06 to 1e+06, got 1000"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number from 0 up to but below 1, got 1.0"),
        ({"r": 4}, "lora_A.weight has shape (2, 64), not (4, ·)"),
        ({"r": ..., "lora_alpha": "6"}, "r is missing; lora_alpha must be a number from 1e-06 to 1e+06, got '6'"),
    ],
)
def test_what_would_mean_something_else_is_refused(
    lora: Path, edit: Callable[..., Path], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        read(edit(lora, **settings))
    assert message in str(caught.value)


def test_adapted_embeddings_are_unknown_tensors(lora: Path) -> None:
    file = lora / "adapter_model.safetensors"
    tensors = dict(mx.load(str(file)))
    mx.eval(list(tensors.values()))
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = mx.zeros((2, 512))
    tensors["base_model.model.lm_head.lora_A.weight"] = mx.zeros((2, 64))
    file.unlink()
    mx.save_safetensors(str(file), tensors)
    with pytest.raises(AdapterError) as caught:
        read(lora)
    assert "unknown tensor base_model.model.model.embed_tokens.lora_embedding_A" in str(caught.value)
    assert "unknown tensor base_model.model.lm_head.lora_A.weight" in str(caught.value)


def test_one_objective_has_one_name(lora: Path) -> None:
    with pytest.raises(PreferenceError):
        peft.read(lora, detect(lora).config, "helpful,harmless")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("self_attn.q_proj", "base_model.model.model.layers.0.self_attn.q_proj"),
        ("attn.c_attn", "base_model.model.transformer.h.0.attn.c_attn"),
        ("attention.query_key_value", "base_model.model.gpt_neox.layers.0.attention.query_key_value"),
    ],
)
def test_names_are_those_of_the_family(tmp_path: Path, path: str, expected: str) -> None:
    """An adapter that was trained here does not say how transformers names the blocks of its backbone."""
    config = PBLoRAConfig(("a",), 2, 0, 2.0, 0.0, (path.rpartition(".")[2],), "base", kind="lora")
    tensors = {f"layers.0.{path}.a": mx.ones((2, 4)), f"layers.0.{path}.b": mx.ones((4, 2))}
    peft.write(tmp_path, config, tensors)
    assert set(load_file(tmp_path / peft.TENSOR_FILE)) == {f"{expected}.lora_A.weight", f"{expected}.lora_B.weight"}
