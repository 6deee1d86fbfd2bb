"""Adapters of the official code to ours and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from parm_mlx.convert import peft
from parm_mlx.convert.detect import detect
from parm_mlx.convert.run import Request, convert
from parm_mlx.errors import AdapterError, InputError, PreferenceError
from parm_mlx.pblora.adapter import Tensors, read_adapter
from parm_mlx.pblora.config import PBLoRAConfig

PREFIX = "base_model.model.model.layers"


def read(path: Path, objectives: str | None = None) -> tuple[PBLoRAConfig, Tensors]:
    return peft.read(path, detect(path).config, objectives)


def change_tensors(path: Path, change: Callable[[dict[str, mx.array]], Any]) -> Path:
    file = path / "adapter_model.safetensors"
    tensors = dict(mx.load(str(file)))
    mx.eval(list(tensors.values()))
    change(tensors)
    file.unlink()
    mx.save_safetensors(str(file), tensors)
    return path


def test_settings_and_names(official: Path) -> None:
    config, tensors = read(official / "parm_k2", "harmless,helpful")

    assert config.objectives == ("harmless", "helpful")
    assert (config.r1, config.r2, config.dropout, config.base_model) == (4, 4, 0.0, "arm_base")
    assert config.scale == 8 / 4
    assert config.target_modules == ("k_proj", "q_proj", "v_proj")
    original = load_file(official / "parm_k2" / "adapter_model.safetensors")
    assert len(tensors) == len(original) == 24
    np.testing.assert_array_equal(
        np.array(tensors["layers.1.self_attn.q_proj.w2"]), original[f"{PREFIX}.1.self_attn.q_proj.pblora_W2"]
    )


def test_there_and_back_gives_the_same_tensors_and_the_same_config(official: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    convert(Request(str(official / "parm_k2"), tmp_path / "ours", objectives="harmless,helpful"), notes.append)
    convert(Request(str(tmp_path / "ours"), tmp_path / "theirs", to_peft=True), notes.append)

    original, again = (load_file(p / "adapter_model.safetensors") for p in (official / "parm_k2", tmp_path / "theirs"))
    assert again.keys() == original.keys()
    for name, tensor in original.items():
        assert again[name].dtype == tensor.dtype == np.float32
        assert again[name].tobytes() == tensor.tobytes()
    configs = [json.loads((p / "adapter_config.json").read_text()) for p in (official / "parm_k2", tmp_path / "theirs")]
    assert configs[0] == configs[1]


def test_an_adapter_trained_here_gets_a_config_with_the_official_settings(official: Path, tmp_path: Path) -> None:
    _, tensors = read(official / "parm_k2")
    config = PBLoRAConfig(("a", "b"), 4, 4, 0.5, 0.05, ("q_proj", "k_proj", "v_proj"), "my-base")
    peft.write(tmp_path, config, tensors)

    content = json.loads((tmp_path / "adapter_config.json").read_text())
    official_settings = json.loads((official / "parm_k2" / "adapter_config.json").read_text())
    assert content.keys() == official_settings.keys()
    expected = {
        "base_model_name_or_path": "my-base",
        "lora_alpha": 2,
        "lora_dropout": 0.05,
        "pref_vec_init": None,
        "target_modules": ["q_proj", "k_proj", "v_proj"],
    }
    assert content == official_settings | expected


def test_a_chat_template_is_recorded(official: Path, tmp_path: Path) -> None:
    convert(Request(str(official / "parm_k2"), tmp_path / "ours", chat_template="beaver"), print)
    assert read_adapter(tmp_path / "ours")[0].chat_template == "beaver"
    assert read(official / "parm_k2")[0].chat_template is None


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        ("parm_k2", {"chat_template": "beavers"}, "beavers"),
        ("arm_base", {"chat_template": "beaver"}, "--chat-template cannot be used here"),
        ("parm", {"chat_template": "beaver", "to_peft": True}, "--chat-template cannot be used with --to peft"),
    ],
)
def test_a_chat_template_that_has_no_place_is_refused(
    official: Path, official_parm: Path, tmp_path: Path, source: str, options: dict[str, Any], reason: str
) -> None:
    path = official_parm if source == "parm" else official / source
    with pytest.raises(InputError, match=reason):
        convert(Request(str(path), tmp_path / "out", **options), print)


def test_objectives_are_numbered_when_nobody_names_them(official: Path) -> None:
    assert read(official / "parm_k2")[0].objectives == ("objective_1", "objective_2")


@pytest.mark.parametrize("names", ["harmless", "a,b,c", "a,a", "a,"])
def test_objectives_must_be_k_different_names(official: Path, names: str) -> None:
    with pytest.raises(PreferenceError):
        read(official / "parm_k2", names)


def split_into_shards(path: Path) -> dict[str, str]:
    file = path / "adapter_model.safetensors"
    tensors = dict(mx.load(str(file)))
    mx.eval(list(tensors.values()))
    file.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:10], names[10:]), 1):
        shard = f"adapter_model-{number:05d}-of-00002.safetensors"
        mx.save_safetensors(str(path / shard), {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (path / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_hold_the_same_adapter(official: Path, parm: Path) -> None:
    split_into_shards(parm)
    whole, sharded = read(official / "parm_k2")[1], read(parm)[1]
    assert whole.keys() == sharded.keys()
    assert all(mx.array_equal(whole[name], sharded[name]) for name in whole)


def test_a_missing_shard_is_named(parm: Path) -> None:
    split_into_shards(parm)
    (parm / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"shard adapter_model-00002-of-00002\.safetensors is missing"):
        read(parm)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {"x": "../../else.safetensors"}}'])
def test_a_broken_index_is_an_error(parm: Path, content: str) -> None:
    split_into_shards(parm)
    (parm / "adapter_model.safetensors.index.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors\.index\.json"):
        read(parm)


def test_other_families_keep_their_own_names(parm: Path, tmp_path: Path) -> None:
    theirs = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
    content = detect(parm).config | {"target_modules": ["query_key_value"]}
    tensors = {
        f"{theirs}.pblora_{name}": mx.ones(shape)
        for name, shape in {"A": (8, 16), "B": (48, 8), "W1": (4, 4), "W2": (2, 16)}.items()
    }
    mx.save_safetensors(str(parm / "adapter_model.safetensors"), tensors)
    config, ours = peft.read(parm, content)
    assert {name.rpartition(".")[0] for name in ours} == {"layers.0.attention.query_key_value"}

    peft.write(tmp_path, config, ours)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()


def test_a_pattern_of_targets_becomes_the_layers_it_matched(parm: Path, edit: Callable[..., Path]) -> None:
    config, _ = read(edit(parm, target_modules=r".*_proj"))
    assert set(config.target_modules) == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}


def test_targets_that_no_layer_uses_are_dropped(parm: Path, edit: Callable[..., Path]) -> None:
    config, _ = read(edit(parm, target_modules=["q_proj", "W_pack", "k_proj", "v_proj"]))
    assert config.target_modules == ("q_proj", "k_proj", "v_proj")


def test_half_precision_is_widened(official: Path, parm: Path) -> None:
    def halve(tensors: dict[str, mx.array]) -> None:
        tensors.update({name: tensor.astype(mx.float16) for name, tensor in tensors.items()})

    _, exact = read(official / "parm_k2")
    _, tensors = read(change_tensors(parm, halve))
    assert all(tensor.dtype == mx.float32 for tensor in tensors.values())
    assert all(mx.array_equal(tensors[name], exact[name].astype(mx.float16)) for name in exact)


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        ({"r1": ..., "obj_num": "two"}, ["r1 is missing", "obj_num must be a whole number from 1 to 10000, got 'two'"]),
        ({"r2": 0}, ["r2 must be a whole number from 1 to 65536, got 0"]),
        ({"lora_alpha": -8}, ["lora_alpha must be a number from 1e-06 to 1e+06, got -8"]),
        ({"obj_num": 10**9}, ["obj_num must be a whole number from 1 to 10000, got 1000000000"]),
        ({"obj_num": 9_999}, ["pblora_W2 has shape (2, 16), not (9999, 16)"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights is 'pissa': that may change the backbone's own weights"]),
        ({"use_rslora": True}, ["use_rslora is True: what that changes is not known here"]),
        ({"lora_dropout": 1}, ["lora_dropout must be a number from 0 up to but below 1, got 1"]),
        ({"bias": "all"}, ["bias is 'all'"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save is ['lm_head']"]),
        ({"layers_to_transform": [0]}, ["layers_to_transform is [0]"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out is True"]),
        ({"target_modules": []}, ["target_modules must be a list of layer names, got []"]),
        ({"target_modules": ["q_proj"]}, ["target_modules lists q_proj, but there are tensors for"]),
        # with r1=3, A, B and W1 of each of the six layers have the wrong shape
        ({"r1": 3}, ["18 tensor problem(s)", "pblora_W1 has shape (4, 4), not (3, 3)", "shape (64, 8), not (·, 7)"]),
    ],
)
def test_wrong_settings_are_all_listed(
    parm: Path, edit: Callable[..., Path], settings: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(AdapterError) as caught:
        read(edit(parm, **settings))
    assert all(problem in str(caught.value) for problem in problems)
    assert str(parm) in str(caught.value)


def test_wrong_tensors_are_all_listed(parm: Path) -> None:
    def spoil(tensors: dict[str, mx.array]) -> None:
        del tensors[f"{PREFIX}.0.self_attn.q_proj.pblora_A"]
        tensors["base_model.model.lm_head.weight"] = mx.zeros((2, 2))
        tensors[f"{PREFIX}.1.self_attn.v_proj.pblora_W2"] = mx.zeros((3, 16))
        tensors[f"{PREFIX}.1.self_attn.v_proj.pblora_W1"] = mx.zeros((4, 4), mx.int32)

    with pytest.raises(AdapterError) as caught:
        read(change_tensors(parm, spoil))
    assert sorted(str(caught.value).splitlines()[1:]) == [
        f"  {PREFIX}.1.self_attn.v_proj.pblora_W1 holds mlx.core.int32, not floating-point numbers",
        f"  {PREFIX}.1.self_attn.v_proj.pblora_W2 has shape (3, 16), not (2, 16)",
        f"  missing tensor {PREFIX}.0.self_attn.q_proj.pblora_A",
        "  unknown tensor base_model.model.lm_head.weight",
    ]


def test_truncated_pickled_and_absent_weights_are_errors(parm: Path) -> None:
    file = parm / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        read(parm)
    file.rename(parm / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"pickled weights \(adapter_model\.bin\)"):
        read(parm)
    (parm / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        read(parm)


def test_the_backbone_is_checked_and_recorded(official: Path, arm: Path, tmp_path: Path) -> None:
    request = Request(str(official / "parm_k2"), tmp_path / "ours", guide_model=str(arm))
    convert(request, lambda _: None)
    reference = read_adapter(tmp_path / "ours")[0].base_model
    assert reference is not None
    assert (tmp_path / "ours" / reference).resolve() == arm.resolve()


def test_a_wrong_backbone_is_refused_with_every_problem(official: Path, tmp_path: Path) -> None:
    request = Request(str(official / "parm_k2"), tmp_path / "ours", guide_model=str(official / "base_lm"))
    with pytest.raises(AdapterError) as caught:
        convert(request, lambda _: None)
    # hidden size 96 where the adapter was made for 64, and a third layer: A and B of 6 layers, 12 tensors missing
    assert "24 tensor problem(s)" in str(caught.value)
    assert "missing tensor layers.2.self_attn.q_proj.a" in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_an_adapter_that_matches_no_layer_is_refused(
    parm: Path, arm: Path, edit: Callable[..., Path], tmp_path: Path
) -> None:
    def to_other_names(tensors: dict[str, mx.array]) -> None:
        for name in list(tensors):
            tensors[name.replace("_proj", "_lin")] = tensors.pop(name)

    change_tensors(edit(parm, target_modules=["q_lin", "k_lin", "v_lin"]), to_other_names)
    with pytest.raises(AdapterError, match=r"no layer of the model is named q_lin, k_lin, v_lin"):
        convert(Request(str(parm), tmp_path / "ours", guide_model=str(arm)), lambda _: None)


def test_ranks_without_a_counterpart_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="r1=4, r2=0"):
        peft.write(tmp_path, PBLoRAConfig(("a", "b"), r1=4, r2=0), {})
