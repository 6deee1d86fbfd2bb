import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.convert.detect import Kind, detect
from parm_mlx.errors import AdapterError, InputError, ModelError


def test_every_kind_is_recognised(
    official: Path, arm: Path, lora: Path, reward_source: Callable[[str], Path], tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "adapter_config.json").write_text('{"fine_tune_type": "pblora"}')
    converted = tmp_path / "converted"
    converted.mkdir()
    (converted / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    (converted / "reward.json").write_text("{}")
    expected = {
        official / "arm_base": Kind.HF_MODEL,
        official / "parm_k2": Kind.PEFT_PBLORA,
        arm: Kind.MLX_MODEL,
        lora: Kind.PEFT_LORA,
        reward_source("llama-1"): Kind.HF_REWARD,
        reward_source("beaver-cost"): Kind.HF_REWARD,
        converted: Kind.MLX_REWARD,
        ours: Kind.PARM,
    }
    assert {path: detect(path).kind for path in expected} == expected


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, ModelError, "neither a model (config.json) nor an adapter (adapter_config.json)"),
        ({"adapter_model.safetensors": ""}, AdapterError, "adapter_config.json is missing"),
        ({"adapter_model.bin": ""}, AdapterError, "adapter_config.json is missing"),
        ({"adapter_config.json": "{"}, AdapterError, "not readable JSON"),
        ({"adapter_config.json": "[1]"}, AdapterError, "must hold a JSON object, not list"),
        ({"adapter_config.json": "{}"}, AdapterError, "names no peft_type"),
        ({"adapter_config.json": '{"peft_type": "IA3"}'}, AdapterError, "peft_type 'IA3' cannot be converted"),
        ({"adapter_config.json": '{"fine_tune_type": "lora"}'}, AdapterError, "fine_tune_type 'lora' cannot"),
        ({"model.safetensors": ""}, ModelError, "config.json is missing"),
        ({"config.json": "{"}, ModelError, "not readable JSON"),
        (
            {"config.json": json.dumps({"architectures": ["LlamaForTokenClassification"]})},
            ModelError,
            "is a LlamaForTokenClassification, neither a causal language model nor a reward model",
        ),
    ],
)
def test_what_cannot_be_recognised_is_named(
    files: dict[str, str], error: type[InputError], message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=re.escape(message)):
        detect(tmp_path)
