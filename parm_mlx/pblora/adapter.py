"""Adapters on models and on disk: attach, load, save.

A directory holds ``adapter_config.json`` and ``adapters.safetensors``. Tensors are named
``layers.{number}.{path inside the block}.{a|b|w1|w2}``; other kinds of adapter than PBLoRA have other tensors in place
of w1 and w2 (:func:`parm_mlx.pblora.layer.core_shapes`). Tensors without elements are not stored.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from parm_mlx.errors import AdapterError, ModelError, first_line
from parm_mlx.files import NAMED, expanded, is_dir, is_file, pickled_weights, read_json
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.layer import PBLoRALinear, core_shapes, tensor_shapes
from parm_mlx.pblora.shard import cut_tensors
from parm_mlx.pblora.targets import find_targets

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapters.safetensors"
Tensors = dict[str, mx.array]


def attach(model: nn.Module, config: PBLoRAConfig) -> list[str]:
    """Attaches fresh adapters to an mlx-lm model, in place, and freezes everything else.

    Returns:
        Names of the adapted layers, ``layers.0.self_attn.q_proj`` and so on; see :func:`find_targets`.
    """
    targets = find_targets(model, config.target_modules)
    model.freeze()
    for index, target in enumerate(targets):
        layer = PBLoRALinear(target.linear, config, index, target.reads)
        layer.linear.freeze()
        layer.unfreeze(recurse=False, keys=layer.tensors)
        target.block.update_modules(tree_unflatten([(target.path, layer)]))
    return [target.name for target in targets]


def adapted_layers(model: nn.Module) -> dict[str, PBLoRALinear]:
    """Returns the adapted layers of a model by name, in the order of their index."""
    return {
        f"layers.{number}.{path}": module
        for number, block in enumerate(model.layers)
        for path, module in sorted(block.named_modules(), key=lambda item: getattr(item[1], "index", 0))
        if isinstance(module, PBLoRALinear)
    }


def adapter_tensors(model: nn.Module) -> Tensors:
    """Returns the tensors of a model's adapter, under the names of :func:`save_adapter`."""
    return {
        f"{name}.{key}": layer[key]
        for name, layer in adapted_layers(model).items()
        for key in layer.tensors
        if layer[key].size > 0
    }


def load_into(model: nn.Module, config: PBLoRAConfig, tensors: Mapping[str, mx.array]) -> None:
    """Attaches a stored adapter to a model, in place; of an adapter for cut layers, each process takes its part.

    Raises:
        AdapterError: It does not fit the model: every problem is listed, and the model is left as it was.
    """
    targets = find_targets(model, config.target_modules)
    tensors = cut_tensors(tensors, targets)
    shapes = {
        f"{target.name}.{key}": shape
        for target in targets
        for key, shape in tensor_shapes(target.linear, config).items()
        if 0 not in shape
    }
    check_tensors(tensors, shapes, "the adapter does not fit the model")
    attach(model, config)
    set_adapter_tensors(model, tensors)
    model.eval()


def set_adapter_tensors(model: nn.Module, tensors: Mapping[str, mx.array]) -> None:
    """Replaces tensors of a model's adapter; the inverse of :func:`adapter_tensors`."""
    for name, layer in adapted_layers(model).items():
        for key in layer.tensors:
            if (tensor := tensors.get(f"{name}.{key}")) is not None:
                layer[key] = tensor


def backbone_reference(model: str, out: Path) -> str:
    """Returns the record of a backbone in an adapter at ``out``: a name or hub id as it is, a directory as its path."""
    if model in NAMED:
        return model
    path = expanded(model, ModelError)
    return os.path.relpath(path.resolve(), expanded(out).resolve()) if is_dir(path, ModelError) else model


def find_backbone(path: Path, config: PBLoRAConfig) -> str | Path | None:
    """The inverse of :func:`backbone_reference` for the adapter at ``path``.

    Where an adapter has moved, the directory is the one that the training was given, if it is there.
    """
    if config.base_model is None or not config.base_model.startswith(".."):
        return config.base_model
    given = config.training.get("model")
    for found in (path / config.base_model, Path(str(given)) if given else None):
        if found and is_dir(found, ModelError):
            return found.resolve()
    missing = str(given or config.base_model)
    return missing if Path(missing).is_absolute() else f"./{missing}"  # a path, never the name of a hub repository


def save_adapter(path: Path, config: PBLoRAConfig, tensors: Tensors) -> None:
    """Writes config and tensors into an existing directory; see :func:`parm_mlx.outputs.new_directory`."""
    write_files(path, config.to_dict(), TENSOR_FILE, tensors, "mlx")


