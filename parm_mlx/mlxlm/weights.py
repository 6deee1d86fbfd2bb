"""The tensors of a model directory: their files, the ones that a model takes, and whether they are finite."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from parm_mlx.errors import ModelError, first_line
from parm_mlx.files import pickled_weights, read_json
from parm_mlx.fingerprint import safetensors_header
from parm_mlx.mlxlm.settings import levels

INDEX_FILE = "model.safetensors.index.json"

_IS_WEIGHTS = re.compile(r"model.*\.safetensors", re.DOTALL)
_SHARD = re.compile(r"model.*-(\d+)-of-(\d+)\.safetensors")
_UNREAD_TYPES = ("F64", "F8_E5M2", "F4", "C128")
_MAX_SHARDS = 100_000  # a name may say any number
_SHOWN = 5
_OUTPUT_LAYER = re.compile(r"(?:(?:model|language_model)\.)*(?:lm_head|output|embed_out)\.\w+")
_EMBEDDING = re.compile(r".*(?:embed_tokens|wte|tok_embeddings|embed_in|word_embeddings|embedding)\.weight")
# Computed from the config (positions, masks), or of use to others only.
_BUFFERS = re.compile(
    r".*(?:rotary|inv_freq|rope\.freqs|position_ids|masked_bias|causal_mask|\.attn\.bias|attention\.bias|"
    r"(?:^|\.)(?:cos|sin)(?:_cached)?$|embed_scale|weight_shape|activation_scale|input_scale|[kv]_scale|num_batches).*"
)
# Parts that a model of text does not have: other senses, and heads that predict several tokens.
_OTHER_PARTS = re.compile(
    r".*(?:vision|visual|image|audio|multi_modal|mm_projector|patch_merge|bias_vl|engram|(?:^|\.)mtp|nextn).*"
)


def weight_files(path: Path) -> dict[Path, list[str] | None]:
    """Finds the files that hold a model's tensors; if there is an index, it alone counts.

    Returns:
        The files, each with the names of the tensors to read from it, or None for all of them.
    """
    files: dict[Path, list[str] | None]
    if (path / INDEX_FILE).exists():
        files = _indexed_files(path)
        missing = sorted(file.name for file in files if not file.is_file())
    else:
        files = dict.fromkeys(sorted(file for file in path.iterdir() if _IS_WEIGHTS.fullmatch(file.name)))
        missing = sorted(_shard_names(files) - {file.name for file in files})
    if not files:
        others = ", ".join(filter(None, (pickled_weights(path), *(file.name for file in path.glob("*.gguf")))))
        raise ModelError(f"{path} holds no model*.safetensors{f' (found {others}, not loaded)' if others else ''}")
    if missing:
        raise ModelError(f"model {path} is incomplete: {_listed(missing)} missing", hint="fetch it again")
    return files


def _indexed_files(path: Path) -> dict[Path, list[str] | None]:
    weight_map = read_json(path / INDEX_FILE, f"model {path}", ModelError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"model {path}: {INDEX_FILE} has no weight_map")
    files: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        files.setdefault(str(name), []).append(tensor)
    outside = sorted(name for name in files if "/" in name or "\\" in name or name in ("", ".", ".."))
    if outside:
        raise ModelError(f"model {path}: {INDEX_FILE} names {_listed(outside)}, which is not a file of this directory")
    other = sorted(name for name in files if not name.endswith(".safetensors"))
    if other:
        raise ModelError(f"model {path}: {INDEX_FILE} names {_listed(other)}, which is not a safetensors file")
    return {path / name: files[name] for name in sorted(files)}


def _shard_names(files: Iterable[Path]) -> set[str]:
    """The names of all shards, of which the names of some tell how many there are."""
    names = set()
    for match in filter(None, (_SHARD.fullmatch(file.name) for file in files)):
        number, count = match.groups()
        stem = match.string[: match.start(1)]
        numbers = range(1, min(int(count), _MAX_SHARDS) + 1)
        names |= {f"{stem}{i:0{len(number)}}-of-{count}.safetensors" for i in numbers}
    return names


def read_weights(path: Path) -> dict[str, mx.array]:
    """Returns the tensors of a model by name; none is read before it is used."""
    tensors: dict[str, mx.array] = {}
    for file, names in weight_files(path).items():
        held = _read_file(file)
        absent = sorted(set(names or ()) - held.keys())
        if absent:
            raise ModelError(f"model {path}: {INDEX_FILE} says that {file.name} holds {_listed(absent)}; it does not")
        chosen = held if names is None else {name: held[name] for name in names}
        twice = sorted(tensors.keys() & chosen.keys())
        if twice:
            raise ModelError(f"model {path} holds {_listed(twice)} in several files, and no index says which counts")
        tensors |= chosen
    return tensors


def _read_file(file: Path) -> dict[str, mx.array]:
    header = safetensors_header(file)
    if unread := sorted(name for name, entry in header.items() if entry.get("dtype") in _UNREAD_TYPES):
        kind = header[unread[0]]["dtype"]
        raise ModelError(
            f"{file} holds tensors of type {kind}, which MLX does not read: {_listed(unread)}",
            hint="cast them to float32 first" if kind == "F64" else None,
        )
    try:
        tensors: Any = mx.load(str(file))
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be loaded: {first_line(error)}") from error
    return dict(tensors)


def has_output_layer(names: Iterable[str]) -> bool:
    """Returns whether one of these tensors is the weight of an output layer."""
    return any(_OUTPUT_LAYER.fullmatch(name) and name.endswith(".weight") for name in names)


def without_buffers(model: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Drops weights that are computed from the config and for which the model has no place."""
    own = dict(tree_flatten(model.parameters()))
    return {name: value for name, value in weights.items() if name in own or not _BUFFERS.fullmatch(name)}


