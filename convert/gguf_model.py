"""Models of GGUF files: their config and weights as mlx-lm's families have them.

Blocks of Q4_0, Q4_1 and Q8_0 are MLX's affine quantisation in groups of 32 with another order of bits: they are
repacked, not quantised again. Plain types stay as they are. Other formats have no counterpart and become float16.
"""

import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as TensorType
from gguf.quants import dequantize
from numpy.typing import NDArray

from parm_mlx.convert.gguf_file import GGUF, Tensor
from parm_mlx.errors import ModelError
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.ranges import Real, Whole, shown

GROUP = 32
BITS = {TensorType.Q4_0: 4, TensorType.Q4_1: 4, TensorType.Q8_0: 8}
_PLAIN = {TensorType.F32: np.float32, TensorType.F16: np.float16, TensorType.BF16: np.uint16}
_DECODED = (
    *(TensorType.Q5_0, TensorType.Q5_1, TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K),
    *(TensorType.Q6_K, TensorType.IQ4_NL, TensorType.IQ4_XS, TensorType.MXFP4),
)
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_SIZE, _POSITIVE = Whole(1, 2**31 - 1), Real(1e-30, 1e30)
# Llama 3.1's correction of rotary frequencies: GGUF keeps its result alone, these are the numbers that it is made of.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Settings:
    """The numbers of a model in the metadata of a GGUF file, read strictly."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf = gguf
        self.architecture = gguf.metadata.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"{gguf.path} holds a model of architecture {shown(self.architecture)}, which cannot be converted",
                hint=f"supported: {', '.join(ARCHITECTURES)} (Mistral, SmolLM2 and Llama are llama)",
            )

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value of the architecture."""
        return self.gguf.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, limits: Whole | Real, default: Any = None) -> Any:
        """Returns a number; raises a ModelError if it is missing and has no default, or is outside its limits."""
        value = self.get(key, default)
        try:
            if isinstance(value, str | bool | list) or value is None:
                raise ValueError(f"must be {limits}, got {shown(value)}")
            return limits.read(value)
        except ValueError as error:
            raise ModelError(f"{self.gguf.path}: {self.architecture}.{key} {error}") from None


def read_model(gguf: GGUF) -> tuple[dict[str, Any], Iterator[tuple[str, Tensors]], list[str]]:
    """Reads a model of a GGUF file.

    Returns:
        Its config as of an MLX model; for each tensor of the file the layer's name in MLX and the arrays that stand for
        the tensor; and notes for the user.

    Raises:
        ModelError: The architecture is not supported, or a setting or a tensor is missing, unknown or unusable.
    """
    settings = Settings(gguf)
    config, heads = _config(settings)
    if unknown := [name for name in gguf.tensors if name != ROPE_FACTORS and _layer_name(name) is None]:
        raise ModelError(f"{gguf.path}: tensor {unknown[0]!r} is not one of a {settings.architecture} model")
    unread = {kind.name for kind in (tensor.type for tensor in gguf.tensors.values()) if not _is_read(kind)}
    if unread:
        formats = ", ".join(kind.name for kind in (*_PLAIN, *BITS, *_DECODED))
        raise ModelError(
            f"{gguf.path}: tensors of type {', '.join(sorted(unread))} are not read", hint=f"read: {formats}"
        )
    quantised = {name: BITS[t.type] for name, t in gguf.tensors.items() if t.type in BITS and len(t.shape) == 2}
    if quantised:
        config["quantization"] = _quantization(quantised)
        config["quantization_config"] = config["quantization"]
    return config, _weights(gguf, heads if settings.architecture == "llama" else {}), _notes(gguf, bool(quantised))


def _is_read(kind: TensorType) -> bool:
    return kind in _PLAIN or kind in BITS or kind in _DECODED


def _notes(gguf: GGUF, quantised: bool) -> list[str]:
    decoded = sorted({tensor.type.name for tensor in gguf.tensors.values() if tensor.type in _DECODED})
    if not decoded:
        return []
    then = "the other layers stay quantised" if quantised else "-q quantises them again, in MLX's way"
    return [f"{', '.join(decoded)} has no counterpart in MLX: those weights become float16; {then}"]