def write_files(path: Path, config: Mapping[str, Any], file: str, tensors: Tensors, format: str) -> None:
    """Writes the two files of an adapter, ours or PEFT's."""
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (path / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    mx.save_safetensors(str(path / file), tensors, metadata={"format": format})


def read_config(path: Path) -> PBLoRAConfig:
    """Reads the settings of an adapter directory."""
    if is_dir(path, AdapterError) and not is_file(path / CONFIG_FILE, AdapterError):
        hint = "an adapter is a folder that parm-mlx train or convert has written"
        raise AdapterError(f"adapter {path}: {CONFIG_FILE} is missing in it", hint=hint)
    return PBLoRAConfig.from_dict(read_json(path / CONFIG_FILE, f"adapter {path}", AdapterError))


def read_adapter(path: Path) -> tuple[PBLoRAConfig, Tensors]:
    """Reads an adapter directory, strictly, without its model.

    Raises:
        AdapterError: A file is missing or broken, the settings are wrong, or tensors are missing, unknown, of a shape
            that the settings rule out, or not finite.
    """
    config, file = read_config(path), path / TENSOR_FILE
    if not file.is_file():
        pickled = pickled_weights(path)
        found = f"; pickled weights ({pickled}) are refused" if pickled else ""
        raise AdapterError(f"adapter {path}: {TENSOR_FILE} is missing{found}")
    tensors = read_safetensors(file)
    own = stored_shapes(config)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in own)
    if not layers:
        raise AdapterError(f"adapter {path}: {TENSOR_FILE} holds no adapter tensors")
    shapes = {f"{layer}.{key}": shape for layer in layers for key, shape in own.items()}
    check_tensors(tensors, shapes, f"adapter {path}")
    check_finite(tensors, f"adapter {path}")
    return config, tensors


def stored_shapes(config: PBLoRAConfig) -> dict[str, Sequence[int]]:
    """Returns the shapes of the tensors that are stored of a layer, by name; −1 is a size that the backbone decides."""
    shapes = {"a": (config.rank, -1), "b": (-1, config.rank), **core_shapes(config)}
    return {key: shape for key, shape in shapes.items() if 0 not in shape}


def read_safetensors(file: Path) -> Tensors:
    """Reads a safetensors file; raises an AdapterError if it is broken."""
    try:
        loaded = mx.load(str(file), format="safetensors")
        assert isinstance(loaded, dict)
        mx.eval(list(loaded.values()))
    except (RuntimeError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise AdapterError(
            f"{file} is not a readable safetensors file: {first_line(error)}", hint="fetch or convert it again"
        ) from None
    return loaded


def check_tensors(
    tensors: Mapping[str, mx.array], shapes: Mapping[str, Sequence[int]], what: str, problems: Sequence[str] = ()
) -> None:
    """Checks that tensors have these names and shapes, where −1 is any size, and hold floating-point numbers.

    Raises:
        AdapterError: Lists every problem, those given first; ``what`` names the adapter.
    """
    problems = [*problems, *(f"unknown tensor {name}" for name in sorted(tensors.keys() - shapes.keys()))]
    problems += [f"missing tensor {name}" for name in sorted(shapes.keys() - tensors.keys())]
    for name in sorted(shapes.keys() & tensors.keys()):
        found, expected = tensors[name].shape, shapes[name]
        if len(found) != len(expected) or any(n not in (-1, m) for n, m in zip(expected, found, strict=True)):
            sizes = ", ".join("·" if n == -1 else str(n) for n in expected)
            problems.append(f"{name} has shape {found}, not ({sizes}{',' if len(expected) == 1 else ''})")
        elif not mx.issubdtype(tensors[name].dtype, mx.floating):
            problems.append(f"{name} holds {tensors[name].dtype}, not floating-point numbers")
    if problems:
        raise AdapterError(f"{what}: {len(problems)} tensor problem(s)\n  " + "\n  ".join(problems))


def check_finite(tensors: Mapping[str, mx.array], what: str) -> None:
    """Checks in one pass that all numbers of an adapter are finite; an AdapterError names the layers where not."""
    flags: Any = mx.stack([mx.isfinite(tensor).all() for tensor in tensors.values()]).tolist() if tensors else []
    layers = sorted({name.rpartition(".")[0] for name, good in zip(tensors, flags, strict=True) if not good})
    if layers:
        raise AdapterError(
            f"{what}: the adapter holds numbers that are not finite: {', '.join(layers[:3])}",
            hint="its training has diverged, or the file is broken; take an earlier checkpoint, or fetch it again",
        )