def check_used(
    path: Path, tensors: Mapping[str, mx.array], used: Mapping[str, mx.array], config: Mapping[str, Any], head: bool
) -> None:
    """Checks that the tensors which are not in ``used``, the result of a family's ``sanitize``, do not count.

    ``head`` is True if the model has an output layer. The tensors are not evaluated yet.
    """
    lost = [
        name
        for name in _left_out(tensors, used)
        if not _may_be_left_out(name, config)
        and (head or not _OUTPUT_LAYER.fullmatch(name))
        and not _is_embedding_again(name, tensors)
    ]
    if not lost:
        return
    if any(_OUTPUT_LAYER.fullmatch(name) for name in lost):
        raise ModelError(
            f"model {path}: tie_word_embeddings is set, but {_listed(lost)} is not the embedding",
            hint="set tie_word_embeddings to false in config.json if the output layer counts",
        )
    raise ModelError(f"model {path}: mlx-lm's {config.get('model_type')} does not use {_listed(lost)}")


def _left_out(tensors: Mapping[str, mx.array], used: Mapping[str, mx.array]) -> list[str]:
    """Names the tensors from which nothing in ``used`` is computed.

    MLX draws the graph of arrays that are not evaluated: there, a tensor that was left out has a name and no edge.
    """
    kept, held = ({id(value) for value in each.values()} for each in (used, tensors))
    rest = {name: value for name, value in tensors.items() if id(value) not in kept}
    if not rest:
        return []
    by_label = {f"left{i}": name for i, name in enumerate(rest)}
    labels: Any = {label: rest[name] for label, name in by_label.items()}
    labels |= {f"used{i}": value for i, value in enumerate(used.values()) if id(value) not in held}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "graph.dot")
        mx.export_to_dot(str(file), **labels)
        graph = file.read_text(encoding="utf-8")
    named = set(re.findall(r'^\{ (?:rank=sink; )?"(left\d+)"; \}', graph, re.MULTILINE))
    leading = set(re.findall(r'^"(left\d+)" -> ', graph, re.MULTILINE))
    return [by_label[label] for label in by_label if label in named - leading]


