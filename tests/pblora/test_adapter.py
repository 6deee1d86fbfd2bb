import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tiny import FAMILIES, OBJECTIVES, TARGETS, tiny_guide, tiny_model

from parm_mlx.errors import AdapterError
from parm_mlx.pblora import PBLoRAConfig, adapter_tensors, attach, load_into, read_adapter, save_adapter
from parm_mlx.pblora.targets import check_rank, default_targets, find_targets

CONFIG = PBLoRAConfig(
    objectives=OBJECTIVES, r1=2, r2=3, base_model="base", objective_betas=(0.1, 0.2), training={"seed": 1}
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model()
    attach(model, CONFIG)
    save_adapter(tmp_path, CONFIG, adapter_tensors(model))
    return tmp_path


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - TARGETS.keys()))
def test_the_default_targets_of_every_family(family: str) -> None:
    expected = {"phi3": ("qkv_proj",), "gpt_neox": ("query_key_value",), "gpt2": ("c_attn",)}
    model = tiny_model(family)
    assert default_targets(model) == expected.get(family, ("q_proj", "k_proj", "v_proj"))
    config = PBLoRAConfig(objectives=OBJECTIVES, target_modules=default_targets(model))
    names = attach(model, config)
    assert len(names) == len(model.layers) * len(config.target_modules)
    trainable = {name.rsplit(".", 1)[-1] for name, _ in tree_flatten(model.trainable_parameters())}
    assert trainable == {"a", "b", "w1", "w2"}


def test_only_the_adapter_is_trainable_on_a_quantised_model() -> None:
    model = tiny_model(bits=4)
    attach(model, CONFIG)
    assert {name.rsplit(".", 1)[-1] for name, _ in tree_flatten(model.trainable_parameters())} == {"a", "b", "w1", "w2"}


def test_an_adapter_comes_back_as_it_was(tmp_path: Path) -> None:
    guide = tiny_guide()
    save_adapter(tmp_path, guide.config, adapter_tensors(guide.model))
    config, tensors = read_adapter(tmp_path)
    assert config == guide.config
    model = tiny_model(seed=1)
    load_into(model, config, tensors)
    restored = adapter_tensors(model)
    assert all(mx.array_equal(restored[name], tensor) for name, tensor in adapter_tensors(guide.model).items())
    assert sorted(name for name in restored if ".0." in name and "q_proj" in name) == [
        f"layers.0.self_attn.q_proj.{key}" for key in ("a", "b", "w1", "w2")
    ]
    assert not model.training


def test_settings_come_back_as_they_were(saved: Path) -> None:
    assert read_adapter(saved)[0] == CONFIG
    assert json.loads((saved / "adapter_config.json").read_text())["fine_tune_type"] == "pblora"


def rewrite(saved: Path, change: Any) -> None:
    file = saved / "adapter_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.pop("objectives"), "objectives is missing"),
        (lambda c: c.update(objectives=[]), "objective names must not be empty"),
        (lambda c: c.update(objectives=["a", "a"]), "named twice"),
        (lambda c: c.update(objectives=[1, 2]), "list of names"),
        (lambda c: c.update(r1=-1), "r1 must be a whole number"),
        (lambda c: c.update(r1=True), "r1 must be a whole number"),
        (lambda c: c.update(r1=0, r2=0), "r1 \\+ r2 must be at least 1"),
        (lambda c: c.update(scale=0), "scale must be"),
        (lambda c: c.update(scale=1e30), r"scale must be a number from 1e-06 to 1e\+06, got 1e\+30"),
        (lambda c: c.update(scale=10**200), "scale must be a number from 1e-06 to .*, got 10000.*…$"),
        (lambda c: c.update(r1=10**6), "r1 must be a whole number from 0 to 65536, got 1000000"),
        (lambda c: c.update(objective_betas=[0, 1.0]), "objective_betas must hold"),
        (lambda c: c.update(dropout=1.0), "dropout must be"),
        (lambda c: c.update(target_modules="q_proj"), "target_modules must be a list"),
        (lambda c: c.update(rank=8), "unknown setting 'rank'"),
        (lambda c: c.update(fine_tune_type="lora"), "not a PARM adapter"),
        (lambda c: c.update(format_version=2), "reads version 1"),
        (lambda c: c.update(objective_betas=[1.0]), "objective_betas"),
        (lambda c: c.update(r1=3), "tensor problem"),
        (lambda c: c.update(objectives=["a", "b", "c"], objective_betas=None), "w2 has shape"),
    ],
)
def test_wrong_settings_are_refused(saved: Path, change: Any, reason: str) -> None:
    rewrite(saved, change)
    with pytest.raises(AdapterError, match=reason):
        read_adapter(saved)


