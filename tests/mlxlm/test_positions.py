"""Rotary positions as old and new configs state them: computed alike, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from parm_mlx.convert.detect import detect
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import load_weights_and_tokenizer, save_like

IDS = mx.array([[5 + (7 * i) % 80 for i in range(40)]])
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
QWEN3 = {"head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": False}
GEMMA3 = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
LOCAL = {"rope_type": "default", "rope_theta": 300.0}

Write = Callable[..., Path]


def kinds(scaling: dict[str, Any]) -> dict[str, Any]:
    return {"full_attention": {"rope_theta": 5e4, **scaling}, "sliding_attention": LOCAL}


@pytest.mark.parametrize(
    ("family", "common", "old", "new"),
    [
        ("llama", {}, {"rope_theta": 700.0, "rope_scaling": LLAMA3}, {"rope_theta": 700.0, **LLAMA3}),
        (
            "llama",
            {"max_position_embeddings": 64},
            {"rope_theta": 700.0, "rope_scaling": YARN},
            {"rope_theta": 700.0, **YARN},
        ),
        ("qwen2", {}, {"rope_theta": 700.0}, {"rope_theta": 700.0, "rope_type": "default"}),
        ("qwen2", {}, {"rope_theta": 700.0, "rope_scaling": LINEAR}, {"rope_theta": 700.0, **LINEAR}),
        ("mixtral", {}, {"rope_theta": 700.0}, {"rope_theta": 700.0, "rope_type": "default"}),
        (
            "gpt_neox",
            {},
            {"rotary_emb_base": 700, "rotary_pct": 0.5},
            {"rope_theta": 700, "partial_rotary_factor": 0.5},
        ),
        (
            "gemma3_text",
            GEMMA3,
            {"rope_theta": 5e4, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
            kinds(LINEAR),
        ),
        ("gemma3_text", GEMMA3, {"rope_theta": 5e4, "rope_local_base_freq": 300.0}, kinds({"rope_type": "default"})),
    ],
)
def test_new_configs_compute_as_old_ones(
    write_model: Write, tmp_path: Path, family: str, common: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    """Loaded, converted, quantised and written again; by us and by plain mlx-lm."""
    before = write_model("before", family, config={**common, **old})
    after = write_model("after", family, config={**common, "rope_parameters": new})
    without = write_model("without", family, config=common)
    remove = [key for key in ("rotary_emb_base", "rotary_pct") if family == "gpt_neox"]
    if remove:
        content = json.loads((after / "config.json").read_text())
        (after / "config.json").write_text(json.dumps({k: v for k, v in content.items() if k not in remove}))
    expected = load_weights_and_tokenizer(before)[0](IDS)
    model, _ = load_weights_and_tokenizer(after)
    assert mx.array_equal(model(IDS), expected)
    assert not mx.allclose(load_weights_and_tokenizer(without)[0](IDS), expected, atol=1e-3)
    convert_model(detect(after), tmp_path / "out", note=print)
    (tmp_path / "like").mkdir()
    save_like(tmp_path / "like", model, after)
    for name in ("out", "like"):
        assert mx.array_equal(mlx_lm.load(str(tmp_path / name))[0](IDS), expected)
        assert mx.array_equal(load_weights_and_tokenizer(tmp_path / name)[0](IDS), expected)
    for path in (before, after):
        convert_model(detect(path), tmp_path / f"q-{path.name}", quantization=Quantization(group_size=32), note=print)
    quantised = [mlx_lm.load(str(tmp_path / f"q-{path.name}"))[0](IDS) for path in (before, after)]
    assert mx.array_equal(*quantised)


def test_positions_of_the_text_model_among_several(write_model: Write, tmp_path: Path) -> None:
    """Llama 4: the parameters are those of text_config."""
    plain = write_model("plain", "llama4")
    text = json.loads((plain / "config.json").read_text())["text_config"]
    bare = {key: value for key, value in text.items() if key not in ("rope_theta", "rope_scaling")}
    older = {**bare, "rope_theta": 700.0, "rope_scaling": LLAMA3}
    newer = {**bare, "rope_parameters": {"rope_theta": 700.0, **LLAMA3}}
    before = write_model("before", "llama4", config={"text_config": older})
    after = write_model("after", "llama4", config={"text_config": newer})
    expected = load_weights_and_tokenizer(before)[0](IDS[:, :6])
    assert mx.array_equal(load_weights_and_tokenizer(after)[0](IDS[:, :6]), expected)
    assert not mx.allclose(load_weights_and_tokenizer(plain)[0](IDS[:, :6]), expected, atol=1e-3)
    convert_model(detect(after), tmp_path / "out", note=print)
    assert mx.array_equal(mlx_lm.load(str(tmp_path / "out"))[0](IDS[:, :6]), expected)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        # Mixtral and GPT-NeoX know no scaling, Gemma 3 none of its local positions.
        ("mixtral", {"rope_parameters": {"rope_theta": 700.0, **YARN}}),
        ("mixtral", {"rope_theta": 700.0, "rope_scaling": LINEAR}),
        ("gpt_neox", {"rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.25, **LINEAR}}),
        ("gemma3_text", {**GEMMA3, "rope_parameters": {**kinds({}), "sliding_attention": {**LOCAL, **LINEAR}}}),
        # Kinds of layers in an order that a pattern does not describe.
        (
            "gemma3_text",
            {**GEMMA3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2, "rope_parameters": kinds({})},
        ),
        # Llama turns whole heads.
        ("llama", {"rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.5}}),
        (
            "llama",
            {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 700.0, **YARN, "attention_factor": 3.0}},
        ),
    ],
)
def test_positions_that_mlx_lm_would_compute_otherwise_are_refused(
    write_model: Write, family: str, config: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match=rf"mlx-lm's {family} does not compute positions as .*rope_"):
        load_weights_and_tokenizer(write_model("m", family, config=config))


def test_an_unknown_scaling_is_refused(write_model: Write) -> None:
    path = write_model("m", "llama", config={"rope_parameters": {"rope_theta": 700.0, "rope_type": "spiral"}})
    with pytest.raises(ModelError, match="Unsupported RoPE type spiral"):
        load_weights_and_tokenizer(path)
