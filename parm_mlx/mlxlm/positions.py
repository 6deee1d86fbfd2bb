"""Rotary positions: those that a config states, and those that a model computes.

Transformers 5 writes ``rope_parameters``, one set or one for each kind of layer; older configs have ``rope_theta`` and
``rope_scaling``, and families have keys of their own. A family that does not know a key computes with its default, so
the finished model is compared with the config.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from parm_mlx.errors import ModelError

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_LOCAL_KEYS = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta", "compress_rope_theta", "local_rope_theta")
_STATING_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
_ASSUMED = ("rope_theta", "layer_types", *_LOCAL_KEYS)
_OWN_KEYS = ("layer_rope_theta", "partial_rotary_factors")  # families with numbers for each layer
_ALIASES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}  # of GPT-NeoX
_GENERAL = (nn.RoPE.__module__, initialize_rope.__module__)
_OTHER_SENSES = ("vision", "audio", "visual")


@dataclass(frozen=True)
class Rope:
    """Rotary positions of some layers, as a config states them."""

    theta: float | None
    scaling: dict[str, Any] | None = None  # its type and numbers
    partial: float | None = None  # the share of a head's dimensions that is rotated


def write_older_keys(level: dict[str, Any]) -> None:
    """Copies ``rope_parameters`` into the older keys, for families that know only those, in place."""
    parameters = level.get("rope_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return
    kinds = _by_kind(parameters)
    main = kinds.get("full_attention", parameters) if kinds else parameters
    for key in ("rope_theta", "partial_rotary_factor"):
        if main.get(key) is not None:
            level[key] = main[key]
            level |= {_ALIASES[key]: main[key]} if level.get("model_type") == "gpt_neox" else {}
    level.setdefault("rope_scaling", None)
    if level["rope_scaling"] is None and _type(main) not in ("default", "proportional"):
        scaling = {key: value for key, value in main.items() if key not in ("rope_theta", "partial_rotary_factor")}
        level["rope_scaling"] = {**scaling, "type": _type(main), "rope_type": _type(main)}
    local = kinds.get("sliding_attention", {}).get("rope_theta") if "full_attention" in kinds else None
    if local is not None:
        level["rope_local_base_freq"] = local
    _write_pattern(level)


def _write_pattern(level: dict[str, Any]) -> None:
    """Writes ``sliding_window_pattern``, the period of layers with full attention, if ``layer_types`` are regular."""
    types = level.get("layer_types")
    if not isinstance(types, list) or "full_attention" not in types or level.get("sliding_window_pattern") is not None:
        return
    every = types.index("full_attention") + 1
    regular = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(len(types))]
    if every > 1 and types == regular:
        level["sliding_window_pattern"] = every


def check_positions(path: Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Checks that a model computes its positions as its config says."""
    inner: list[Any] = [config.get(key) for key in ("text_config", "language_config", "llm_config")]
    level = {**_assumed(model), **config, **next((each for each in inner if isinstance(each, dict)), {})}
    one_theta = isinstance(level.get("rope_theta", 0.0), (int, float))
    if not one_theta or any(level.get(key) is not None for key in _OWN_KEYS):
        return
    stated = _stated(level)
    modules = list(_rotary_modules(model))
    wrong = [
        name
        for name, layer, module in modules
        if not any(_computes(module, rope, level) for rope in _candidates(layer, stated, level))
    ]
    unread = not modules and any(rope.scaling for rope in stated.values())
    if wrong or unread:
        keys = [key for key in _STATING_KEYS if level.get(key)]
        where = f" (at {wrong[-1]})" if wrong else ""
        raise ModelError(
            f"model {path}: mlx-lm's {config.get('model_type')} does not compute positions as "
            f"{', '.join(keys) or 'the family does'} in config.json says{where}, so its numbers would be wrong"
        )


def _assumed(model: Any) -> dict[str, Any]:
    """The defaults of a family, for what its config does not say."""
    found: dict[str, Any] = {}
    while model is not None:
        args = getattr(model, "args", None)
        found |= {key: getattr(args, key) for key in _ASSUMED if getattr(args, key, None) is not None}
        model = model.get("language_model")
    return found


def _stated(level: Mapping[str, Any]) -> dict[str, Rope]:
    """Positions by kind of layer; under "" where all layers have the same."""
    both = (level.get("rope_parameters"), level.get("rope_scaling"))
    parameters, scaling = (value if isinstance(value, dict) else {} for value in both)
    if kinds := _by_kind(parameters):
        return {kind: _rope(each, level) for kind, each in kinds.items()}
    flat = {key: level[key] for key in ("rope_theta", "partial_rotary_factor") if level.get(key) is not None}
    return {"": _rope({**parameters, **scaling} if parameters else {**scaling, **flat}, level)}


