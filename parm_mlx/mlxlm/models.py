"""Models and tokenizers of mlx-lm: loading, and properties of the loaded."""

import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import _get_classes, load_model, load_tokenizer

from parm_mlx.errors import ModelError, ParmError
from parm_mlx.files import read_json
from parm_mlx.mlxlm.positions import check_positions
from parm_mlx.mlxlm.settings import (
    CONFIG_FILE,
    check_ignored,
    check_tokenizer,
    ignored_window,
    levels,
    read_config,
    settle_output_layer,
)
from parm_mlx.mlxlm.weights import (
    check_finite,
    check_types,
    check_used,
    has_output_layer,
    read_weights,
    without_buffers,
)

Layer = Callable[[mx.array], mx.array]

_TRUNKS = ("model", "backbone", "transformer")
_OUTPUT_LAYERS = ("lm_head", "output", "embed_out")
_EMBEDDINGS = (
    *("embed_tokens", "wte", "word_embeddings", "embeddings", "tok_embeddings", "token_embeddings", "embedding"),
    *("embed_in", "embed"),
)
_QUANTIZED = (
    *(nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear),
    *(nn.QuantizedAllToShardedLinear, nn.QuantizedShardedToAllLinear),
)
_TEMPLATE_FILE = "chat_template.json"
_CONFIG = "_parm_mlx_config"
_LOADING = (Exception, SystemExit)  # what mlx-lm and transformers raise where a directory is not as they expect


def load_tokenizer_alone(path: Path) -> TokenizerWrapper:
    """Loads the tokenizer of a model directory, the same as with its weights."""
    config = read_config(path)
    check_tokenizer(path)
    extra: dict[str, Any] = {"trust_remote_code": False}  # None would ask, and read the answer from stdin
    if (template := template_beside(path)) is not None:
        extra["chat_template"] = template
    try:
        tokenizer: TokenizerWrapper = load_tokenizer(path, extra, eos_token_ids=config.get("eos_token_id"))
    except ParmError:
        raise
    except _LOADING as error:
        raise ModelError(f"the tokenizer of {path} cannot be loaded: {_reason(error)}") from error
    # Transformers would warn of long sequences, in words about indexing errors that MLX does not have.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    _refuse_unnamed_template(path, tokenizer)
    return tokenizer


def template_beside(path: Path) -> Any:
    """Reads the chat template of ``chat_template.json``, which transformers reads for multimodal models only."""
    if not (path / _TEMPLATE_FILE).is_file() or (path / "chat_template.jinja").is_file():
        return None
    own = path / "tokenizer_config.json"
    if own.is_file() and read_json(own, f"tokenizer of {path}", ModelError).get("chat_template") is not None:
        return None
    template: Any = read_json(path / _TEMPLATE_FILE, f"model {path}", ModelError).get("chat_template")
    try:
        return {each["name"]: each["template"] for each in template} if isinstance(template, list) else template
    except (KeyError, TypeError):
        raise ModelError(f"model {path}: {_TEMPLATE_FILE} holds a template without a name or a text") from None


