"""PEFT adapters to our format and back, tensor for tensor: PBLoRA of the official PARM code, and plain LoRA.

PEFT calls a tensor ``base_model.model.model.layers.3.self_attn.q_proj.pblora_A``; here it is
``layers.3.self_attn.q_proj.a``. The part before the number of the block differs between model families. A plain LoRA,
y = W x + s · B · A · x, is an autoregressive reward model of GenARM: it guides like a PARM whose α is always (1).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import mlx.core as mx

from parm_mlx.errors import AdapterError
from parm_mlx.files import pickled_weights, read_json
from parm_mlx.pblora.adapter import (
    CONFIG_FILE,
    Tensors,
    check_finite,
    check_tensors,
    read_safetensors,
    stored_shapes,
    write_files,
)
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.targets import is_named
from parm_mlx.preference import default_objectives, parse_objectives
from parm_mlx.ranges import DROPOUT, OBJECTIVES, RANK, SCALE, Real, Whole, shown

TENSOR_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
PREFIX = "base_model.model.model.layers"
PREFIXES = {  # of families that name their blocks in another way, by layers that only they have
    "attn.c_attn": "base_model.model.transformer.h",
    "attn.c_proj": "base_model.model.transformer.h",
    "mlp.c_fc": "base_model.model.transformer.h",
    "mlp.c_proj": "base_model.model.transformer.h",
    "attention.query_key_value": "base_model.model.gpt_neox.layers",
    "mlp.dense_h_to_4h": "base_model.model.gpt_neox.layers",
    "mlp.dense_4h_to_h": "base_model.model.gpt_neox.layers",
}
ORIGIN = "converted_from"
_LORA = {"lora_A.weight": "a", "lora_B.weight": "b"}
_PBLORA = {"pblora_A": "a", "pblora_B": "b", "pblora_W1": "w1", "pblora_W2": "w2"}
_BLOCK = re.compile(r"(?P<prefix>base_model\.model\.[\w.]*?\b(?:layers|h|blocks))\.(?P<layer>\d+\.[\w.]+)")

# Settings that are read here, or that do not change what an adapter computes, whatever their value.
_KNOWN = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_KNOWN_PBLORA = {"obj_num", "pref_vec_init", "r1", "r2"}
_KNOWN_LORA = {
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",  # B · A · x does not depend on how W is stored
    "megatron_core",
    "qalora_group_size",
    "r",
    "use_rslora",
}
# Ways to begin training that leave the backbone's own weights as they are.
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
# Any other setting must be off. Why, for those that PEFT has:
_REASONS = {
    "alora_invocation_tokens": "activated LoRA is not supported",
    "alpha_pattern": "every layer must have the same lora_alpha",
    "bias": "trained biases have no place in this format",
    "fan_in_fan_out": "transposed weights are not supported",
    "init_lora_weights": "that may change the backbone's own weights; save it as plain LoRA with PEFT first",
    "layer_replication": "replicated layers are not supported",
    "layers_pattern": "adapters on some layers only are not supported",
    "layers_to_transform": "adapters on some layers only are not supported",
    "lora_bias": "trained biases have no place in this format",
    "modules_to_save": "modules trained in full have no place in an adapter",
    "rank_pattern": "every layer must have the same rank",
    "target_parameters": "only linear layers can be adapted",
    "trainable_token_indices": "trained embeddings have no place in an adapter",
    "use_dora": "DoRA also rescales the weights, which is not supported",
    "use_qalora": "QA-LoRA is not supported",
}
_UNKNOWN = "what that changes is not known here, so the adapter is not converted"
# A config as PEFT writes it.
_FRESH = {
    "auto_mapping": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "modules_to_save": None,
    "revision": None,
    "task_type": "CAUSAL_LM",
}


def read(
    path: Path, content: Mapping[str, Any], objectives: str | Sequence[str] | None = None
) -> tuple[PBLoRAConfig, Tensors]:
    """Reads a PEFT adapter: PBLoRA, or LoRA as an adapter with one objective.

    Args:
        path: Its directory.
        content: Its config, which has no names of objectives.
        objectives: Names of the k objectives, in the order of training; objective_1, … by default.

    Returns:
        Settings and tensors as our format stores them.

    Raises:
        AdapterError: Settings are wrong or would make the adapter compute something else than its tensors say, or
            tensors are unknown, missing or of the wrong shape; every problem is listed.
        PreferenceError: The names are not k different ones.
    """
    problems: list[str] = []

    def number(key: str, allowed: Whole | Real) -> Any:
        value = content.get(key)
        try:
            return allowed.read(None if isinstance(value, str) else value)
        except ValueError:
            problems.append(f"{key} must be {allowed}, got {shown(value)}" if key in content else f"{key} is missing")
            return 1

    is_lora = content.get("peft_type") == "LORA"
    rank = Whole(1, RANK.high)
    if is_lora:
        r1, r2, k = number("r", rank), 0, 1
        if content.get("task_type") not in (None, "CAUSAL_LM"):
            problems.append(f"task_type is {content['task_type']!r}: only causal language models can guide")
    else:
        r1, r2, k = number("r1", rank), number("r2", rank), number("obj_num", OBJECTIVES)
    lora_alpha = number("lora_alpha", SCALE)
    dropout = 0.0 if content.get("lora_dropout") is None else number("lora_dropout", DROPOUT)
    targets = content.get("target_modules")
    if isinstance(targets, list) and not (targets and all(isinstance(name, str) and name for name in targets)):
        problems.append(f"target_modules must be a list of layer names, got {shown(targets)}")
    known = _KNOWN | (_KNOWN_LORA if is_lora else _KNOWN_PBLORA)
    for key, value in content.items():
        is_off = value is None or value is False or value in ("none", "", [], {})
        if key not in known and not is_off and not (key == "init_lora_weights" and value in _KEEPS_BASE):
            problems.append(f"{key} is {shown(value)}: {_REASONS.get(key, _UNKNOWN)}")
    if problems:
        raise AdapterError(f"adapter {path}: {CONFIG_FILE}: {'; '.join(problems)}")

    config = PBLoRAConfig(
        kind="lora" if is_lora else "pblora",
        objectives=default_objectives(k) if objectives is None else parse_objectives(objectives, k),
        r1=r1,
        r2=r2,
        scale=lora_alpha / ((sqrt(r1) if content.get("use_rslora") else r1) if is_lora else r2),
        dropout=dropout,
        base_model=str(content.get("base_model_name_or_path") or "") or None,
    )
    tensors, layers, prefix = _renamed(_read_tensors(path), _LORA if is_lora else _PBLORA, config, f"adapter {path}")
    origin = {"peft_config": dict(content), "tensor_prefix": prefix}
    used = _used_targets(targets, layers, f"adapter {path}")
    return replace(config, target_modules=used, training={ORIGIN: origin}), tensors


def _read_tensors(path: Path) -> Tensors:
    """Reads the tensors of a PEFT adapter, in one file or in shards with an index."""
    if (path / TENSOR_FILE).is_file():
        return read_safetensors(path / TENSOR_FILE)
    if not (path / INDEX_FILE).is_file():
        if pickled := pickled_weights(path):
            raise AdapterError(
                f"adapter {path} holds pickled weights ({pickled}): refused, since they can run code",
                hint="save it again with PEFT's save_pretrained(…, safe_serialization=True)",
            )
        raise AdapterError(f"adapter {path}: {TENSOR_FILE} is missing")
    weight_map = read_json(path / INDEX_FILE, f"adapter {path}", AdapterError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise AdapterError(f"adapter {path}: {INDEX_FILE} holds no weight_map")
    files = sorted(set(weight_map.values()))
    problems = [f"shard {name} is missing" for name in files if Path(name).name != name or not (path / name).is_file()]
    tensors: Tensors = {}
    if not problems:
        for name in files:
            tensors |= read_safetensors(path / name)
        problems = [f"tensor {name} is in no shard" for name in sorted(weight_map.keys() - tensors.keys())]
    if problems:
        raise AdapterError(f"adapter {path}: {INDEX_FILE}: {'; '.join(problems)}")
    return tensors


def _renamed(
    tensors: Tensors, leaves: Mapping[str, str], config: PBLoRAConfig, what: str
) -> tuple[Tensors, Sequence[str], str]:
    """Takes checked tensors to our names, in float32; leaves are PEFT's endings of names to ours.

    Returns:
        The tensors; the adapted layers, ``3.self_attn.q_proj`` and so on; and what PEFT has before the block's number.
    """
    found, expected, layers, prefixes = Tensors(), dict[str, Sequence[int]](), dict[str, None](), set[str]()
    shapes = stored_shapes(config)
    for name, tensor in tensors.items():
        leaf = next((leaf for leaf in leaves if name.endswith("." + leaf)), None)
        block = _BLOCK.fullmatch(name.removesuffix(f".{leaf}"))
        if leaf is not None and block is not None:
            prefixes.add(block["prefix"])
            layers[block["layer"]] = None
            expected |= {f"{block[0]}.{theirs}": shapes[ours] for theirs, ours in leaves.items()}
            found[f"layers.{block['layer']}.{leaves[leaf]}"] = tensor.astype(mx.float32)
    problems = [] if tensors else ["it holds no tensors"]
    if len(prefixes) > 1:
        problems.append(f"tensors of several models: {', '.join(sorted(prefixes))}")
    check_tensors(tensors, expected, what, problems)
    check_finite(found, what)
    return found, tuple(layers), prefixes.pop()


def _used_targets(declared: Any, layers: Sequence[str], what: str) -> tuple[str, ...]:
    """The name suffixes of the adapted layers; ``declared`` is a list of them, or a pattern that only PEFT can read."""
    paths = dict.fromkeys(layer.partition(".")[2] for layer in layers)
    if not isinstance(declared, list):
        return tuple(paths)
    if stray := [path for path in paths if not any(is_named(path, suffix) for suffix in declared)]:
        raise AdapterError(
            f"{what}: target_modules lists {', '.join(declared)}, but there are tensors for {', '.join(stray)}"
        )
    return tuple(suffix for suffix in declared if any(is_named(path, suffix) for path in paths))


def _path(name: str) -> str:
    """The path of a layer within its block: ``layers.0.attn.c_attn.a`` is a tensor of ``attn.c_attn``."""
    return ".".join(name.split(".")[2:-1])


def write(directory: Path, config: PBLoRAConfig, tensors: Tensors, base_model: str | None = None) -> None:
    """Writes an adapter in PEFT's format, which has no place for the names of objectives.

    Args:
        directory: An existing directory.
        config: Our settings. If they record the PEFT config of an earlier conversion, what else it says is kept.
        tensors: Our tensors.
        base_model: The backbone to record; by default that of the original, or else of the adapter.

    Raises:
        AdapterError: PEFT has no format for such an adapter.
    """
    origin: Any = config.training.get(ORIGIN)
    origin = origin if isinstance(origin, dict) else {}
    original: Any = origin.get("peft_config")
    original = original if isinstance(original, dict) else {}
    if config.kind not in ("pblora", "lora"):
        raise AdapterError(f"PEFT has no format for {config.kind} adapters; only pblora and lora can be written")
    fresh: dict[str, Any]
    if config.kind == "lora":
        leaves, fresh = _LORA, {"use_rslora": False}
        lora_alpha = config.scale * (sqrt(config.r1) if original.get("use_rslora") else config.r1)
        settings = {"peft_type": "LORA", "r": config.r1}
    else:
        if min(config.r1, config.r2) < 1:
            ranks = f"r1={config.r1}, r2={config.r2}"
            raise AdapterError(f"PEFT's PBLoRA needs r1 ≥ 1 and r2 ≥ 1; this adapter has {ranks}")
        leaves, fresh = _PBLORA, {"pref_vec_init": None}
        lora_alpha = config.scale * config.r2
        settings = {"peft_type": "PBLORA", "obj_num": config.k, "r1": config.r1, "r2": config.r2}
    content = {**(original or {**_FRESH, **fresh, "base_model_name_or_path": config.base_model}), **settings}
    # PEFT declares lora_alpha as an int.
    content["lora_alpha"] = round(lora_alpha) if abs(lora_alpha - round(lora_alpha)) < 1e-6 else lora_alpha
    content |= {"lora_dropout": config.dropout, "target_modules": list(config.target_modules)}
    if base_model is not None:
        content["base_model_name_or_path"] = base_model
    theirs = {ours: leaf for leaf, ours in leaves.items()}
    of_family = next((PREFIXES[path] for name in tensors if (path := _path(name)) in PREFIXES), PREFIX)
    prefix = origin.get("tensor_prefix", of_family)
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.removeprefix("layers.").rpartition(".")
        if leaf in theirs:
            renamed[f"{prefix}.{layer}.{theirs[leaf]}"] = tensor
    write_files(directory, dict(sorted(content.items())), TENSOR_FILE, renamed, "pt")
