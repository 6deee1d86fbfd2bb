"""GGUF files made of the official backbone and of small random models, converted by the command."""

import json
import os
import re
import shutil
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
    numpy_weights,
    write_gguf,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import qwen2, qwen3

from parm_mlx.convert.gguf_file import Tensor, read_gguf
from parm_mlx.convert.gguf_model import read_model, to_arrays
from parm_mlx.convert.gguf_tokenizer import PRE_TOKENIZERS, write_tokenizer
from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import load_weights_and_tokenizer

Run = Callable[..., tuple[int, str, str]]
PAGE = "Hello, world! It's 2024: 12,345.67 € — naïve façade\n\n  two  spaces\t\ttabs \r\n日本語 😀 e\u0301 ½ 'LL </s>y"


@pytest.fixture(scope="module")
def config(official: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((official / "arm_base" / "config.json").read_text())
    return result


@pytest.fixture(scope="module")
def weights(official: Path) -> Arrays:
    return numpy_weights(official / "arm_base")


@pytest.fixture
def metadata(official: Path, config: dict[str, Any]) -> dict[str, Any]:
    return metadata_of(config) | byte_level_metadata(official / "arm_base")


@pytest.fixture
def write(tmp_path: Path, metadata: dict[str, Any], weights: Arrays, config: dict[str, Any]) -> Callable[..., Path]:
    """Writes the official backbone as a GGUF file; metadata given as ``...`` is left out."""

    def write_file(kind: Any = "F32", name: str = "m.gguf", tensors: Arrays | None = None, **more: Any) -> Path:
        given = metadata | {key.replace("__", "."): value for key, value in more.items()}
        kept = {key: value for key, value in given.items() if value is not ...}
        return write_gguf(tmp_path / name, kept, tensors or llama_tensors(weights, config), kind)

    return write_file


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
        ({"type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 2.0, "original_context_length": 512},
            {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512},
        ),
    ],
)
def test_rope_scaling(write: Callable[..., Path], given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    more = {f"llama__rope__scaling__{key}": value for key, value in given.items()}
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
    ("pre", "expected"),
    [
        ("gpt-2", ["a", " 2024", "'s", "\n\n ", " x"]),
        ("smollm", ["a", " ", "2", "0", "2", "4", "'s", "\n\n ", " x"]),
        ("llama-bpe", ["a", " ", "202", "4", "'s", "\n\n", " ", " x"]),
        ("qwen2", ["a", " ", "2", "0", "2", "4", "'s", "\n\n", " ", " x"]),
        ("tekken", ["a", " ", "2", "0", "2", "4", "'s", "\n\n", " ", " x"]),
    ],
)
def test_texts_are_cut_as_the_name_says(
    write: Callable[..., Path], tmp_path: Path, pre: str, expected: list[str]
) -> None:
    from tokenizers import Tokenizer

    write_tokenizer(read_gguf(write(tokenizer__ggml__pre=pre)), tmp_path)
    text = "a 2024's\n\n  x"
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in words] == expected


def test_every_known_pre_tokenizer_can_be_written(write: Callable[..., Path], tmp_path: Path) -> None:
    for pre in PRE_TOKENIZERS:
        write_tokenizer(read_gguf(write(tokenizer__ggml__pre=pre)), tmp_path)


def test_sentencepiece_gives_the_ids_of_the_library(
    write: Callable[..., Path], weights: Arrays, config: dict[str, Any], tmp_path: Path
) -> None:
    """A BPE model of SentencePiece itself, trained on this repository's words."""
    import sentencepiece

    text = (Path(__file__).read_text() + PAGE).replace("</s>", "")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=512,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    count = library.vocab_size()
    types = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
        for i in range(count)
    ]
    file = write(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre=...,
        tokenizer__ggml__merges=...,
        tokenizer__ggml__tokens=[library.id_to_piece(i) for i in range(count)],
        tokenizer__ggml__scores=[float(library.get_score(i)) for i in range(count)],
        tokenizer__ggml__token_type=types,
    )
    write_tokenizer(read_gguf(file), tmp_path)
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "kept.json")
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(tmp_path / "kept.json"))
    for sample in (PAGE.replace("</s>", "."), " leading", "", "x", "déjà vu 漢字", text[:3000]):
        own = ours.encode(sample).ids
        assert own == [1, *library.encode(sample)]
        assert ours.decode(own) == sample


def test_every_token_that_ends_a_turn_is_known(
    write: Callable[..., Path], metadata: dict[str, Any], tmp_path: Path
) -> None:
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[500], tokens[501] = "<|eot_id|>", "<|im_end|>"
    types = list(metadata["tokenizer.ggml.token_type"])
    types[500] = types[501] = 3
    merges = [m for m in metadata["tokenizer.ggml.merges"] if {*m.split(), m.replace(" ", "")} <= {*tokens}]
    more = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types, "tokenizer__ggml__merges": merges}
    ids = write_tokenizer(read_gguf(write(**more, tokenizer__ggml__eot_token_id=7)), tmp_path)
    assert ids == {"bos_token_id": 1, "eos_token_id": [2, 7, 500, 501]}


