"""Models: Hugging Face causal LMs and reward models to MLX, quantised or not."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.convert.detect import Kind, Source
from parm_mlx.convert.reward import load_reward_model
from parm_mlx.errors import ConfigError, InputError, ModelError
from parm_mlx.mlxlm import check_finite_files, config_dtype, load_weights_and_tokenizer, save_converted
from parm_mlx.outputs import new_directory

_PROBE = 512


@dataclass(frozen=True)
class Quantization:
    """How to quantise, in MLX's terms.

    Attributes:
        mode: affine, mxfp4, nvfp4 or mxfp8.
        bits: Bits per weight; MLX's default for the mode if None.
        group_size: Neighbouring weights that share a scale; MLX's default for the mode if None.
    """

    mode: str = "affine"
    bits: int | None = None
    group_size: int | None = None

    def effective_group_size(self) -> int:
        """Returns the group size with MLX's default filled in.

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
    lower_is_better: bool | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> None:
    """Writes a model in MLX's format.

    Args:
        source: A Hugging Face causal LM or reward model, or an MLX model that is to be quantised or cast.
        out: The directory to write.
        quantization: How to quantise; not at all if None.
        dtype: Type of all weights that are not quantised; the one in the model's config if None. The head of a reward
            model stays in float32.
        lower_is_better: Whether the outputs of a reward model are costs; found out if None.
        force: Replace an existing model.
        say: Takes notes for the user.

    Raises:
        InputError: There is nothing to do.
        ModelError: The model is not readable, not supported by mlx-lm, or cannot be quantised as asked.
        OutputError: ``out`` exists or cannot be written.
        RunError: Writing failed.
    """
    _check_request(source, quantization, dtype)
    head = None
    if source.kind is Kind.HF_REWARD:
        model, tokenizer, head = load_reward_model(source, lower_is_better, say)
    else:
        model, tokenizer = load_weights_and_tokenizer(source.path, lazy=True)
    if quantization is not None:
        _check_sizes(model, quantization.effective_group_size(), source.path, say)
    dtype = _checked_dtype(source, dtype, say)
    with new_directory(out, force, [source.path]) as partial:
        if head is not None:
            head.save(partial)
        given = astuple(quantization) if quantization is not None else None
        save_converted(partial, model, tokenizer, source.path, dtype, given)


def _check_request(source: Source, quantization: Quantization | None, dtype: str | None) -> None:
    """Checks that there is something to do, and that it can be done to this model."""
    if source.kind is Kind.MLX_MODEL and quantization is None and dtype is None:
        raise InputError(f"{source.path} is an MLX model already", hint="-q quantises it, --dtype casts it")
    if quantization is not None and any(source.config.get(key) for key in ("quantization", "quantization_config")):
        raise ModelError(f"model {source.path} is quantised already", hint="quantise the model it was made from")


def _check_sizes(model: nn.Module, group_size: int, path: Path, say: Callable[[str], None]) -> None:
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


def _checked_dtype(source: Source, dtype: str | None, say: Callable[[str], None]) -> str | None:
    """The type to cast to, if any; the numbers of the model are finite and stay so in it."""
    if dtype is None and "float64" in (source.config.get("dtype"), source.config.get("torch_dtype")):
        say("MLX's models do not compute in float64, which config.json names: the weights become float32")
        dtype = "float32"
    dtype = dtype or config_dtype(source.config)
    check_finite_files(source.path, dtype)
    return dtype
