"""Hugging Face models to MLX."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from parm_mlx.convert.detect import detect
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.errors import ConfigError, InputError, ModelError, OutputError
from parm_mlx.mlxlm import load_weights_and_tokenizer

TEXTS = ["Tell me a joke about cats.", "BEGINNING OF CONVERSATION: USER: hi  there\n ASSISTANT:", "naïve ☕ 12.5%"]


def run(source: Path, out: Path, **options: Any) -> list[str]:
    notes: list[str] = []
    convert_model(detect(source), out, note=notes.append, **options)
    return notes


def dtypes(path: Path) -> set[mx.Dtype]:
    model, _ = load_weights_and_tokenizer(path)
    return {value.dtype for _, value in tree_flatten(model.parameters())}


def test_the_converted_model_computes_the_official_logits(official: Path, tmp_path: Path) -> None:
    run(official / "arm_base", tmp_path / "arm", dtype="float32")
    model, _ = load_weights_and_tokenizer(tmp_path / "arm")
    expected = np.load(official / "expected_logits_k2.npz")
    rows = [name.removeprefix("ids_") for name in expected.files if name.startswith("ids_")]
    assert rows
    for row in rows:
        logits = model(mx.array(expected[f"ids_{row}"]).reshape(1, -1))
        np.testing.assert_allclose(np.array(logits)[0], expected[f"base_logits_s{row}"], atol=1e-4)


def test_the_converted_tokenizer_gives_the_same_ids(official: Path, tmp_path: Path) -> None:
    run(official / "arm_base", tmp_path / "arm")
    _, before = load_weights_and_tokenizer(official / "arm_base")
    _, after = load_weights_and_tokenizer(tmp_path / "arm")
    assert [after.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]
    messages = [{"role": "user", "content": "hello"}]
    assert after.apply_chat_template(messages, tokenize=False) == before.apply_chat_template(messages, tokenize=False)
    assert after.eos_token_ids == before.eos_token_ids


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_the_type_is_honoured_and_recorded(
    copied: Callable[[str], Path], edit: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    source = edit(copied("arm_base"), torch_dtype="bfloat16")
    run(source, tmp_path / "out", dtype=name)
    assert dtypes(tmp_path / "out") == {getattr(mx, name)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == name


def test_quantisation(official: Path, tmp_path: Path) -> None:
    notes = run(official / "base_lm", tmp_path / "q", quantization=Quantization("affine", 8, 32))
    assert notes == []
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]["bits"] == 8
    exact, quantised = (load_weights_and_tokenizer(path)[0] for path in (official / "base_lm", tmp_path / "q"))
    weight, layer = exact.layers[2].self_attn.q_proj.weight, quantised.layers[2].self_attn.q_proj
    restored = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=32, bits=8)
    step = weight.reshape(-1, 32).max(axis=1) - weight.reshape(-1, 32).min(axis=1)
    assert float(mx.abs(restored - weight).max()) <= float(step.max()) / 255


def test_a_group_size_that_divides_no_layer_is_refused(official: Path, tmp_path: Path) -> None:
    """arm_base takes 64 or 128 inputs, base_lm 96 or 192: groups of 128 fit some layers and none."""
    with pytest.raises(ModelError, match="in groups of 128: its layers take 96, 192 inputs"):
        run(official / "base_lm", tmp_path / "q", quantization=Quantization(group_size=128))
    assert not (tmp_path / "q").exists()


def test_layers_that_stay_plain_are_counted(official: Path, tmp_path: Path) -> None:
    """64 does not divide 96: of base_lm's layers only the three that take 192 inputs are quantised."""
    notes = run(official / "base_lm", tmp_path / "q", quantization=Quantization())
    assert notes == ["20 of 23 layers stay plain: 64 does not divide their number of inputs"]


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (Quantization("affine", 7), "number of bits 7 is not supported"),
        (Quantization("affine", 4, 48), "group size 48"),
        (Quantization("mxfp4", None, 64), "mxfp4 quantization requires group size 32 but got 64"),
    ],
)
def test_quantisation_that_mlx_does_not_have(
    official: Path, tmp_path: Path, quantization: Quantization, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(official / "arm_base", tmp_path / "q", quantization=quantization)


def test_an_mlx_model_can_be_quantised_once(arm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an MLX model already"):
        run(arm, tmp_path / "same")
    run(arm, tmp_path / "q", quantization=Quantization(group_size=32))
    with pytest.raises(ModelError, match="is quantised already"):
        run(tmp_path / "q", tmp_path / "q2", quantization=Quantization(group_size=32))


def test_sharded_weights(official: Path, copied: Callable[[str], Path], tmp_path: Path) -> None:
    source = copied("arm_base")
    tensors = dict(mx.load(str(source / "model.safetensors")))
    mx.eval(list(tensors.values()))
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:8], "model-00002-of-00002.safetensors": names[8:]}
    for shard, part in shards.items():
        mx.save_safetensors(str(source / shard), {name: tensors[name] for name in part}, metadata={"format": "pt"})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    run(source, tmp_path / "out")
    whole, sharded = (load_weights_and_tokenizer(path)[0] for path in (official / "arm_base", tmp_path / "out"))
    assert mx.array_equal(whole(mx.array([[1, 2, 3]])), sharded(mx.array([[1, 2, 3]])))

    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"incomplete: model-00002-of-00002\.safetensors missing"):
        run(source, tmp_path / "again")


def spoil_truncated(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def spoil_pickled(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def spoil_tokenizer(source: Path) -> None:
    for file in source.glob("*token*"):
        file.unlink()


def spoil_family(source: Path) -> None:
    (source / "config.json").write_text(json.dumps({"model_type": "abacus"}))


def spoil_model_type(source: Path) -> None:
    (source / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_truncated, "cannot be loaded: .*incomplete download"),
        (spoil_pickled, r"holds no model\*\.safetensors \(found pytorch_model\.bin"),
        (spoil_tokenizer, "holds no tokenizer"),
        (spoil_family, "Model type abacus not supported"),
        (spoil_model_type, "model_type"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    copied: Callable[[str], Path], tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    source = copied("arm_base")
    spoil(source)
    with pytest.raises(ModelError, match=message):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(official: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(official / "arm_base", out)
    with pytest.raises(OutputError, match="exists already"):
        run(official / "arm_base", out, dtype="float16")
    assert dtypes(out) == {mx.float32}
    run(official / "arm_base", out, dtype="float16", force=True)
    assert dtypes(out) == {mx.float16}


@pytest.mark.parametrize(
    ("value", "dtype", "reason"), [(float("nan"), None, "not finite"), (7e4, "float16", "float16 cannot")]
)
def test_numbers_that_would_be_lost_are_refused_before_anything_is_written(
    copied: Callable[[str], Path], tmp_path: Path, value: float, dtype: str | None, reason: str
) -> None:
    source = copied("arm_base")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors: Any = mx.load(str(source / "model.safetensors"))
    mx.eval(tensors)
    tensors[name] = mx.full(tensors[name].shape, value)
    mx.save_safetensors(str(source / "model.safetensors"), tensors, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{reason}.*{name}"):
        run(source, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
