"""Configs of model directories: read as their authors meant them, and refused if mlx-lm would read them otherwise.

Code in a model directory is never run: only classes of mlx-lm and of transformers are used.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.utils import MODEL_REMAPPING, load_config
from transformers import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from parm_mlx.errors import ModelError
from parm_mlx.files import read_json
from parm_mlx.mlxlm.positions import write_older_keys

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_MODULE = re.compile(r"[A-Za-z0-9_-]+")
_NEVER_RUN = "code from a model directory is never run"
_FIXED = ("hidden_act", "hidden_activation", "activation_function", "norm_topk_prob")
_CAPPING = ("attn_logit_softcapping", "final_logit_softcapping")
_DTYPES = ("float16", "bfloat16", "float32")
_COMPRESSED = ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "pack-quantized")
# Families whose sanitize turns 8-bit floats and their scales into numbers are found by trying: see check_types.
_DECODED = ("bitnet", "mxfp4", "mxfp8", "fp8")


def read_config(path: Path) -> dict[str, Any]:
    """Reads the config of a model, with null as absent and positions in the keys that mlx-lm's families know."""
    if not (path / CONFIG_FILE).is_file():
        raise ModelError(f"{path} is not a model directory: {CONFIG_FILE} is missing")
    read_json(path / CONFIG_FILE, f"model {path}", ModelError)
    config: dict[str, Any] = load_config(path)
    _refuse_code(path, config)
    for level in levels(config):
        for key in ("quantization", "quantization_config"):
            if key in level and not level[key]:
                del level[key]
        write_older_keys(level)
    _settle_quantization(path, config)
    return config


def levels(config: Mapping[str, Any]) -> list[Any]:
    """Returns a config and, if it describes several models, that of the one that reads text."""
    inner = (config.get(key) for key in ("text_config", "language_config", "llm_config"))
    return [config, *(each for each in inner if isinstance(each, dict))]


def _transformers_default(level: dict[str, Any], key: str, default: Any = None) -> Any:
    """The value that transformers takes for granted of a family; ``default`` if it does not know the family."""
    model_type = str(level.get("model_type"))
    return getattr(CONFIG_MAPPING[model_type], key, default) if model_type in CONFIG_MAPPING else default


def config_dtype(config: dict[str, Any]) -> str | None:
    """Returns the type that a config names for its weights; None if it names none that MLX computes in.

    Transformers 4 calls it ``torch_dtype``, transformers 5 ``dtype``.
    """
    named = (level.get(key) for level in levels(config) for key in ("dtype", "torch_dtype"))
    return next((name for name in named if isinstance(name, str) and name in _DTYPES), None)


def record_dtype(config: dict[str, Any], dtype: str) -> None:
    """Keeps a config true after a cast: tools that read the type from it would undo the cast."""
    for level in levels(config):
        level |= {key: dtype for key in ("dtype", "torch_dtype") if key in level}


def settle_output_layer(config: dict[str, Any], has_output_layer: bool) -> None:
    """Completes a config that does not say whether embedding and output layer are one, in place.

    mlx-lm's defaults are not those of transformers, which wrote the config. An output layer in the files counts.
    """
    outer, *inner = levels(config)
    said = outer.get("tie_word_embeddings")
    for level in (*inner, outer):
        by_default = False if has_output_layer else _transformers_default(level, "tie_word_embeddings")
        tied = said if said is not None else by_default if isinstance(by_default, bool) else None
        if level.get("tie_word_embeddings") is None and tied is not None:
            level["tie_word_embeddings"] = tied


def check_ignored(path: Path, config: dict[str, Any], arguments: Any) -> None:
    """Checks that a config does not ask for something that mlx-lm's family does not do and would silently ignore.

    A family whose class of arguments lacks a name computes the usual, which is transformers' default.
    """
    known = getattr(arguments, "__dataclass_fields__", {})
    for level in levels(config):
        for key in _FIXED:
            usual, wanted = _transformers_default(level, key), level.get(key)
            if key not in known and None not in (usual, wanted) and _activation(usual) != _activation(wanted):
                raise ModelError(
                    f"model {path}: config.json says {key} {json.dumps(wanted)}, and mlx-lm's {config['model_type']} "
                    f"computes {json.dumps(usual)} whatever it says"
                )
        for key in _CAPPING:
            if key in level and level[key] is None and key in known and known[key].default is not None:
                raise ModelError(
                    f"model {path}: config.json says {key} null, and mlx-lm's {config['model_type']} always caps"
                )


