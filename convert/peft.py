"""PEFT adapters on disk: their files, and their names for tensors.

PEFT calls a tensor ``base_model.model.model.layers.3.self_attn.q_proj.pblora_A``; here it is
``layers.3.self_attn.q_proj.a``. The part before the number of the block differs between model families.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from parm_mlx.errors import AdapterError
from parm_mlx.files import read_json
from parm_mlx.pblora.adapter import Tensors, check_finite, read_safetensors
from parm_mlx.pblora.config import PBLoRAConfig

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
PREFIX = "base_model.model.model.layers"
ORIGIN = "converted_from"
_COMMON = {
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
_BLOCK = re.compile(r"(?P<prefix>base_model\.model\.[\w.]*?\b(?:layers|h|blocks))\.(?P<layer>\d+\.[\w.]+)")


def read_tensors(path: Path) -> Tensors:
    """Reads the tensors of a PEFT adapter, in one file or in shards with an index.

    Raises:
        AdapterError: A file is missing, truncated or pickled, or the index and the shards disagree.
    """
    if (path / TENSOR_FILE).is_file():
        return read_safetensors(path / TENSOR_FILE)
    if (path / INDEX_FILE).is_file():
        return _read_shards(path)
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled:
        raise AdapterError(
            f"adapter {path} holds pickled weights ({', '.join(pickled)}): refused, since they can run code",
            hint="save it again with PEFT's save_pretrained(…, safe_serialization=True)",
        )
    raise AdapterError(f"adapter {path}: {TENSOR_FILE} is missing")


def _read_shards(path: Path) -> Tensors:
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


@dataclass(frozen=True)
class Renamed:
    """The tensors of a PEFT adapter under our names.

    Attributes:
        tensors: ``{layer}.{leaf}`` to tensor, float32.
        layers: The adapted layers, ``3.self_attn.q_proj`` and so on, without the leading ``layers.``
        prefix: What PEFT has before the number of a block.
    """

    tensors: Tensors
    layers: tuple[str, ...]
    prefix: str


def rename(
    tensors: Mapping[str, mx.array], leaves: Mapping[str, str], shapes: Mapping[str, Sequence[int]], what: str
) -> Renamed:
    """Takes the tensors of a PEFT adapter to our names and checks that each layer has all of them, in the right shape.

    Args:
        tensors: PEFT's names to tensors.
        leaves: PEFT's ending of a name to ours, ``{"pblora_A": "a"}``.
        shapes: Our ending of a name to the shape it must have; −1 stands for a size that the backbone decides.
        what: How errors call the adapter.

    Raises:
        AdapterError: Tensors are unknown or missing, have another shape or hold no floating-point numbers, or there are
            none; every problem is listed under PEFT's names. Or some hold numbers that are not finite.
    """
    problems, found, layers, prefixes = [], Tensors(), dict[str, None](), set[str]()
    for name, tensor in tensors.items():
        leaf = next((leaf for leaf in leaves if name.endswith("." + leaf)), None)
        block = _BLOCK.fullmatch(name.removesuffix(f".{leaf}")) if leaf else None
        if leaf is None or block is None:
            problems.append(f"unknown tensor {name}")
            continue
        prefixes.add(block["prefix"])
        layers[block["layer"]] = None
        expected = tuple(shapes[leaves[leaf]])
        if len(expected) != tensor.ndim or any(e not in (-1, n) for e, n in zip(expected, tensor.shape, strict=True)):
            problems.append(
                f"{name} has shape {tensor.shape}, not ({', '.join(map(str, expected))})".replace("-1", "·")
            )
        elif not mx.issubdtype(tensor.dtype, mx.floating):
            problems.append(f"{name} holds {tensor.dtype}, not floating-point numbers")
        found[f"layers.{block['layer']}.{leaves[leaf]}"] = tensor.astype(mx.float32)
    prefix = min(prefixes, default=PREFIX)
    problems += [
        f"missing tensor {prefix}.{layer}.{leaf}"
        for layer in layers
        for leaf, ours in leaves.items()
        if f"layers.{layer}.{ours}" not in found
    ]
    if len(prefixes) > 1:
        problems.append(f"tensors of several models: {', '.join(sorted(prefixes))}")
    if not tensors:
        problems.append("it holds no tensors")
    if problems:
        raise AdapterError(f"{what}: {len(problems)} tensor problem(s)\n  " + "\n  ".join(problems))
    check_finite(found, what)
    return Renamed(found, tuple(layers), prefix)


def used_targets(declared: Any, layers: Sequence[str], what: str) -> tuple[str, ...]:
    """The name suffixes that stand for the adapted layers.

    Args:
        declared: ``target_modules`` of the PEFT config: a list of suffixes, or a pattern that only PEFT can read.
        layers: The adapted layers, ``3.self_attn.q_proj`` and so on.
        what: How errors call the adapter.

    Raises:
        AdapterError: A layer is in none of the listed suffixes.
    """
    paths = dict.fromkeys(layer.partition(".")[2] for layer in layers)
    if not isinstance(declared, list):
        return tuple(paths)
    stray = [path for path in paths if not any(_matches(path, suffix) for suffix in declared)]
    if stray:
        raise AdapterError(
            f"{what}: target_modules lists {', '.join(declared)}, but there are tensors for {', '.join(stray)}"
        )
    return tuple(suffix for suffix in declared if any(_matches(path, suffix) for path in paths))


def _matches(path: str, suffix: str) -> bool:
    return path == suffix or path.endswith("." + suffix)


def origin(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What our config records of an adapter that comes from PEFT, so that it can be written back as it was."""
    return {ORIGIN: {"peft_config": dict(content), "tensor_prefix": prefix}}


