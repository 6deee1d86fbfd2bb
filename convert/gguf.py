"""GGUF files to directories of MLX models."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from parm_mlx.convert.gguf_file import read_gguf
from parm_mlx.convert.gguf_model import read_model
from parm_mlx.convert.gguf_tokenizer import write_tokenizer
from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import check_finite, load_weights_and_tokenizer
from parm_mlx.pblora.adapter import Tensors

SHARD = 4 * 2**30  # bytes of weights that are in memory at the same time, and in one file


def unpack(path: Path, directory: Path) -> tuple[list[str], bool]:
    """Writes the model of a GGUF file, of any part of a split one, into an empty directory, and checks that it loads.

    Returns:
        Notes for the user, and whether layers of the model are quantised.

    Raises:
        ModelError: The file is broken, or holds something that cannot be converted.
    """
    gguf = read_gguf(path)
    config, weights, notes = read_model(gguf)
    config |= write_tokenizer(gguf, directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_weights(path, directory, weights)
    try:
        load_weights_and_tokenizer(directory, lazy=True)
    except ModelError as error:
        raise ModelError(f"{path} does not hold a whole model: {error}".replace(str(directory), "it")) from None
    titles = {"it calls itself": "general.name", "its licence is": "general.license"}
    about = [f"{title} {text}" for title, key in titles.items() if isinstance(text := gguf.metadata.get(key), str)]
    return about + notes, "quantization" in config


def _write_weights(path: Path, directory: Path, weights: Iterator[tuple[str, Tensors]]) -> None:
    """Writes tensors as ``model.safetensors``, or as numbered files with an index where they are large."""
    held: Tensors = {}
    files: list[tuple[Path, list[str]]] = []

    def flush() -> None:
        check_finite(path, held)
        file = directory / f"{len(files)}.safetensors"
        mx.save_safetensors(str(file), held, metadata={"format": "mlx"})
        files.append((file, list(held)))
        held.clear()

    for layer, arrays in weights:
        if held and sum(array.nbytes for array in (*held.values(), *arrays.values())) > SHARD:
            flush()
        held.update({f"{layer}.{kind}": array for kind, array in arrays.items()})
    flush()
    index: dict[str, str] = {}
    for i, (file, names) in enumerate(files, start=1):
        name = "model.safetensors" if len(files) == 1 else f"model-{i:05}-of-{len(files):05}.safetensors"
        file.rename(directory / name)
        index |= dict.fromkeys(names, name)
    if len(files) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=2)
        (directory / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
