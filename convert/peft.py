"""PEFT adapters on disk: their settings, their files, and their names for tensors.

PEFT calls a tensor ``base_model.model.model.layers.3.self_attn.q_proj.pblora_A``; here it is
``layers.3.self_attn.q_proj.a``. The part before the number of the block differs between model families.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from parm_mlx.errors import AdapterError
from parm_mlx.files import pickled_weights, read_json
from parm_mlx.pblora.adapter import CONFIG_FILE, Tensors, check_finite, read_safetensors
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.ranges import DROPOUT, SCALE, Real, Whole, shown

TENSOR_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
PREFIX = "base_model.model.model.layers"
ORIGIN = "converted_from"

# Settings that do not change what an adapter computes, whatever their value, or that are read here.
_HARMLESS = {
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
# Ways to begin training that leave the backbone's own weights as they are.
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
_UNSUPPORTED = {
    "bias": "trained biases have no place in this format",
    "init_lora_weights": "that may change the backbone's own weights; save it as plain LoRA with PEFT first",
    "layers_pattern": "adapters on some layers only are not supported",
    "layers_to_transform": "adapters on some layers only are not supported",
    "modules_to_save": "modules trained in full have no place in an adapter",
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
_BLOCK = re.compile(r"(?P<prefix>base_model\.model\.[\w.]*?\b(?:layers|h|blocks))\.(?P<layer>\d+\.[\w.]+)")


class Settings:
    """Reads ``adapter_config.json`` of a PEFT adapter and collects all problems with it.

    Args:
        path: The adapter's directory.
        content: The content of its config.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.content = content
        self.problems: list[str] = []
        self.dropout = 0.0 if content.get("lora_dropout") is None else self._read("lora_dropout", DROPOUT) or 0.0
        self.base_model = str(content.get("base_model_name_or_path") or "") or None
        self.targets = content.get("target_modules")
        if isinstance(self.targets, list) and not (
            self.targets and all(isinstance(t, str) and t for t in self.targets)
        ):
            self._add("target_modules", "a list of layer names")

    def whole(self, key: str, allowed: Whole) -> int:
        """Returns a whole number of at least 1."""
        return self._read(key, Whole(1, allowed.high)) or 1

    def number(self, key: str) -> float:
        """Returns a number above 0."""
        return self._read(key, SCALE) or 1.0

    def check(self, unsupported: Mapping[str, str], known: Collection[str]) -> None:
        """Refuses problems, and settings under which the adapter would compute something else than its tensors say.

        Args:
            unsupported: Settings that must be off, and why.
            known: Settings that are read elsewhere, or that change nothing. Any other must be off, too.

        Raises:
            AdapterError: Lists every problem.
        """
        reasons = {**_UNSUPPORTED, **unsupported}
        for key, value in self.content.items():
            harmless = key in _HARMLESS or key in known or (key == "init_lora_weights" and value in _KEEPS_BASE)
            if not harmless and not (value is None or value is False or value in ("none", "", [], {})):
                self.problems.append(f"{key} is {shown(value)}: {reasons.get(key, _UNKNOWN)}")
        if self.problems:
            raise AdapterError(f"adapter {self.path}: {CONFIG_FILE}: {'; '.join(self.problems)}")

    def _read(self, key: str, allowed: Whole | Real) -> Any:
        value = self.content.get(key)
        try:
            return allowed.read(None if isinstance(value, str) else value)
        except ValueError:
            self._add(key, str(allowed))
            return None

    def _add(self, key: str, wanted: str) -> None:
        known = key in self.content
        self.problems.append(
            f"{key} must be {wanted}, got {shown(self.content[key])}" if known else f"{key} is missing"
        )


def read(
    settings: Settings, leaves: Mapping[str, str], shapes: Mapping[str, Sequence[int]], **own: Any
) -> tuple[PBLoRAConfig, Tensors]:
    """Reads a PEFT adapter whose settings are checked.

    Args:
        settings: Its settings.
        leaves: PEFT's ending of a tensor's name to ours, ``{"pblora_A": "a"}``.
        shapes: Our ending of a name to the shape it must have; −1 stands for a size that the backbone decides.
        own: The settings of our format that this kind of adapter sets.

    Returns:
        Settings and tensors as our format stores them.

    Raises:
        AdapterError: Tensors are unknown, missing or of the wrong shape, or settings are wrong.
    """
    what = f"adapter {settings.path}"
    tensors, layers, prefix = _rename(read_tensors(settings.path), leaves, shapes, what)
    config = PBLoRAConfig(
        dropout=settings.dropout,
        target_modules=_used_targets(settings.targets, layers, what),
        base_model=settings.base_model,
        training={ORIGIN: {"peft_config": dict(settings.content), "tensor_prefix": prefix}},
        **own,
    )
    return config, tensors


def read_tensors(path: Path) -> Tensors:
    """Reads the tensors of a PEFT adapter, in one file or in shards with an index.

    Raises:
        AdapterError: A file is missing, truncated or pickled, or the index and the shards disagree.
    """
    if (path / TENSOR_FILE).is_file():
        return read_safetensors(path / TENSOR_FILE)
    if (path / INDEX_FILE).is_file():
        return _read_shards(path)
    if pickled := pickled_weights(path):
        raise AdapterError(
            f"adapter {path} holds pickled weights ({pickled}): refused, since they can run code",
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


def _rename(
    tensors: Mapping[str, mx.array], leaves: Mapping[str, str], shapes: Mapping[str, Sequence[int]], what: str
) -> tuple[Tensors, Sequence[str], str]:
    """Takes the tensors of a PEFT adapter to our names, in float32, and checks them; arguments as in :func:`read`.

    Returns:
        The tensors; the adapted layers, ``3.self_attn.q_proj`` and so on; and what PEFT has before the block's number.

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
    return found, tuple(layers), prefix


def _used_targets(declared: Any, layers: Sequence[str], what: str) -> tuple[str, ...]:
    """The name suffixes that stand for the adapted layers.

    ``declared`` is PEFT's ``target_modules``: a list of suffixes, or a pattern that only PEFT can read.
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


def _recorded(config: PBLoRAConfig) -> dict[str, Any]:
    recorded = config.training.get(ORIGIN)
    return recorded if isinstance(recorded, dict) else {}


def recorded_config(config: PBLoRAConfig) -> dict[str, Any]:
    """Returns the PEFT config that an adapter was converted from; empty if it was trained here."""
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
        defaults: Settings of this kind of PEFT adapter, if none were recorded.
        settings: Settings that follow from ours.
        leaves: PEFT's ending of a tensor's name to ours; tensors with another ending are left out.
        config: Our settings. If they record the PEFT config of an earlier conversion, it is written as it was.
        tensors: Our tensors.
        base_model: The backbone to record; by default that of the original, or else of the adapter.
    """
    fresh = {**_FRESH, **defaults, "base_model_name_or_path": config.base_model}
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
    """Returns a whole number as an int: PEFT declares lora_alpha as one."""
    return round(value) if abs(value - round(value)) < 1e-6 else value
