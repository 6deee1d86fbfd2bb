"""Models: Hugging Face causal LMs to MLX, quantised or not, by mlx-lm's own converter."""

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.convert import convert as mlx_lm_convert

from parm_mlx.convert.detect import MODEL_CONFIG, Kind, Source
from parm_mlx.errors import ConfigError, InputError, ModelError
from parm_mlx.files import read_json
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.outputs import new_directory

INDEX_FILE = "model.safetensors.index.json"
_PROBE = 512


@dataclass(frozen=True)
class Quantization:
    """How to quantise, in MLX's terms.

    Attributes:
        mode: affine, mxfp4, nvfp4 or mxfp8.
        bits: Bits per weight; MLX's default for the mode when left out.
        group_size: Neighbouring weights that share a scale; MLX's default for the mode when left out.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None

    def effective_group_size(self) -> int:
        """The group size with MLX's default filled in.

        Raises:
            ConfigError: MLX has no such quantisation.
        """
        try:
            _, scales, *_ = mx.quantize(mx.zeros((1, _PROBE)), self.group_size, self.bits, self.mode)
        except ValueError as error:
            raise ConfigError(f"MLX cannot quantise like that: {str(error).removeprefix('[quantize] ')}") from None
        return _PROBE // scales.shape[-1]


def convert_model(
    source: Source,
    out: Path,
    *,
    quantization: Quantization | None = None,
    dtype: str | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Writes a model in MLX's format.

    Args:
        source: A Hugging Face causal LM, or an MLX model that is to be quantised or cast.
        out: The directory to write.
        quantization: How to quantise; not at all when left out.
        dtype: Type of all weights that are not quantised; what the model's config says when left out.
        force: Replace an existing model.
        say: Where notes go.

    Raises:
        InputError: There is nothing to do.
        ModelError: The model is not readable, not supported by mlx-lm, or cannot be quantised as asked.
        OutputError: ``out`` exists or cannot be written.
        RunError: Writing failed.
    """
    check_request(source, quantization, dtype)
    check_shards(source.path)
    model, _ = load_weights_and_tokenizer(source.path, lazy=True)
    if quantization is not None:
        check_sizes(model, quantization.effective_group_size(), source.path, say)
    del model
    options: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        options |= {"quantize": True, "q_mode": quantization.mode}
        options |= {"q_bits": quantization.bits, "q_group_size": quantization.group_size}
    with new_directory(out, force, [source.path]) as partial:
        partial.rmdir()
        try:
            with redirect_stdout(sys.stderr):
                mlx_lm_convert(str(source.path), str(partial), **options)
        except ValueError as error:
            raise ModelError(f"model {source.path} cannot be converted: {error}") from error
        if dtype is not None:
            _record_dtype(partial / MODEL_CONFIG, dtype)


def check_request(source: Source, quantization: Quantization | None, dtype: str | None) -> None:
    """Checks that there is something to do, and that it can be done to this model."""
    if source.kind is Kind.MLX_MODEL and quantization is None and dtype is None:
        raise InputError(f"{source.path} is an MLX model already", hint="-q quantises it, --dtype casts it")
    if quantization is not None and ("quantization" in source.config or "quantization_config" in source.config):
        raise ModelError(f"model {source.path} is quantised already", hint="quantise the model it was made from")


def check_shards(path: Path) -> None:
    """Checks that all files of a model in several are there."""
    if not (path / INDEX_FILE).is_file():
        return
    weight_map = read_json(path / INDEX_FILE, f"model {path}", ModelError).get("weight_map")
    files = weight_map.values() if isinstance(weight_map, dict) else ()
    missing = sorted({str(name) for name in files if not (path / str(name)).is_file()})
    if missing:
        raise ModelError(f"model {path} is incomplete: {', '.join(missing)} missing", hint="fetch it again")


def check_sizes(model: nn.Module, group_size: int, path: Path, say: Callable[[str], None]) -> None:
    """Checks that layers of a model can be quantised in such groups, and says how many cannot."""
    layers = [module for _, module in model.named_modules() if hasattr(module, "to_quantized")]
    plain = [layer for layer in layers if layer.weight.shape[-1] % group_size]
    if len(plain) == len(layers):
        sizes = sorted({layer.weight.shape[-1] for layer in layers})
        raise ModelError(
            f"model {path} cannot be quantised in groups of {group_size}: "
            f"its layers take {', '.join(map(str, sizes))} inputs",
            hint="choose a --q-group-size that divides these",
        )
    if plain:
        say(f"{len(plain)} of {len(layers)} layers stay plain: {group_size} does not divide their number of inputs")


def _record_dtype(file: Path, dtype: str) -> None:
    """Keeps config.json true after a cast: tools that read the type from it would undo the cast."""
    content = read_json(file, "converted model", ModelError)
    content |= {key: dtype for key in ("dtype", "torch_dtype") if key in content}
    file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