def _config(settings: Settings) -> tuple[dict[str, Any], dict[str, int]]:
    """The config, and the number of heads whose rows llama.cpp reorders, by the name of the tensor."""
    gguf, number = settings.gguf, settings.number
    if settings.get("expert_count"):
        raise ModelError(f"{gguf.path} is a mixture of experts, which cannot be converted")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{gguf.path}: token_embd.weight is missing: this is not a whole language model")
    vocabulary, hidden = embedding.shape
    heads = number("attention.head_count", _SIZE)
    head_dim = number("attention.key_length", _SIZE, hidden // heads or None)
    if number("rope.dimension_count", _SIZE, head_dim) != head_dim:
        raise ModelError(f"{gguf.path} rotates a part of each head only, which cannot be converted")
    kv_heads = number("attention.head_count_kv", _SIZE, heads)
    config = {
        "model_type": settings.architecture,
        "architectures": [ARCHITECTURES[str(settings.architecture)]],
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count", Whole(1, 10_000)),
        "intermediate_size": number("feed_forward_length", _SIZE),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _short(number("attention.layer_norm_rms_epsilon", _POSITIVE)),
        "vocab_size": vocabulary,
        "rope_theta": _short(number("rope.freq_base", _POSITIVE, 10_000.0)),
        "max_position_embeddings": number("context_length", _SIZE),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": "blk.0.attn_q.bias" in gguf.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in gguf.tensors,
    }
    if scaling := _rope_scaling(settings, head_dim, config["rope_theta"]):
        config["rope_scaling"] = scaling
    return config, {"attn_q": heads, "attn_k": kv_heads}


def _rope_scaling(settings: Settings, head_dim: int, base: float) -> dict[str, Any] | None:
    """The scaling of rotary positions, in mlx-lm's terms."""
    factors = settings.gguf.tensors.get(ROPE_FACTORS)
    older = "rope.scale_linear"  # of files from before the other keys; a factor without a type is linear, too
    key = older if settings.get("rope.scaling.factor") is None and settings.get(older) else "rope.scaling.factor"
    kind = settings.get("rope.scaling.type", "none" if settings.get(key, 0) in (0, 1) else "linear")
    if factors is not None:
        return _llama3_scaling(settings, factors, head_dim, base)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelError(f"{settings.gguf.path}: rope.scaling.type {shown(kind)} cannot be converted")
    scaling: dict[str, Any] = {"type": kind, "factor": _short(settings.number(key, _POSITIVE))}
    if kind == "yarn":
        original = settings.number("rope.scaling.original_context_length", _SIZE)
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3_scaling(settings: Settings, factors: Tensor, head_dim: int, base: float) -> dict[str, Any]:
    """Finds the factor of Llama 3's scaling, and checks that it gives the divisors of the file."""
    if factors.type is not TensorType.F32 or factors.shape != (head_dim // 2,):
        raise ModelError(f"{settings.gguf.path}: {ROPE_FACTORS} does not fit a head of {head_dim}")
    given = factors.blocks.view(np.float32).reshape(-1)
    factor = float(given.max())
    low, high, original = _LLAMA3.values()
    turns = original / (2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(given, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise ModelError(f"{settings.gguf.path}: {ROPE_FACTORS} does not hold Llama 3's scaling, the one that is known")
    return {"rope_type": "llama3", "factor": _short(factor), **_LLAMA3}


def _short(value: float) -> float:
    """A float32 as the shortest decimal that stands for it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _layer_name(name: str) -> str | None:
    """MLX's name of the layer of a tensor, without ``.weight`` or ``.bias``."""
    named = _NAME.fullmatch(name)
    if named is None:
        return None
    if named[1] is None:
        return _OUTER.get(named[2])
    layer = _LAYER.get(named[2])
    return layer and f"model.layers.{int(named[1])}.{layer}"


def _quantization(bits: dict[str, int]) -> dict[str, Any]:
    """mlx-lm's record of quantised layers: the most frequent number of bits, and the layers that have another."""
    most = max(sorted(set(bits.values())), key=list(bits.values()).count)
    others = {str(_layer_name(name)): own for name, own in bits.items() if own != most}
    return {"group_size": GROUP, "bits": most} | {
        name: {"group_size": GROUP, "bits": own} for name, own in others.items()
    }


def _weights(gguf: GGUF, heads: dict[str, int]) -> Iterator[tuple[str, Tensors]]:
    for name, tensor in gguf.tensors.items():
        if name == ROPE_FACTORS:
            continue
        part, suffix = name.split(".")[-2:]
        arrays = to_arrays(tensor, suffix)
        if part in heads:
            arrays = {key: _in_halves(gguf, name, array, heads[part]) for key, array in arrays.items()}
        yield str(_layer_name(name)), arrays


def _in_halves(gguf: GGUF, name: str, rows: mx.array, heads: int) -> mx.array:
    """Puts the rows of each head back: llama.cpp interleaves the two halves that are rotated together."""
    if rows.shape[0] % (2 * heads):
        raise ModelError(f"{gguf.path}: tensor {name!r} has {rows.shape[0]} rows, which {heads} heads do not divide")
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def to_arrays(tensor: Tensor, suffix: str = "weight") -> Tensors:
    """Returns the arrays that stand for a tensor: one, or packed weights (…, in · bits / 32), scales and biases."""
    if tensor.type in _PLAIN:
        plain = mx.array(tensor.blocks.view(_PLAIN[tensor.type]).reshape(tensor.shape))
        return {suffix: plain.view(mx.bfloat16) if tensor.type is TensorType.BF16 else plain}
    if tensor.type not in BITS or len(tensor.shape) != 2:
        with np.errstate(over="ignore", invalid="ignore"):  # what float16 cannot hold is found with that of other files
            return {suffix: mx.array(dequantize(tensor.blocks, tensor.type).reshape(tensor.shape).astype(np.float16))}
    rows, inputs = tensor.shape
    header = 4 if tensor.type is TensorType.Q4_1 else 2
    blocks = tensor.blocks.reshape(rows, inputs // GROUP, -1)
    numbers = np.ascontiguousarray(blocks[..., :header]).view(np.float16)
    quants = blocks[..., header:]
    with np.errstate(over="ignore", invalid="ignore"):
        if tensor.type is TensorType.Q8_0:
            packed, biases = quants ^ np.uint8(0x80), numbers[..., 0] * np.float16(-128)
        else:
            packed = _nibbles(quants)
            biases = numbers[..., 1] if header == 4 else numbers[..., 0] * np.float16(-8)
    weight = np.ascontiguousarray(packed).reshape(rows, -1).view(np.uint32)
    return {suffix: mx.array(weight), "scales": mx.array(numbers[..., 0]), "biases": mx.array(biases)}


def _nibbles(quants: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reorders 32 values of 4 bits: llama.cpp pairs value i with i + 16 in a byte, MLX with its neighbour."""
    values = np.concatenate([quants & 0x0F, quants >> 4], axis=-1)
    pairs: NDArray[np.uint8] = values[..., 0::2] | values[..., 1::2] << 4
    return pairs
