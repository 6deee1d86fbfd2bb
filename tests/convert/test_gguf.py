"""Models of GGUF files, made of the official backbone and of small random models, converted by the command."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf_writer import (
    Arrays,
    blocks,
    byte_level_metadata,
    gguf_name,
    interleaved,
    llama_tensors,
    metadata_of,
    write_gguf,
)
from mlx_lm.models import qwen2, qwen3

from parm_mlx.convert.gguf_file import Tensor, read_gguf
from parm_mlx.convert.gguf_model import read_model, to_arrays
from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import load_weights_and_tokenizer

Run = Callable[..., tuple[int, str, str]]

PAGE = "Hello, world! It's 2024: 12,345.67 € — naïve façade\n\n  two  spaces\t\ttabs \r\n日本語 😀 e\u0301 ½ 'LL </s>y"


def logits_of(folder: Path) -> mx.array:
    model, _ = load_weights_and_tokenizer(folder)
    result: mx.array = model(mx.array([[1, 5, 9, 33, 70, 3]]))
    return result.astype(mx.float32)


def test_a_plain_file_is_the_model_that_it_was_made_from(
    run_cli: Run, write: Callable[..., Path], official: Path, tmp_path: Path
) -> None:
    """The rows of q and k are back in their places, and the tokenizer gives the same ids and texts."""
    code, out, err = run_cli("convert", write(), "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "is a GGUF model" in err
    theirs, ours = (
        mx.load(str(official / "arm_base" / "model.safetensors")),
        mx.load(str(tmp_path / "out/model.safetensors")),
    )
    assert theirs.keys() == ours.keys()
    assert all(mx.array_equal(theirs[name], ours[name]) for name in theirs)
    assert mx.array_equal(logits_of(tmp_path / "out"), logits_of(official / "arm_base"))
    tokenizers = [load_weights_and_tokenizer(folder)[1] for folder in (tmp_path / "out", official / "arm_base")]
    mine, reference = (tokenizer.encode(PAGE) for tokenizer in tokenizers)
    assert mine == reference
    assert mine[0] == 1
    assert tokenizers[0].decode(mine) == tokenizers[1].decode(mine)
    assert tokenizers[0].eos_token_ids == {2}


@pytest.mark.parametrize(("kind", "dtype"), [("F16", mx.float16), ("BF16", mx.bfloat16)])
def test_16_bits_stay_as_they_are(
    run_cli: Run, write: Callable[..., Path], weights: Arrays, tmp_path: Path, kind: str, dtype: mx.Dtype
) -> None:
    assert run_cli("convert", write(kind), "--out", tmp_path / "out")[0] == 0
    ours: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for name, array in weights.items():
        expected = mx.array(array).astype(dtype if array.ndim > 1 else mx.float32)
        assert ours[name].dtype == expected.dtype
        assert mx.array_equal(ours[name], expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_repacked_and_mean_the_same_numbers(kind: str) -> None:
    """In float32 d·q + b is exact up to one rounding, for MLX as for llama.cpp."""
    array = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    number = GGMLQuantizationType[kind]
    packed = blocks(array, kind)
    arrays = to_arrays(Tensor(number, (6, 96), packed))
    numbers = mx.dequantize(
        arrays["weight"],
        arrays["scales"].astype(mx.float32),
        arrays["biases"].astype(mx.float32),
        group_size=32,
        bits=8 if kind == "Q8_0" else 4,
    )
    np.testing.assert_allclose(np.array(numbers), dequantize(packed, number), rtol=0, atol=2e-7 * np.abs(array).max())
    assert arrays["scales"].dtype == arrays["biases"].dtype == mx.float16


def test_a_block_by_hand() -> None:
    """Q4_1: scale 0.5, minimum -1. Byte 0 holds value 0 (3) and value 16 (12); the other 30 values are 0.

    0.5 · 3 - 1 = 0.5, 0.5 · 12 - 1 = 5, and 0.5 · 0 - 1 = -1. MLX's first word holds value 0 in its lowest 4 bits, the
    third one value 16.
    """
    block = np.frombuffer(struct.pack("<ee", 0.5, -1) + bytes([0xC3]) + bytes(15), np.uint8).reshape(1, 20)
    arrays = to_arrays(Tensor(GGMLQuantizationType.Q4_1, (1, 32), block))
    assert arrays["weight"].tolist() == [[3, 0, 12, 0]]
    assert (arrays["scales"].item(), arrays["biases"].item()) == (0.5, -1)
    numbers = mx.dequantize(arrays["weight"], arrays["scales"], arrays["biases"], group_size=32, bits=4)[0].tolist()
    assert (numbers[0], numbers[16], set(numbers[1:16] + numbers[17:])) == (0.5, 5, {-1})


def test_layers_keep_their_own_number_of_bits(
    run_cli: Run, write: Callable[..., Path], weights: Arrays, tmp_path: Path
) -> None:
    """The embedding has 8 bits, the output layer none, all others 4, as in files that llama.cpp writes."""

    def kind(name: str) -> str:
        return {"token_embd.weight": "Q8_0", "output.weight": "F16"}.get(name, "Q4_0")

    code, _, err = run_cli("convert", write(kind), "--out", tmp_path / "out")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    model, _ = load_weights_and_tokenizer(tmp_path / "out")
    assert (model.model.embed_tokens.bits, model.model.layers[1].mlp.up_proj.bits) == (8, 4)
    assert not hasattr(model.lm_head, "bits")
    q = weights["model.layers.0.self_attn.q_proj.weight"]
    layer = model.model.layers[0].self_attn.q_proj
    found = np.array(mx.dequantize(layer.weight, layer.scales, layer.biases, 32, 4).astype(mx.float32))
    # A step is an eighth of the largest number of a block; what is stored is off by one step at most.
    assert np.abs(found - q).max() <= np.abs(q).max() / 8 * 1.01


def random_llama(hidden: int = 256) -> tuple[dict[str, Any], Arrays]:
    """One layer whose rows hold whole blocks of 256."""
    rng = np.random.default_rng(1)
    config = {
        "num_hidden_layers": 1,
        "max_position_embeddings": 128,
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 512,
    }
    half = hidden // 2
    shapes = {
        "model.embed_tokens": (512, hidden),
        "model.norm": (hidden,),
        **{f"model.layers.0.{name}": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")},
        **{f"model.layers.0.self_attn.{name}_proj": (half if name in "kv" else hidden, hidden) for name in "qkvo"},
        **{f"model.layers.0.mlp.{name}_proj": (hidden, hidden) for name in ("gate", "up", "down")},
    }
    return config, {f"{k}.weight": rng.normal(0, 0.1, shape).astype(np.float32) for k, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "MXFP4"])
def test_formats_without_a_counterpart_become_float16(run_cli: Run, official: Path, tmp_path: Path, kind: str) -> None:
    config, weights = random_llama()
    metadata = metadata_of(config) | byte_level_metadata(official / "arm_base")
    file = write_gguf(tmp_path / "k.gguf", metadata, llama_tensors(weights, config), kind)
    code, _, err = run_cli("convert", file, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"{kind} has no counterpart in MLX: those weights become float16; -q quantises them" in err
    ours: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    up = ours["model.layers.0.mlp.up_proj.weight"]
    tensor = read_gguf(file).tensors["blk.0.ffn_up.weight"]
    expected = dequantize(tensor.blocks, GGMLQuantizationType[kind]).astype(np.float16)
    assert up.dtype == mx.float16
    assert np.array_equal(np.array(up), expected)
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_q_and_dtype_work_on_plain_files(run_cli: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    code, _, err = run_cli("convert", write("F16"), "--out", tmp_path / "q", "-q", "--q-group-size", 32)
    assert code == 0, err
    assert json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]["bits"] == 4
    code, _, err = run_cli("convert", write("F16"), "--out", tmp_path / "d", "--dtype", "bfloat16")
    assert code == 0, err
    loaded: Any = mx.load(str(tmp_path / "d" / "model.safetensors"))
    assert {array.dtype for array in loaded.values()} == {mx.bfloat16}
    code, _, err = run_cli("convert", write("Q4_0"), "--out", tmp_path / "x", "-q")
    assert code == 2
    assert "quantised already" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families(run_cli: Run, official: Path, tmp_path: Path, family: str) -> None:
    """Qwen's q and k are not reordered; Qwen2 has biases, Qwen3 norms of q and k."""
    config, _ = random_llama(64)
    module = {"qwen2": qwen2, "qwen3": qwen3}[family]
    arguments = config | {"model_type": family, "tie_word_embeddings": True}
    model = module.Model(module.ModelArgs.from_dict(arguments))
    rng = np.random.default_rng(2)
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(model.parameters())
    weights = {name: rng.normal(0, 0.2, array.shape).astype(np.float32) for name, array in flat}
    model.load_weights([(name, mx.array(array)) for name, array in weights.items()])
    metadata = metadata_of(config, family) | byte_level_metadata(official / "arm_base", "qwen2")
    tensors = {gguf_name(name): array for name, array in weights.items()}
    file = write_gguf(tmp_path / "m.gguf", metadata, tensors, architecture=family)
    code, _, err = run_cli("convert", file, "--out", tmp_path / "out")
    assert code == 0, err
    expected = model(mx.array([[1, 5, 9, 33, 70, 3]]))
    assert mx.allclose(logits_of(tmp_path / "out"), expected, rtol=0, atol=1e-6)