def split(file: Path, config: dict[str, Any], tensors: Arrays, metadata: dict[str, Any], count: int = 3) -> list[Path]:
    """The same model in several files; the metadata of the model is in the first."""
    names = list(tensors)
    parts = []
    for i in range(count):
        own = {name: tensors[name] for name in names[i::count]}
        about = {"split.no": i, "split.count": count, "split.tensors.count": len(names)}
        path = file.with_name(f"m-{i + 1:05}-of-{count:05}.gguf")
        parts.append(write_gguf(path, (metadata if i == 0 else {}) | about, own))
    return parts


def test_a_split_file_is_one_model(
    run_cli: Run, metadata: dict[str, Any], weights: Arrays, config: dict[str, Any], official: Path, tmp_path: Path
) -> None:
    """Any part stands for all."""
    parts = split(tmp_path / "m.gguf", config, llama_tensors(weights, config), metadata)
    code, _, err = run_cli("convert", parts[1], "--out", tmp_path / "out")
    assert code == 0, err
    assert mx.array_equal(logits_of(tmp_path / "out"), logits_of(official / "arm_base"))
    parts[2].unlink()
    code, out, err = run_cli("convert", parts[0], "--out", tmp_path / "again")
    assert (code, out) == (2, "")
    assert "m-00003-of-00003.gguf is missing" in err


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


def header(tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GG", "does not begin with GGUF"),
        (header(magic=b"GGML"), "does not begin with GGUF"),
        (b"GGUF", "ends in the middle"),
        (header(version=1), "GGUF of version 1;"),
        (header(version=3 << 24), "(the file is big-endian)"),
        (header(keys=2**63), "it announces 9,223,372,036,854,775,808 entries where 0 bytes are left"),
        (header(tensors=2**64 - 1), "it announces 18,446,744,073,709,551,615 entries"),
        (header(keys=1) + struct.pack("<Q", 2**62) + bytes(8), "entries where 8 bytes are left"),
        (header(keys=1) + key(b"k", 99, b""), "'k' is of type 99, which GGUF does not have"),
        (header(keys=1) + key(b"\xff", 4, bytes(4)), "a key is not UTF-8"),
        (header(keys=2) + key(b"k", 4, bytes(4)) * 2, "the key 'k' occurs twice"),
        (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 8, 2**60)), "entries where 0 bytes are left"),
        (header(keys=1) + key(b"k", 9, struct.pack("<IQ", 9, 1)), "an array of type 9, which is not supported"),
        (header(tensors=1) + key(b"t", 9, bytes(60)), "tensor 't' has 9 dimensions"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 64, 77, 0)), "is of type 77, which is not known here"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 33, 2, 0)), "Q4_0 holds 32 values in a block"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 2**50, 0, 0)), "ends at byte 4,503,599,627,370,5"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 8, 0, 2**63)), "ends at byte 9,223,"),
        (header(tensors=1) + key(b"t", 1, struct.pack("<QIQ", 0, 0, 0)), "has shape (0,)"),
    ],
)
def test_broken_files_are_one_line(run_cli: Run, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    code, out, err = run_cli("convert", tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert [message in line for line in err.splitlines() if line.startswith("error: ")] == [True]


def test_a_file_that_ends_anywhere_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    content = write().read_bytes()
    file = tmp_path / "cut.gguf"
    for size in [*range(0, 400, 7), *range(400, len(content), len(content) // 60)]:
        file.write_bytes(content[:size])
        with pytest.raises(ModelError):
            read_gguf(file)


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_changed_bytes_is_read_or_refused(
    whole: tuple[Path, bytes], changes: list[tuple[int, int]]
) -> None:
    file, content = whole
    changed = bytearray(content)
    for place, byte in changes:
        changed[place % min(len(content), 20_000)] = byte
    file.write_bytes(changed)
    try:
        gguf = read_gguf(file)
        list(read_model(gguf)[1])
        write_tokenizer(gguf, file.parent)
    except ModelError:
        pass


@pytest.fixture(scope="module")
def whole(
    official: Path, config: dict[str, Any], weights: Arrays, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes]:
    """A file to be changed, and its content."""
    file = tmp_path_factory.mktemp("changed") / "m.gguf"
    metadata = metadata_of(config) | byte_level_metadata(official / "arm_base")
    return file, write_gguf(file, metadata, llama_tensors(weights, config), "Q4_0").read_bytes()


def test_a_gguf_file_given_as_a_model_says_what_to_do(run_cli: Run, write: Callable[..., Path], official: Path) -> None:
    code, _, err = run_cli("generate", "--model", write(), "--parm", official / "parm_k2", "--prompt", "x")
    assert code == 2
    assert re.search(r"hint: .*parm-mlx convert .*m\.gguf", err)


def test_a_pipe_is_not_waited_for(run_cli: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    code, _, err = run_cli("convert", tmp_path / "m.gguf", "--out", tmp_path / "out")
    assert code == 2
    assert "is a file, not a directory" in err


def test_a_file_with_a_licence_and_no_name_says_so(run_cli: Run, write: Callable[..., Path], tmp_path: Path) -> None:
    code, _, err = run_cli("convert", write(general__license="mit"), "--out", tmp_path / "out")
    assert code == 0
    assert "its licence is mit" in err
    assert "calls itself" not in err