def _recorded(config: PBLoRAConfig) -> dict[str, Any]:
    recorded = config.training.get(ORIGIN)
    return recorded if isinstance(recorded, dict) else {}


def recorded_config(config: PBLoRAConfig) -> dict[str, Any]:
    """The PEFT config that an adapter was converted from; empty when it was trained here."""
    content = _recorded(config).get("peft_config")
    return content if isinstance(content, dict) else {}


def write(
    directory: Path,
    defaults: Mapping[str, Any],
    settings: Mapping[str, Any],
    leaves: Mapping[str, str],
    config: PBLoRAConfig,
    tensors: Mapping[str, mx.array],
    base_model: str | None,
) -> None:
    """Writes an adapter in PEFT's format.

    Args:
        directory: An existing directory.
        defaults: What this kind of PEFT adapter has in its config when nothing else was recorded.
        settings: What follows from our settings.
        leaves: PEFT's ending of a tensor's name to ours; tensors with another ending are left out.
        config: Our settings. What an earlier conversion from PEFT recorded in them is written as it was.
        tensors: Our tensors.
        base_model: The backbone to record; by default that of the original, or else of the adapter.
    """
    fresh = {**_COMMON, **defaults, "base_model_name_or_path": config.base_model}
    content = {**(recorded_config(config) or fresh), **settings}
    content |= {"lora_dropout": config.dropout, "target_modules": list(config.target_modules)}
    if base_model is not None:
        content["base_model_name_or_path"] = base_model
    prefix = _recorded(config).get("tensor_prefix", PREFIX)
    theirs = {ours: leaf for leaf, ours in leaves.items()}
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.removeprefix("layers.").rpartition(".")
        if leaf in theirs:
            renamed[f"{prefix}.{layer}.{theirs[leaf]}"] = tensor
    text = json.dumps(dict(sorted(content.items())), indent=2, ensure_ascii=False)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    mx.save_safetensors(str(directory / TENSOR_FILE), renamed, metadata={"format": "pt"})


def integral(value: float) -> int | float:
    """A whole number as an int: PEFT declares lora_alpha as one."""
    return round(value) if abs(value - round(value)) < 1e-6 else value