def _refuse_unnamed_template(path: Path, tokenizer: TokenizerWrapper) -> None:
    """Makes a tokenizer with several chat templates and no default raise when it is to render one."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict) or "default" in templates:
        return

    def refuse(*_: Any, **__: Any) -> str:
        raise ModelError(
            f"the tokenizer of {path} has several chat templates ({', '.join(sorted(templates))}), none named default",
            hint="make one the default, or name a built-in one with --chat-template",
        )

    tokenizer._chat_template = refuse


def load_weights_and_tokenizer(path: Path, lazy: bool = False) -> tuple[nn.Module, TokenizerWrapper]:
    """Loads an MLX (or unquantised Hugging Face) model directory."""
    model, tokenizer, _ = _load(path, lazy)
    return model, tokenizer


def load_backbone(
    path: Path, heads: Sequence[str] = (), lazy: bool = False
) -> tuple[nn.Module, TokenizerWrapper, dict[str, mx.array]]:
    """Loads a model without its output layer, which the directory need not have.

    ``heads`` are names of modules at the top of the model that mlx-lm's model does not have.

    Returns:
        The model as a function of token ids (B, L) to last hidden states (B, L, hidden); its tokenizer; and the tensors
        of ``heads`` by name. Every other tensor must be one of the model, and none may be missing.
    """
    model, tokenizer, found = _load(path, lazy, heads)
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


def _load(
    path: Path, lazy: bool, heads: Sequence[str] | None = None
) -> tuple[Any, TokenizerWrapper, dict[str, mx.array]]:
    """Makes a model, with its output layer if ``heads`` is None, of a config and its tensors alone.

    mlx-lm gets a folder with the config and no weights; :func:`_checked` gives it the tensors in ``sanitize``.
    """
    config, tokenizer, tensors = read_config(path), load_tokenizer_alone(path), read_weights(path)
    found: dict[str, mx.array] = {}  # filled by sanitize, when the weights are loaded
    unsaid = config.get("tie_word_embeddings") is None
    settle_output_layer(config, has_output_layer(tensors))
    try:
        family, arguments = _get_classes(config)
        check_ignored(path, config, arguments)
        if heads is not None:
            family = _without_output_layer(family, heads, found)
        checked = _checked(path, family, config, tensors, found, heads is None)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
            model, made = load_model(
                Path(folder), lazy=True, strict=False, get_model_classes=lambda config: (checked, arguments)
            )
        model.__class__ = family
    except ParmError:
        raise
    except _LOADING as error:
        raise ModelError(f"{path} cannot be loaded: {_reason(error)}", hint=_hint(config, unsaid, error)) from error
    tensors.clear()
    if not lazy:
        mx.eval(model.parameters())
        check_finite(path, dict(tree_flatten(model.parameters())))
    object.__setattr__(model, _CONFIG, made)  # beside the parameters: a module takes a dict for a branch of its tree
    return model, tokenizer, found


def _hint(config: dict[str, Any], unsaid: bool, error: BaseException) -> str | None:
    if method := _quantization_method(config):
        return f"its weights are quantised by {method}, which mlx-lm may not decode for this family"
    if unsaid and _OUTPUT_LAYERS[0] in str(error):
        return (
            "config.json does not say tie_word_embeddings: set it if the embedding is the output layer too, "
            "or convert the original again"
        )
    return None


def _quantization_method(config: dict[str, Any]) -> str | None:
    settings = config.get("quantization_config")
    return str(settings["quant_method"]) if isinstance(settings, dict) and "quant_method" in settings else None


def _checked(
    path: Path,
    family: Any,
    config: dict[str, Any],
    tensors: dict[str, mx.array],
    found: dict[str, mx.array],
    head: bool,
) -> type[nn.Module]:
    """A subclass that loads exactly these tensors, but for those that ``family.sanitize`` puts into ``found``."""

    def sanitize(self: nn.Module, _: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = dict(tensors)
        if hasattr(family, "sanitize"):
            weights = family.sanitize(self, weights)
        check_used(path, tensors, {**weights, **found}, config, head)
        return without_buffers(self, weights)

    def load_weights(self: nn.Module, weights: Any, strict: bool = True) -> nn.Module:
        check_positions(path, self, config)
        check_types(path, self, dict(weights), _quantization_method(config))
        loaded: nn.Module = family.load_weights(self, weights, strict=True)
        return loaded

    return type("Checked", (family,), {"sanitize": sanitize, "load_weights": load_weights})


def _reason(error: BaseException) -> str:
    """The first line of an error, with the first items of a list that it introduces."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    if not first.rstrip().endswith(":") or not rest:
        return first
    return f"{first.strip()} {', '.join(line.strip(' ,.') for line in rest[:3])}{', …' if len(rest) > 3 else ''}"


def config_of(model: nn.Module) -> dict[str, Any]:
    """Returns a copy of the config that a model was made of, in the keys that plain mlx-lm reads."""
    return copy.deepcopy(getattr(model, _CONFIG))


def context_length(model: nn.Module) -> int | None:
    """Returns the most tokens that a model was made for, or None if its config does not say.

    If the family attends to everything where the config has a sliding window, that window is the limit.
    """
    arguments: Any = getattr(model, "args", None)
    texts = getattr(arguments, "text_config", None)
    length = getattr(arguments, "max_position_embeddings", None) or getattr(arguments, "n_positions", None)
    if not length and isinstance(texts, dict):
        length = texts.get("max_position_embeddings")
    window = ignored_window(getattr(model, _CONFIG, {}))
    if window is not None and attention_windows(model) != {None}:
        window = None
    return min((each for each in (length, window) if isinstance(each, int)), default=None)


def embedding_rows(model: nn.Module) -> int | None:
    """Returns the number of token ids that have an embedding; None if the embedding is not found."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _EMBEDDINGS and isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            return int(module.weight.shape[0])
    return None


def config_rows(path: Path) -> int | None:
    """Returns the vocabulary size in the config of a model directory; None if there is none."""
    sizes = (level.get("vocab_size") for level in levels(read_config(path)))
    return next((size for size in sizes if isinstance(size, int)), None)


def is_quantized(path: Path) -> bool:
    """Returns whether the config of a model directory says that layers are quantised."""
    config = read_config(path)
    return "quantization" in config or "quantization_config" in config


def attention_windows(model: nn.Module) -> set[int | None] | None:
    """Returns the window sizes of a model's attention layers, where None is a layer without a window.

    It returns None in place of the set if some layer keeps anything but keys and values.
    """
    windows: set[int | None] = set()
    for entry in make_prompt_cache(model):
        if type(entry) in (KVCache, QuantizedKVCache) or (type(entry) is RotatingKVCache and entry.keep > 0):
            windows.add(None)  # the latter two are what --kv-bits and --max-kv-size make of the first
        elif type(entry) is RotatingKVCache:
            windows.add(entry.max_size)
        else:
            return None
    return windows


def trunk_and_output_layer(model: nn.Module) -> tuple[Layer, Layer] | None:
    """Finds the part of a model up to its last hidden states, and its output layer, by the names of most families.

    A family may do more after the output layer, so the parts together need not be the model.
    """
    trunk = getattr(model, "model", None)
    if not isinstance(trunk, nn.Module) or not callable(trunk):
        return None
    output_layer = model.get("lm_head")
    if output_layer is None:
        output_layer = getattr(trunk.get("embed_tokens"), "as_linear", None)
    return None if output_layer is None else (trunk, output_layer)


def quantized_numbers(module: nn.Module) -> int:
    """Returns how many numbers the quantised weight of one layer stands for; 0 for other layers."""
    if not isinstance(module, _QUANTIZED):
        return 0
    return int(module.weight.size) * 32 // int(module.bits)