def test_missing_and_broken_files_are_refused(saved: Path) -> None:
    tensors, config = saved / "adapters.safetensors", saved / "adapter_config.json"
    content = tensors.read_bytes()
    tensors.write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match="not a readable safetensors file"):
        read_adapter(saved)
    tensors.write_bytes(content.replace(b"layers", b"la\xffers", 1))
    with pytest.raises(AdapterError, match=r"adapters\.safetensors is not a readable safetensors file"):
        read_adapter(saved)
    tensors.unlink()
    (saved / "adapters.bin").write_bytes(b"pickle")
    with pytest.raises(
        AdapterError, match=r"adapters.safetensors is missing; pickled weights \(adapters.bin\) are refused"
    ):
        read_adapter(saved)
    config.write_text("{")
    with pytest.raises(AdapterError, match="not readable JSON"):
        read_adapter(saved)
    config.write_text("[]")
    with pytest.raises(AdapterError, match="must hold a JSON object"):
        read_adapter(saved)
    config.unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        read_adapter(saved)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(saved: Path, number: float) -> None:
    config, tensors = read_adapter(saved)
    for name in ("layers.1.self_attn.q_proj.w2", "layers.0.self_attn.v_proj.a"):
        tensors[name] = mx.concatenate([tensors[name][:-1], mx.full((1, tensors[name].shape[1]), number)])
    save_adapter(saved, config, tensors)
    with pytest.raises(AdapterError) as caught:
        read_adapter(saved)
    assert "the adapter holds numbers that are not finite: layers.0.self_attn.v_proj, layers.1.self_attn.q_proj" in str(
        caught.value
    )


def test_every_tensor_problem_is_listed_at_once(saved: Path) -> None:
    _, tensors = read_adapter(saved)
    del tensors["layers.0.self_attn.q_proj.w1"]
    tensors["layers.0.self_attn.q_proj.lora_a"] = mx.zeros((1, 1))
    tensors["layers.1.self_attn.v_proj.b"] = mx.zeros((1, 1))
    tensors["layers.1.self_attn.v_proj.a"] = tensors["layers.1.self_attn.v_proj.a"].astype(mx.int32)
    model = tiny_model()
    with pytest.raises(AdapterError) as caught:
        load_into(model, CONFIG, tensors)
    for part in (
        "4 tensor problem(s)",
        "unknown tensor layers.0.self_attn.q_proj.lora_a",
        "missing tensor layers.0.self_attn.q_proj.w1",
        "layers.1.self_attn.v_proj.b has shape (1, 1), not (32, 5)",
        "layers.1.self_attn.v_proj.a holds",
    ):
        assert part in str(caught.value)
    assert all(type(layer.self_attn.q_proj) is nn.Linear for layer in model.layers)


def test_an_adapter_of_another_backbone_is_refused(saved: Path) -> None:
    config, tensors = read_adapter(saved)
    with pytest.raises(AdapterError, match="does not fit the model"):
        load_into(tiny_model(hidden_size=32), config, tensors)
    with pytest.raises(
        AdapterError, match=r"named q_proj, k_proj, v_proj; linear layers in its blocks: attention\.query_key_value"
    ):
        load_into(tiny_model("gpt_neox"), config, tensors)


def test_targets_that_match_nothing_list_the_candidates() -> None:
    with pytest.raises(
        AdapterError,
        match=r"no layer of the model is named qq; linear layers in its blocks: self_attn\.q_proj, .*mlp\.gate_proj",
    ):
        find_targets(tiny_model(), ("q_proj", "qq"))


def test_targets_can_be_named_by_a_longer_path() -> None:
    assert [t.name for t in find_targets(tiny_model(), ("self_attn.q_proj",))] == [
        f"layers.{i}.self_attn.q_proj" for i in range(2)
    ]


def test_mixture_of_experts_layers_are_refused() -> None:
    model = tiny_model("mixtral")
    assert default_targets(model) == ("q_proj", "k_proj", "v_proj")
    with pytest.raises(AdapterError, match="mixture-of-experts"):
        find_targets(model, ("gate_proj",))


def test_a_chat_template_is_recorded_only_if_there_is_one() -> None:
    def read(config: PBLoRAConfig, **changes: Any) -> PBLoRAConfig:
        return PBLoRAConfig.from_dict(json.loads(json.dumps(config.to_dict() | changes)))

    plain = PBLoRAConfig(objectives=("a", "b"))
    assert "chat_template" not in plain.to_dict()
    assert read(plain).chat_template is None
    named = PBLoRAConfig(objectives=("a", "b"), chat_template="beaver")
    assert read(named) == named
    with pytest.raises(AdapterError, match="chat_template must be a name, got 3"):
        read(plain, chat_template=3)


def test_a_rank_larger_than_a_layer_is_refused() -> None:
    """The value projection of the tiny model has 32 outputs, half of the query projection's 64."""
    targets = find_targets(tiny_model(), ("q_proj", "v_proj"))
    check_rank(PBLoRAConfig(objectives=("a", "b"), r1=28, r2=4), targets)
    with pytest.raises(AdapterError, match=r"rank r1 \+ r2 = 33 is larger than layers\.0\.self_attn\.v_proj allows"):
        check_rank(PBLoRAConfig(objectives=("a", "b"), r1=28, r2=5), targets)