def _may_be_left_out(name: str, config: Mapping[str, Any]) -> bool:
    if _BUFFERS.fullmatch(name) or _OTHER_PARTS.fullmatch(name):
        return True

    def stated(key: str) -> Any:
        return next(filter(None, (level.get(key) for level in levels(config))), None)

    count = stated("num_hidden_layers")
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    if layer and isinstance(count, int) and int(layer[1]) >= count:  # heads that predict several tokens
        return True
    return bool(stated("num_kv_shared_layers")) and re.search(r"\.self_attn\.[kv]_(?:proj|norm)\.", name) is not None


def _is_embedding_again(name: str, tensors: Mapping[str, mx.array]) -> bool:
    head, leaf = tensors[name], name.rpartition(".")[2]
    return _OUTPUT_LAYER.fullmatch(name) is not None and any(
        value.shape == head.shape and value.dtype == head.dtype and mx.array_equal(head, value).item()
        for key, value in tensors.items()
        if _EMBEDDING.fullmatch(f"{key.removesuffix(leaf)}weight") and key.endswith(f".{leaf}")
    )


def check_types(path: Path, model: nn.Module, weights: Mapping[str, mx.array], method: str | None) -> None:
    """Checks that the files hold numbers where the model computes with numbers, and not codes for numbers."""
    own = dict(tree_flatten(model.parameters()))
    codes = [
        name
        for name, value in weights.items()
        if name in own and mx.issubdtype(own[name].dtype, mx.floating) and not mx.issubdtype(value.dtype, mx.floating)
    ]
    if codes:
        how = f"{method} weights" if method else "8-bit floats or integers"
        raise ModelError(
            f"model {path} stores {_listed(codes)} as {how}, which mlx-lm does not decode for this family",
            hint="use the model that it was made from",
        )


def check_finite(path: Path, tensors: Mapping[str, mx.array]) -> None:
    """Checks that the numbers of tensors in memory are finite.

    A sum along the first axis is the cheapest pass over a tensor, and a finite sum has finite terms. The sum of finite
    numbers may overflow, so the terms are checked if it is not finite.
    """
    floats = {name: value for name, value in tensors.items() if mx.issubdtype(value.dtype, mx.floating)}
    if not floats:
        return
    sums = [(value.sum(axis=0) if value.ndim > 1 else value).astype(mx.float32).sum() for value in floats.values()]
    good = mx.isfinite(mx.stack(sums)).tolist()
    doubtful = [name for name, ok in zip(floats, good, strict=True) if not ok]  # type: ignore[arg-type]
    if wrong := [name for name in doubtful if not mx.isfinite(floats[name]).all().item()]:
        raise ModelError(
            f"model {path} holds numbers that are not finite (NaN or infinity): {_listed(wrong)}",
            hint="its files are damaged, or its training failed",
        )


def check_finite_files(path: Path, dtype: str | None = None) -> None:
    """Checks that the numbers in a model's files are finite, one tensor at a time."""
    large = []
    narrow = getattr(mx, dtype) if dtype in ("float16", "bfloat16") else None
    for file, names in weight_files(path).items():
        held = _read_file(file)
        for name in list(held):
            value = held.pop(name)
            counts = (names is None or name in names) and not _BUFFERS.fullmatch(name)
            if not counts or not mx.issubdtype(value.dtype, mx.floating):
                continue
            check_finite(path, {name: value})
            if narrow is not None and narrow != value.dtype and not mx.isfinite(value.astype(narrow)).all().item():
                large.append(name)
    if large:
        wider = "--dtype bfloat16 or --dtype float32 keeps" if dtype == "float16" else "--dtype float32 keeps"
        raise ModelError(f"model {path} holds numbers that {dtype} cannot hold: {_listed(large)}", hint=f"{wider} them")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