def _rope(parameters: Mapping[str, Any], level: Mapping[str, Any]) -> Rope:
    kind = _type(parameters)
    partial = parameters.get("partial_rotary_factor")
    if partial is None and level.get("model_type") == "glm":
        partial = 0.5  # what GLM's config leaves unsaid
    scaling = None
    if kind not in ("default", "mrope"):
        scaling = {**parameters, "type": {"su": "longrope"}.get(kind, kind)}
        length = level.get("original_max_position_embeddings") or level.get("max_position_embeddings")
        if kind in ("yarn", "longrope", "su") and scaling.get("original_max_position_embeddings") is None and length:
            scaling["original_max_position_embeddings"] = length
    return Rope(parameters.get("rope_theta"), scaling, partial)


def _by_kind(parameters: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {kind: each for kind, each in parameters.items() if isinstance(each, dict)}


def _type(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _candidates(layer: int | None, stated: Mapping[str, Rope], level: Mapping[str, Any]) -> list[Rope]:
    """The positions that a layer may have: that of its kind, if the config tells the kind."""
    types = level.get("layer_types")
    kind = str(types[layer]) if isinstance(types, list) and layer is not None and layer < len(types) else ""
    if kind and kind in stated:
        return [stated[kind]]
    local = [Rope(level[key]) for key in _LOCAL_KEYS if isinstance(level.get(key), (int, float))]
    plain = [Rope(stated[""].theta)] if (local or kind == "sliding_attention") and "" in stated else []
    return [*stated.values(), *local, *plain]


def _rotary_modules(model: nn.Module) -> Iterator[tuple[str, int | None, Any]]:
    for name, module in model.named_modules():
        rotary = re.search("rope|rotary", type(module).__name__, re.IGNORECASE)
        if rotary and not any(sense in name for sense in _OTHER_SENSES):
            layer = _LAYER.search(name)
            yield name, int(layer[1]) if layer else None, module


def _computes(module: Any, rope: Rope, level: Mapping[str, Any]) -> bool:
    if type(module).__module__ not in _GENERAL:  # the family's own, made for its positions
        return True
    dims = int(module.dims) if hasattr(module, "dims") else 2 * module._freqs.size
    if not _rotates_share(dims, rope, level):
        return False
    if rope.theta is None:
        return True
    if isinstance(module, nn.RoPE):
        factor = float(rope.scaling["factor"]) if rope.scaling and rope.scaling["type"] == "linear" else 1.0
        plain = rope.scaling is None or rope.scaling["type"] == "linear"
        return plain and _close(float(module.base), float(rope.theta)) and _close(float(module.scale) * factor, 1.0)
    if rope.scaling is None:
        return hasattr(module, "_freqs") and _has_frequencies(module, rope.theta ** (mx.arange(0, dims, 2) / dims))
    return _same_scaling(module, rope.theta, rope.scaling, dims, level.get("max_position_embeddings"))


def _same_scaling(module: Any, theta: float, scaling: dict[str, Any], dims: int, length: int | None) -> bool:
    given = scaling.get("attention_factor")
    if given is not None and hasattr(module, "mscale") and not _close(float(module.mscale), float(given)):
        return False
    expected: Any = initialize_rope(dims, theta, False, scaling, length)
    if not hasattr(expected, "_freqs") or not hasattr(module, "_freqs"):
        return type(expected) is type(module)
    return _has_frequencies(module, expected._freqs)


def _has_frequencies(module: Any, expected: mx.array) -> bool:
    return expected.shape == module._freqs.shape and bool(mx.allclose(expected, module._freqs, rtol=1e-4))


def _rotates_share(dims: int, rope: Rope, level: Mapping[str, Any]) -> bool:
    """Returns True if the rotated dimensions are the stated share of a head's."""
    heads, size = level.get("num_attention_heads"), level.get("hidden_size")
    sizes = {value for key, value in level.items() if key.endswith("head_dim") and isinstance(value, int)}
    if "head_dim" not in level and isinstance(size, int) and isinstance(heads, int):
        sizes.add(size // heads)
    scaled = rope.scaling is not None and rope.scaling["type"] == "proportional"
    if rope.partial is None or scaled or any(level.get(key) for key in ("qk_rope_head_dim", "rotary_dim")):
        return True
    return any(dims == int(head * rope.partial) for head in sizes) or not sizes


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-4 * abs(b)