def test_biases_of_llama_are_reordered_too(write: Callable[..., Path], weights: Arrays, config: dict[str, Any]) -> None:
    bias = np.arange(64, dtype=np.float32)
    tensors = llama_tensors(weights, config) | {"blk.0.attn_q.bias": interleaved(bias, 4)}
    gguf = read_gguf(write(tensors=tensors))
    found = dict(read_model(gguf)[1])
    assert read_model(gguf)[0]["attention_bias"] is True
    assert [a["bias"].tolist() for n, a in read_model(gguf)[1] if "bias" in a] == [bias.tolist()]
    assert found.keys() >= {"model.layers.0.self_attn.q_proj", "lm_head"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "none"}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"factor": 0.0}, None),
        ({"scale_linear": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"scale_linear": 1.0}, None),
        ({"type": "linear", "scale_linear": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 2.0, "original_context_length": 512},
            {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512},
        ),
    ],
)
def test_rope_scaling(write: Callable[..., Path], given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    more = {f"llama__rope__{'' if key == 'scale_linear' else 'scaling__'}{key}": value for key, value in given.items()}
    assert read_model(read_gguf(write(**more)))[0].get("rope_scaling") == expected


def test_llama_3s_scaling_is_found_in_its_divisors(
    write: Callable[..., Path], weights: Arrays, config: dict[str, Any]
) -> None:
    """Head of 16, base 500,000: wavelengths 2π·500000^(i/8) = 6, 32, 167, 863, 4443, 22911, 118143, 609217.

    Those below 8192/4 keep their frequency (divisor 1), those above 8192 lose a factor of 8. The fifth lies between:
    8192/4442.88 = 1.84385, of the way from 1 to 4 that is s = 0.281283: the divisor is 1 / ((1 - s)/8 + s) = 2.69453.
    """
    divisors = np.array([1, 1, 1, 1, 2.69453, 8, 8, 8], np.float32)
    tensors = llama_tensors(weights, config)
    file = write(tensors=tensors | {"rope_freqs.weight": divisors}, llama__rope__freq_base=500_000.0)
    assert read_model(read_gguf(file))[0]["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    divisors[3] = 2
    file = write(tensors=tensors | {"rope_freqs.weight": divisors}, llama__rope__freq_base=500_000.0)
    with pytest.raises(ModelError, match="does not hold Llama 3's scaling"):
        read_model(read_gguf(file))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"llama__block_count": ...}, "llama.block_count must be a whole number from 1 to 10000, got None"),
        ({"llama__block_count": 10**9}, "llama.block_count must be a whole number"),
        ({"llama__block_count": "2"}, "llama.block_count must be a whole number"),
        ({"llama__attention__head_count": 0}, "llama.attention.head_count must be"),
        ({"llama__attention__head_count_kv": [2, 2]}, "llama.attention.head_count_kv must be"),
        ({"llama__attention__head_count": 3}, "which 3 heads do not divide"),
        ({"llama__rope__freq_base": float("nan")}, "llama.rope.freq_base must be"),
        ({"llama__rope__dimension_count": 8}, "rotates a part of each head only"),
        ({"llama__rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope' cannot be converted"),
        ({"llama__rope__scaling__type": "linear"}, "llama.rope.scaling.factor must be"),
        ({"llama__expert_count": 8}, "is a mixture of experts"),
        ({"llama__feed_forward_length": 100}, "received shape (128, 64) for parameter model.layers.0.mlp.gate_proj"),
        ({"general__alignment": 3}, "general.alignment is 3, not a power of two"),
        ({"tokenizer__ggml__model": "bert"}, "tokenizer 'bert' cannot be converted"),
        ({"tokenizer__ggml__pre": "viking"}, "pre-tokenizer 'viking' is not known here"),
        ({"tokenizer__ggml__pre": ...}, "pre-tokenizer None is not known here"),
        ({"tokenizer__ggml__tokens": ...}, "holds no tokenizer"),
        ({"tokenizer__ggml__tokens": ["a"]}, "tokenizer.ggml.token_type does not fit the 1 tokens"),
        ({"tokenizer__ggml__merges": ...}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer__ggml__merges": ["a"]}, "merge 'a' is not one of two tokens"),
        ({"tokenizer__ggml__eos_token_id": 512}, "tokenizer.ggml.eos_token_id is 512, not one of the 512 tokens"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer.ggml.scores does not fit the 512 tokens"),
        ({"split__count": 2}, "not what they say"),
    ],
)
def test_wrong_metadata_is_one_line(
    run_cli: Run, write: Callable[..., Path], tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    code, out, err = run_cli("convert", write(**more), "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert len(lines := [line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_wrong_tensors_are_one_line(
    run_cli: Run, write: Callable[..., Path], weights: Arrays, config: dict[str, Any], tmp_path: Path
) -> None:
    tensors = llama_tensors(weights, config)
    cases = [
        ({"token_embd.weight": ...}, "token_embd.weight is missing"),
        ({"output_norm.weight": ...}, "model.norm.weight"),
        ({"blk.0.ffn_gate_exps.weight": np.zeros((4, 32), np.float32)}, "'blk.0.ffn_gate_exps.weight' is not one of"),
        ({"blk.7.ffn_up.weight": np.zeros((128, 64), np.float32)}, "layers.7"),
        ({"output_norm.weight": np.full(64, np.inf, np.float32)}, "not finite"),
    ]
    for changes, message in cases:
        kept = {name: array for name, array in (tensors | changes).items() if array is not ...}
        code, out, err = run_cli("convert", write(tensors=kept), "--out", tmp_path / "out")
        assert (code, out) == (2, ""), err
        assert message in err
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_architectures_that_are_not_supported_are_named(run_cli: Run, tmp_path: Path) -> None:
    for architecture in ("mamba", "phi3"):
        file = write_gguf(
            tmp_path / "m.gguf", {}, {"a.weight": np.zeros((2, 32), np.float32)}, architecture=architecture
        )
        code, _, err = run_cli("convert", file, "--out", tmp_path / "out")
        assert code == 2
        assert f"a model of architecture '{architecture}', which cannot be converted" in err
        assert "supported: llama, qwen2, qwen3" in err


def test_types_that_are_not_read_are_named(
    run_cli: Run, write: Callable[..., Path], weights: Arrays, config: dict[str, Any], tmp_path: Path
) -> None:
    config, weights = random_llama()
    file = write(lambda name: "TQ1_0" if "ffn_up" in name else "F32", tensors=llama_tensors(weights, config))
    code, _, err = run_cli("convert", file, "--out", tmp_path / "out")
    assert code == 2
    assert "tensors of type TQ1_0 are not read" in err
    assert "read: F32, F16, BF16, Q4_0, Q4_1, Q8_0" in err


def test_a_gguf_file_given_as_a_model_says_what_to_do(run_cli: Run, write: Callable[..., Path], official: Path) -> None:
    code, _, err = run_cli("generate", "--model", write(), "--parm", official / "parm_k2", "--prompt", "x")
    assert code == 2
    assert re.search(r"hint: .*parm-mlx convert .*m\.gguf", err)


def test_a_file_with_a_licence_and_no_name_says_so(run_cli: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    code, _, err = run_cli("convert", write(general__license="mit"), "--out", tmp_path / "out")
    assert code == 0
    assert "its licence is mit" in err
    assert "calls itself" not in err