def _activation(value: Any) -> Any:
    """Gives one name to one activation: the ways to compute a GELU differ by less than 16 bits can tell."""
    return "gelu" if str(value).startswith("gelu") else "silu" if value == "swish" else value


def ignored_window(config: dict[str, Any]) -> int | None:
    """Returns the window of a config's sliding attention; None if no layer has one."""
    level = levels(config)[-1]
    window, types = level.get("sliding_window"), level.get("layer_types")
    used = level.get("use_sliding_window", _transformers_default(level, "use_sliding_window", True))
    slides = "sliding_attention" in types if isinstance(types, list) else True
    return window if isinstance(window, int) and used and slides else None


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    if config.get("model_file") is not None:
        raise ModelError(f"model {path}: model_file {config['model_file']!r} is refused: {_NEVER_RUN}")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"model {path}: {CONFIG_FILE} has no model_type")
    if _is_module("models", MODEL_REMAPPING.get(model_type, model_type)):
        return
    if config.get("auto_map"):
        raise ModelError(
            f"model {path}: auto_map is refused: {_NEVER_RUN}, and mlx-lm has no model type {model_type!r} of its own"
        )
    raise ModelError(f"{path} cannot be loaded: Model type {model_type} not supported by mlx-lm")


def _is_module(package: str, name: str) -> bool:
    return _MODULE.fullmatch(name) is not None and importlib.util.find_spec(f"mlx_lm.{package}.{name}") is not None


def check_tokenizer(path: Path) -> None:
    """Checks that a model directory holds a tokenizer, and one that needs no code of its own."""
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG_FILE)):
        raise ModelError(f"{path} holds no tokenizer")
    if not (path / TOKENIZER_CONFIG_FILE).is_file():
        return
    config = read_json(path / TOKENIZER_CONFIG_FILE, f"tokenizer of {path}", ModelError)
    mapped = config.get("auto_map")
    if isinstance(mapped, list) or (isinstance(mapped, dict) and mapped.get("AutoTokenizer")):
        raise ModelError(f"tokenizer of {path}: auto_map is refused: {_NEVER_RUN}")
    name = config.get("tokenizer_class")
    if name and tokenizer_class_from_name(str(name)) is None and tokenizer_class_from_name(f"{name}Fast") is None:
        raise ModelError(
            f"tokenizer of {path}: tokenizer_class {name!r} is refused: transformers has no such class, and "
            f"{_NEVER_RUN}",
            hint=f"where tokenizer.json says it all, name PreTrainedTokenizerFast in {TOKENIZER_CONFIG_FILE}",
        )
    for key, package in (("tool_parser_type", "tool_parsers"), ("chat_template_type", "chat_templates")):
        if config.get(key) and not _is_module(package, str(config[key])):
            raise ModelError(f"tokenizer of {path}: {key} {config[key]!r} is refused: mlx-lm has none of that name")


def _settle_quantization(path: Path, config: dict[str, Any]) -> None:
    """Refuses formats that mlx-lm does not decode, most of which it would take for plain weights."""
    found = next((level["quantization_config"] for level in levels(config) if "quantization_config" in level), None)
    if found is None and (path / "hf_quant_config.json").is_file():
        found = read_json(path / "hf_quant_config.json", f"model {path}", ModelError)
    if "quantization" in config or found is None:
        return
    if not isinstance(found, dict):
        raise ModelError(f"model {path}: quantization_config must be an object, not {json.dumps(found)}")
    if "quant_method" not in found and {"group_size", "bits"} <= found.keys():
        config["quantization"] = config["quantization_config"] = found
        return
    if "quant_method" not in found and "quantization" in found:
        found = {**found, "quant_method": "modelopt"}
    config["quantization_config"] = found
    method, detail = found.get("quant_method"), ""
    if method == "awq":
        version, bits = found.get("version", "gemm"), found.get("bits", 4)
        decoded, detail = bits == 4 and str(version).lower() == "gemm", f" ({bits} bits, {version})"
    elif method == "compressed-tensors":
        decoded, detail = found.get("format") in _COMPRESSED, f" ({found.get('format')})"
    elif method == "modelopt":
        algorithm = found.get("quantization", found).get("quant_algo")
        decoded, detail = algorithm == "NVFP4", f" ({algorithm})"
    else:
        decoded = method in _DECODED
    if not decoded:
        raise ModelError(
            f"model {path} is quantised by {method}{detail}, which mlx-lm does not decode",
            hint="use the model that it was made from; -q quantises it for MLX",
        )
