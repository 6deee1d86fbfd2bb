"""Configs: nothing of a model's own is run, formats that are not weights are refused, templates are found."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.convert.detect import detect
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.errors import ModelError
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.mlxlm import (
    config_dtype,
    context_length,
    load_tokenizer_alone,
    load_weights_and_tokenizer,
    save_like,
)

IDS = mx.array([[5, 17, 42, 7, 30]])
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
CODE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Own: pass\nModel = ModelArgs = Own\n"

Write = Callable[..., Path]


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in {**content, **changes}.items() if v is not None}))


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config.json", {"model_file": "own.py"}, "model_file 'own.py' is refused"),
        (
            "config.json",
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}},
            "auto_map is refused: .* no model type 'own'",
        ),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["own.Own", None]}}, "auto_map is refused"),
        ("tokenizer_config.json", {"auto_map": ["own.Own", None]}, "auto_map is refused"),
        ("tokenizer_config.json", {"tokenizer_class": "Own"}, "tokenizer_class 'Own' is refused"),
        ("tokenizer_config.json", {"tool_parser_type": "own"}, "tool_parser_type 'own' is refused"),
        ("tokenizer_config.json", {"tool_parser_type": "../../own"}, "tool_parser_type '../../own' is refused"),
        ("tokenizer_config.json", {"chat_template_type": "own"}, "chat_template_type 'own' is refused"),
    ],
)
def test_code_of_a_model_is_refused_and_never_asked_about(
    write_model: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    changes: dict[str, Any],
    reason: str,
) -> None:
    path = write_model("m")
    (path / "own.py").write_text(CODE)
    edit(path / file, **changes)
    answers = io.StringIO("y\nyes\n")
    monkeypatch.setattr(sys, "stdin", answers)
    for load in (load_weights_and_tokenizer, load_tokenizer_alone):
        with pytest.raises(ModelError, match=reason) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    assert answers.tell() == 0
    assert capsys.readouterr().out == ""
    assert not (path / "ran").exists()


def test_families_that_mlx_lm_has_load_without_the_code_beside_them(write_model: Write, tmp_path: Path) -> None:
    path = write_model("m", config={"auto_map": {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"}})
    (path / "own.py").write_text(CODE)
    convert_model(detect(path), tmp_path / "out", note=print)
    assert not list(tmp_path.rglob("ran"))
    assert not (tmp_path / "out" / "own.py").exists()


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"Received .*weight_scale_inv"),
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq, which mlx-lm does not decode"),
        ({"quant_method": "awq", "bits": 8}, r"quantised by awq \(8 bits, gemm\)"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, r"quantised by awq \(4 bits, gemv\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantised by bitsandbytes"),
        (
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            r"compressed-tensors \(float-quantized\)",
        ),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, r"modelopt \(FP8\)"),
        ({"quant_method": "hqq"}, "quantised by hqq"),
        ({"load_in_4bit": True}, "quantised by None"),
        ("fp8", "must be an object"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_formats_that_mlx_lm_does_not_decode_are_refused(
    write_model: Write, quantization: Any, reason: str, inside: bool
) -> None:
    found = {"quantization_config": quantization}
    scales = {"model.layers.0.mlp.up_proj.weight_scale_inv": mx.ones((1, 1))} if "Received" in reason else None
    path = write_model("m", config={"text_config": found} if inside else found, tensors=scales)
    with pytest.raises(ModelError, match=reason):
        load_weights_and_tokenizer(path)


def test_formats_beside_the_config_count(write_model: Write) -> None:
    path = write_model("m")
    (path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8"}}))
    with pytest.raises(ModelError, match=r"quantised by modelopt \(W4A8\)"):
        load_weights_and_tokenizer(path)


def test_null_is_no_quantisation(write_model: Write, tmp_path: Path) -> None:
    path = write_model("m", config={"quantization_config": None, "quantization": None})
    convert_model(detect(path), tmp_path / "q", quantization=Quantization(group_size=32), note=print)
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]["group_size"] == 32


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({"torch_dtype": "auto"}, None),
        ({"dtype": None}, None),
        ({}, None),
    ],
)
def test_the_type_that_a_config_names(
    write_model: Write, tmp_path: Path, config: dict[str, Any], expected: str | None
) -> None:
    assert config_dtype(config) == expected
    path = write_model("m", config=config)
    convert_model(detect(path), tmp_path / "out", note=print)
    written: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {value.dtype for value in written.values()} == {getattr(mx, expected or "float32")}


def test_double_precision_becomes_float32_and_is_said(write_model: Write, tmp_path: Path) -> None:
    notes: list[str] = []
    convert_model(detect(write_model("m", config={"dtype": "float64"})), tmp_path / "out", note=notes.append)
    assert any("float64" in note for note in notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def inline(path: Path) -> None:
    edit(path / "tokenizer_config.json", chat_template=TEMPLATE)


def jinja(path: Path) -> None:
    (path / "chat_template.jinja").write_text(TEMPLATE)


def beside(path: Path) -> None:
    edit(path / "chat_template.json", chat_template=TEMPLATE)


def named(path: Path) -> None:
    both = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "other"}]
    edit(path / "tokenizer_config.json", chat_template=both)


def named_beside(path: Path) -> None:
    both = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "other"}]
    edit(path / "chat_template.json", chat_template=both)


def folder(path: Path) -> None:
    jinja(path)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("other")


@pytest.mark.parametrize("put", [inline, jinja, beside, named, named_beside, folder])
def test_chat_templates_are_found_and_kept(write_model: Write, tmp_path: Path, put: Callable[[Path], None]) -> None:
    path = write_model("m")
    edit(path / "tokenizer_config.json", chat_template=None)
    put(path)
    model, tokenizer = load_weights_and_tokenizer(path)
    convert_model(detect(path), tmp_path / "out", dtype="float32", note=print)
    convert_model(detect(path), tmp_path / "q", quantization=Quantization(group_size=32), note=print)
    (tmp_path / "like").mkdir()
    save_like(tmp_path / "like", model, path)
    others = [load_tokenizer_alone(tmp_path / name) for name in ("out", "q", "like")]
    for each in (tokenizer, *others):
        assert render_prompt(each, "hi") == "<user>hi<assistant>"
    if put in (named, named_beside, folder):
        for each in (tokenizer, *others):
            assert each.chat_template["rag"] == "other"


def test_named_templates_without_a_default_are_said_in_one_line(write_model: Write) -> None:
    path = write_model("m")
    edit(path / "tokenizer_config.json", chat_template=[{"name": "rag", "template": TEMPLATE}])
    tokenizer = load_tokenizer_alone(path)
    assert render_prompt(tokenizer, "hi", "plain") == "hi"
    with pytest.raises(ModelError, match=r"several chat templates \(rag\), none named default"):
        render_prompt(tokenizer, "hi")


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, 'says hidden_act "gelu", and mlx-lm\'s llama computes "silu"'),
        ("gemma", {"hidden_act": "relu"}, "hidden_act"),
        ("gpt_neox", {"hidden_act": "relu"}, "hidden_act"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
    ],
)
def test_what_a_family_would_leave_undone_is_refused(
    write_model: Write, family: str, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=re.escape(reason)):
        load_weights_and_tokenizer(write_model("m", family, config))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"hidden_act": "silu"}),
        ("qwen2", {"hidden_act": "swish"}),
        ("gemma", {"hidden_act": "gelu"}),
        ("gpt_neox", {"hidden_act": "gelu_fast"}),
        ("gpt2", {"activation_function": "gelu_new"}),
        ("phi3", {"hidden_act": "silu"}),
    ],
)
def test_what_a_family_computes_anyway_may_be_said(write_model: Write, family: str, config: dict[str, Any]) -> None:
    load_weights_and_tokenizer(write_model("m", family, config))


@pytest.mark.parametrize(
    ("family", "config", "length"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16}, 16),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 16}, 256),
        ("qwen2", {"sliding_window": 16}, 256),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"] * 2}, 256),
        ("phi3", {"sliding_window": 16}, 16),
        ("phi3", {"sliding_window": None}, 256),
        ("gemma3_text", {}, 256),
    ],
)
def test_a_window_that_the_family_does_not_have_limits_what_is_read(
    write_model: Write, family: str, config: dict[str, Any], length: int
) -> None:
    path = write_model("m", family, {"max_position_embeddings": 256, **config})
    assert context_length(load_weights_and_tokenizer(path)[0]) == length


def test_a_config_that_transformers_does_not_take_is_one_line(write_model: Write) -> None:
    with pytest.raises(ModelError, match=r"^the tokenizer of .* cannot be loaded: [^\n]*$"):
        load_weights_and_tokenizer(write_model("m", "phi3", {"hidden_act": None}))
