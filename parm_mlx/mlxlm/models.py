"""Models and tokenizers of mlx-lm: loading, saving, and what is read off them."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_lm.generate import generation_stream
from mlx_lm.generate import wired_limit as mlx_wired_limit
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import (
    _get_classes,
    load_config,
    load_model,
    load_tokenizer,
    quantize_model,
    save,
    save_config,
    save_model,
)

from parm_mlx.errors import ModelError

Layer = Callable[[mx.array], mx.array]

_TRUNKS = ("model", "backbone", "transformer")
_OUTPUT_LAYERS = ("lm_head", "output", "embed_out")


def load_tokenizer_alone(path: Path) -> TokenizerWrapper:
    """Loads the tokenizer of a model directory, the same as with its weights.

    Raises:
        ModelError: The directory holds no tokenizer that mlx-lm can load.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory: config.json is missing")
    _check_tokenizer(path)
    try:
        tokenizer: TokenizerWrapper = load_tokenizer(path, eos_token_ids=load_config(path).get("eos_token_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"the tokenizer of {path} cannot be loaded: {reason[0]}") from error
    return tokenizer


def _check_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ModelError(f"{path} holds no tokenizer")


def load_weights_and_tokenizer(path: Path, lazy: bool = False) -> tuple[nn.Module, TokenizerWrapper]:
    """Loads an MLX (or unquantised Hugging Face) model directory.

    Raises:
        ModelError: The directory holds no model that mlx-lm can load.
    """
    return _load(path, lazy, _get_classes)


def load_backbone(
    path: Path, heads: Sequence[str] = (), lazy: bool = False
) -> tuple[nn.Module, TokenizerWrapper, dict[str, mx.array]]:
    """Loads a model without its output layer.

    Args:
        path: A model directory, with or without an output layer.
        heads: Names of modules at the top of the model that mlx-lm's model does not have.
        lazy: Read weights only when they are used.

    Returns:
        The model as a function of token ids (B, L) to last hidden states (B, L, hidden); its tokenizer; and the tensors
        of ``heads`` by name. Every other tensor must be the model's, and the model may miss none.

    Raises:
        ModelError: The directory holds no model that mlx-lm can load, or mlx-lm does not give its hidden states.
    """
    found: dict[str, mx.array] = {}

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        family, arguments = _get_classes(config)
        return _without_output_layer(family, heads, found), arguments

    model, tokenizer = _load(path, lazy, classes)
    try:
        model(mx.array([[0]]))  # not evaluated, so no weights are read
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(f"mlx-lm cannot compute with {path}: {_reason(error)}") from error
    return model, tokenizer, found


def _without_output_layer(family: Any, heads: Sequence[str], found: dict[str, mx.array]) -> type[nn.Module]:
    """A subclass that returns hidden states. mlx-lm calls ``sanitize`` between making a model and loading weights."""

    def sanitize(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        found.update({name: weights.pop(name) for name in list(weights) if name.split(".")[0] in heads})
        if hasattr(family, "sanitize"):
            weights = family.sanitize(self, weights)
        outer, trunk, prefix = _text_model(self)
        for owner, path in ((outer, prefix.rpartition(".")[0]), (trunk, prefix)):
            for name in _OUTPUT_LAYERS:
                if name in owner:
                    setattr(owner, name, nn.Identity())
                    own = f"{path}.{name}.".removeprefix(".")
                    weights = {key: value for key, value in weights.items() if not key.startswith(own)}
        return weights

    def call(self: nn.Module, ids: mx.array) -> mx.array:
        states: mx.array = _text_model(self)[1](ids, cache=None)
        return states

    return type("Backbone", (family,), {"sanitize": sanitize, "__call__": call})


def _text_model(model: nn.Module) -> tuple[nn.Module, Any, str]:
    """The part of a model that reads text, its trunk, and the path of the trunk."""
    path = []
    while isinstance(model.get("language_model"), nn.Module):
        model = model["language_model"]
        path.append("language_model")
    name = next((name for name in _TRUNKS if isinstance(model.get(name), nn.Module)), None)
    if name is None:
        raise ValueError("mlx-lm's model of this family does not show its hidden states")
    return model, model[name], ".".join([*path, name])


def _load(path: Path, lazy: bool, classes: Callable[[dict[str, Any]], tuple[type, type]]) -> tuple[Any, Any]:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model directory: config.json is missing")
    if not any(path.glob("model*.safetensors")):
        found = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in path.glob(pattern))
        extra = f" (found {', '.join(found)}, which are not loaded)" if found else ""
        raise ModelError(f"{path} holds no model*.safetensors{extra}")
    _check_tokenizer(path)
    try:

        def known_to_mlx_lm(config: dict[str, Any]) -> tuple[type, type]:
            family, arguments = classes(config)
            _spread_rope(config, arguments)
            return family, arguments

        model, config = load_model(path, lazy=lazy, get_model_classes=known_to_mlx_lm)
        tokenizer = load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise ModelError(f"{path} cannot be loaded: {_reason(error)}") from error
    # Transformers would warn of long sequences, in words about indexing errors that MLX does not have.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return model, tokenizer


def _reason(error: Exception) -> str:
    """The first line of an error, and where it announces a list, the first of that."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    if not first.rstrip().endswith(":") or not rest:
        return first
    return f"{first.strip()} {', '.join(line.strip(' ,.') for line in rest[:3])}{', …' if len(rest) > 3 else ''}"


def _spread_rope(config: dict[str, Any], arguments: Any) -> None:
    """Puts ``rope_parameters``, where transformers 5 writes the base of rotary positions, where mlx-lm looks for it.

    Without, families that do not know the key would compute with their default base and no scaling, silently.
    """
    rope, known = config.get("rope_parameters"), getattr(arguments, "__dataclass_fields__", {})
    if not isinstance(rope, dict) or "rope_parameters" in known:
        return
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope and key in known and config.get(key) is None:
            config[key] = rope[key]
    scaled = rope.get("rope_type", "default") != "default"
    if scaled and "rope_scaling" in known and config.get("rope_scaling") is None:
        config["rope_scaling"] = rope


def wired_limit(model: nn.Module) -> AbstractContextManager[None]:
    """Lets a Mac keep a model's weights in memory while the block generates with it; elsewhere nothing happens."""
    limit: Any = mlx_wired_limit
    limited: AbstractContextManager[None] = limit(model, [generation_stream])
    return limited


def context_length(model: nn.Module) -> int | None:
    """Most tokens that a model was made for, as its config says; None where it does not."""
    arguments: Any = getattr(model, "args", None)
    texts = getattr(arguments, "text_config", None) or {}
    length = getattr(arguments, "max_position_embeddings", None) or texts.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def attention_windows(model: nn.Module) -> set[int | None] | None:
    """The window sizes of a model's attention layers, None standing for no window.

    Returns:
        The sizes, or None if some layer keeps anything but keys and values.
    """
    windows: set[int | None] = set()
    for entry in make_prompt_cache(model):
        if type(entry) is KVCache:
            windows.add(None)
        elif type(entry) is RotatingKVCache and entry.keep == 0:
            windows.add(entry.max_size)
        else:
            return None
    return windows


def trunk_and_output_layer(model: nn.Module) -> tuple[Layer, Layer] | None:
    """The part of a model up to its last hidden states, and its output layer, tied or not.

    Returns:
        The two parts by the names that most families use, or None. A family may do more after the output layer, so that
        the parts together need not be the model.
    """
    trunk = getattr(model, "model", None)
    if not isinstance(trunk, nn.Module) or not callable(trunk):
        return None
    output_layer = model.get("lm_head")
    if output_layer is None:
        output_layer = getattr(trunk.get("embed_tokens"), "as_linear", None)
    return None if output_layer is None else (trunk, output_layer)


def filter_logprobs(logprobs: mx.array, *, top_p: float, min_p: float, top_k: int) -> mx.array:
    """Applies nucleus, minimum-probability and top-k filters, in mlx-lm's order.

    mlx-lm refuses a ``top_k`` that keeps every token; here it filters nothing. Its nucleus filter drops every token
    where ``top_p`` is smaller than the rounding of a sum of probabilities; here the likeliest one always stays.
    """
    if 0 < top_p < 1:
        likeliest = logprobs >= logprobs.max(axis=-1, keepdims=True)
        logprobs = mx.where(likeliest, logprobs, apply_top_p(logprobs, top_p))
    if min_p > 0:
        logprobs = apply_min_p(logprobs, min_p)
    if 0 < top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, top_k)
    return logprobs


def save_like(path: Path, model: nn.Module, source: Path) -> None:
    """Writes a model beside the config and the tokenizer of the directory that it was loaded from.

    Layers that were quantised there may be plain now.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for key in ("quantization", "quantization_config"):
        if isinstance(config.get(key), dict):
            config[key] = {name: value for name, value in config[key].items() if name not in plain}
    save_model(path, model)
    save_config(config, path / "config.json")
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") and not (path / file.name).exists():
            shutil.copy(file, path)


def save_backbone(
    path: Path,
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    source: Path,
    dtype: str | None = None,
    quantization: tuple[str, int | None, int | None] | None = None,
) -> None:
    """Writes what :func:`load_backbone` returns; the weights leave the model.

    Args:
        path: The directory to write.
        model: The model.
        tokenizer: Its tokenizer.
        source: The directory that it was loaded from.
        dtype: Type of the weights that are not quantised; what the config says when left out.
        quantization: Mode, bits and group size; MLX's default for the mode where one is None.
    """
    config = load_config(source)
    dtype = dtype or config.get("dtype") or config.get("torch_dtype")
    if dtype in ("float16", "bfloat16", "float32"):
        _cast(model, getattr(mx, dtype))
        config |= {key: dtype for key in ("dtype", "torch_dtype") if key in config}
    with redirect_stdout(sys.stderr):
        if quantization is not None:
            mode, bits, group_size = quantization
            model, config = quantize_model(model, config, group_size, bits, mode=mode)
        save(path, source, model, tokenizer, config)


def _cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Casts the weights of a model, but for those that its family keeps in their type."""
    may_cast = getattr(model, "cast_predicate", lambda name: True)

    def cast(name: str, weight: mx.array) -> mx.array:
        return weight.astype(dtype) if may_cast(name) and mx.issubdtype(weight.dtype, mx.floating) else weight

    model.update(tree_map_with_path(cast, model.parameters()))
