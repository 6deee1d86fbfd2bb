"""Models to MLX, quantised or not: Hugging Face causal LMs, sequence classifiers of decoders, Beaver's score models."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.convert.detect import Kind, Source
from parm_mlx.errors import ConfigError, InputError, ModelError
from parm_mlx.files import pickled_weights
from parm_mlx.mlxlm import (
    TokenizerWrapper,
    check_finite_files,
    config_dtype,
    load_backbone,
    load_weights_and_tokenizer,
    save_converted,
    weight_files,
)
from parm_mlx.outputs import new_directory
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.rewards.model import HEAD_FILE, RewardSettings

_PROBE = 512
_HEADS = ("score", "score_head", "normalizer")
_DIRECTION = {True: "lower is better, so scores are negated", False: "higher is better"}


@dataclass(frozen=True)
class Quantization:
    """Quantisation settings, in MLX's terms; None is MLX's default for the mode."""

    mode: str = "affine"  # or mxfp4, nvfp4, mxfp8
    bits: int | None = None  # per weight
    group_size: int | None = None  # neighbouring weights that share a scale

    def effective_group_size(self) -> int:
        """Returns the group size with MLX's default filled in; raises a ConfigError if MLX has no such quantisation."""
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
    note: Callable[[str], None],
) -> None:
    """Writes a Hugging Face causal LM or reward model, or an MLX model to be quantised or cast, in MLX's format.

    Args:
        source: The model.
        out: The directory to write.
        quantization: How to quantise; not at all if None.
        dtype: Type of all weights, and of the scales of those that are quantised, but of a reward model's head, which
            stays in float32; the one in the model's config if None.
        lower_is_better: The outputs of a reward model are costs; found out if None.
        force: Replace an existing model.
        note: Takes notes for the user.

    Raises:
        InputError: There is nothing to do.
        ModelError: The model is not readable, not supported by mlx-lm, or cannot be quantised as asked.
    """
    if source.kind is Kind.MLX_MODEL and quantization is None and dtype is None:
        raise InputError(f"{source.path} is an MLX model already", hint="-q quantises it, --dtype casts it")
    if quantization is not None and any(source.config.get(key) for key in ("quantization", "quantization_config")):
        raise ModelError(f"model {source.path} is quantised already", hint="quantise the model it was made from")
    head = None
    if source.kind is Kind.HF_REWARD:
        model, tokenizer, head = _load_reward_model(source, lower_is_better, note)
    else:
        model, tokenizer = load_weights_and_tokenizer(source.path, lazy=True)
    if quantization is not None:
        _check_sizes(model, quantization.effective_group_size(), source.path, note)
    if dtype is None and "float64" in (source.config.get("dtype"), source.config.get("torch_dtype")):
        note("MLX's models do not compute in float64, which config.json names: the weights become float32")
        dtype = "float32"
    dtype = dtype or config_dtype(source.config)
    check_finite_files(source.path, dtype)
    with new_directory(out, force, [source.path]) as partial:
        if head is not None:
            tensors, settings = head
            mx.save_safetensors(str(partial / HEAD_FILE), tensors, metadata={"format": "mlx"})
            settings.save(partial)
        given = astuple(quantization) if quantization is not None else None
        save_converted(partial, model, tokenizer, source.path, dtype, given)


def _check_sizes(model: nn.Module, group_size: int, path: Path, note: Callable[[str], None]) -> None:
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
        note(f"{len(plain)} of {len(layers)} layers stay plain: {group_size} does not divide their number of inputs")


def _load_reward_model(
    source: Source, lower_is_better: bool | None, note: Callable[[str], None]
) -> tuple[nn.Module, TokenizerWrapper, tuple[Tensors, RewardSettings]]:
    """Loads the backbone without an output layer, its tokenizer, and the head: tensors in float32, and settings."""
    pickled = pickled_weights(source.path)
    if pickled and not any(source.path.glob("*.safetensors")):
        raise ModelError(
            f"model {source.path} holds no model*.safetensors (found {pickled}): pickled weights can run any code "
            "and are not read",
            hint="docs/rewards.md shows how to write them as safetensors",
        )
    weight_files(source.path)
    try:
        model, tokenizer, found = load_backbone(source.path, _HEADS, lazy=True)
    except ModelError as error:
        hint = error.hint or f"where transformers can load it, hf:{source.name} scores with it as it is"
        raise ModelError(str(error), hint=hint) from None
    is_score = any(key.startswith("score_head.") for key in found)
    prefix = "score_head." if is_score else "score."
    tensors = {
        key.removeprefix(prefix): value.astype(mx.float32) for key, value in found.items() if key.startswith(prefix)
    }
    if "weight" not in tensors or not tensors.keys() <= {"weight", "bias"} or tensors["weight"].ndim != 2:
        listed = ", ".join(sorted(tensors)) or "no"
        raise ModelError(f"model {source.path} has no linear score head: {listed} tensors")
    config = source.config
    if config.get("do_normalize"):
        raise ModelError(f"model {source.path} normalises its scores (do_normalize), which is not supported")
    lower = _is_cost(source, note) if lower_is_better is None else lower_is_better
    outputs = tensors["weight"].shape[0]
    if is_score and outputs == 1:
        labels: tuple[str, ...] = ("cost" if lower else "reward",)
    else:
        names: Any = config.get("id2label")
        names = names if isinstance(names, dict) else {}
        labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(outputs))
    note(f"outputs {', '.join(labels)}; {_DIRECTION[lower]}")
    settings = RewardSettings(
        kind="score" if is_score else "sequence-classification",
        labels=labels,
        lower_is_better=lower,
        chat_template="beaver" if is_score else None,
        pad_token_id=None if is_score else config.get("pad_token_id"),
    )
    return model, tokenizer, (tensors, settings)


def _is_cost(source: Source, note: Callable[[str], None]) -> bool:
    """Returns True if the model's name, or else Beaver's config, says that it gives costs."""
    texts = {"its name": Path(source.name).name.lower(), "its config": str(source.config.get("score_type"))}
    for what, text in texts.items():
        if ("cost" in text) != ("reward" in text):
            cost = "cost" in text
            other = "--higher-is-better" if cost else "--lower-is-better"
            note(f"taken for a {'cost' if cost else 'reward'} by {what}; {other} says otherwise")
            return cost
    note("neither its name nor its config says cost or reward: taken for a reward; --lower-is-better says otherwise")
    return False
