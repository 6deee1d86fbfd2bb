"""Small GGUF files, written with llama.cpp's own package from models of Hugging Face's layout."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """``model.layers.1.mlp.up_proj.weight`` is ``blk.1.ffn_up.weight``."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, number, layer = stem.split(".", 3)
        return f"blk.{number}.{NAMES[layer]}.{suffix}"
    return f"{NAMES[stem]}.{suffix}"


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's order of the rows of q and k: those of the two halves of a head take turns."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama_tensors(weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> Arrays:
    """The tensors of a llama file."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    return {
        gguf_name(name): interleaved(array, heads[part]) if (part := name.split(".")[-2]) in heads else array
        for name, array in weights.items()
    }


def metadata_of(config: Mapping[str, Any], architecture: str = "llama") -> dict[str, Any]:
    """The metadata of a model with such a config.json."""
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": config["head_dim"],
    }
    return {f"{architecture}.{key}": value for key, value in own.items()}


def byte_level_metadata(folder: Path, pre: str = "gpt-2") -> dict[str, Any]:
    """The metadata of a byte-level tokenizer.json."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(vocabulary))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def blocks(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """An array in a format; one that the package does not write gets bytes with small scales, whatever they mean."""
    number = GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        return array.astype({"F32": np.float32, "F16": np.float16}[kind])
    try:
        return quantize(array.astype(np.float32), number)
    except NotImplementedError:
        values, size = GGML_QUANT_SIZES[number]
        shape = (*array.shape[:-1], array.shape[-1] // values * size)
        return np.random.default_rng(0).integers(0, 0x3C, shape, np.uint8)  # no exponent of float16 is large then


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    kind: str | Callable[[str], str] = "F32",
    architecture: str = "llama",
) -> Path:
    """Writes a file; matrices are of a kind, or of one by name, vectors are float32."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        is_list = isinstance(value, list)
        types = [GGUFValueType.get_type(value[0])] if is_list else []
        writer.add_key_value(key, value, GGUFValueType.ARRAY if is_list else GGUFValueType.get_type(value), *types)
    for name, array in tensors.items():
        chosen = kind if isinstance(kind, str) else kind(name)
        chosen = chosen if array.ndim > 1 else "F32"
        own = None if chosen in ("F32", "F16") else GGMLQuantizationType[chosen]
        writer.add_tensor(name, blocks(array, chosen), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numpy_weights(folder: Path) -> Arrays:
    """The weights of a Hugging Face directory, in float32."""
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    return {name: np.array(array.astype(mx.float32)) for name, array in loaded.items()}
