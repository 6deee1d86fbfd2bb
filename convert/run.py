"""One conversion from beginning to end: find the source, see what it is, convert it, write the result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parm_mlx.convert.detect import Kind, Source, detect
from parm_mlx.convert.lora import read_lora, write_lora
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.convert.pblora import read_pblora, write_pblora
from parm_mlx.convert.reward import convert_reward_model
from parm_mlx.errors import AdapterError, InputError
from parm_mlx.files import resolve
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.pblora.adapter import (
    Tensors,
    backbone_reference,
    find_backbone,
    load_into,
    read_adapter,
    save_adapter,
)
from parm_mlx.pblora.config import PBLoRAConfig

Say = Callable[[str], None]
MODELS = (Kind.HF_MODEL, Kind.MLX_MODEL, Kind.HF_REWARD, Kind.MLX_REWARD)


@dataclass(frozen=True)
class Request:
    """What is to be converted, and how.

    Attributes:
        source: Directory or hub id of a model or an adapter.
        out: The directory to write.
        to_peft: Write an adapter in PEFT's format, not in ours.
        force: Replace an existing model or adapter.
        quantization: How to quantise a model.
        dtype: The type of a model's plain weights.
        objectives: Names of an adapter's objectives, in the order of training.
        guide_model: Directory or hub id of an adapter's backbone.
        lower_is_better: Whether a reward model gives costs; None finds out.
    """

    source: str
    out: Path
    to_peft: bool = False
    force: bool = False
    quantization: Quantization | None = None
    dtype: str | None = None
    objectives: str | None = None
    guide_model: str | None = None
    lower_is_better: bool | None = None


def convert(request: Request, say: Say) -> None:
    """Converts a model or an adapter.

    Args:
        request: What to do.
        say: Where notes go, the detected kind first.

    Raises:
        InputError: The source cannot be converted as asked; nothing was written.
        RunError: A download or a write failed; nothing was written.
    """
    check_new(request.out, request.force, [request.source, request.guide_model])
    source = detect(resolve(request.source, "source"))
    say(f"{request.source} is a {source.kind.value}")
    _check_options(request, source.kind)
    if source.kind in MODELS:
        how: dict[str, Any] = {"quantization": request.quantization, "dtype": request.dtype, "force": request.force}
        if source.kind is Kind.HF_REWARD:
            how |= {"name": request.source, "lower_is_better": request.lower_is_better}
            convert_reward_model(source, request.out, say=say, **how)
        else:
            convert_model(source, request.out, say=say, **how)
    else:
        _convert_adapter(request, source, say)


def _check_options(request: Request, kind: Kind) -> None:
    refused = {}
    if kind in MODELS:
        refused = {
            "--to peft": request.to_peft,
            "--objectives": request.objectives is not None,
            "--guide-model": request.guide_model is not None,
        }
    else:
        refused = {"-q": request.quantization is not None, "--dtype": request.dtype is not None}
    if kind is not Kind.HF_REWARD:
        refused["--lower-is-better"] = request.lower_is_better is True
        refused["--higher-is-better"] = request.lower_is_better is False
    given = [option for option, is_given in refused.items() if is_given]
    if given:
        raise InputError(f"{', '.join(given)} cannot be used here: {request.source} is a {kind.value}")
    if kind is Kind.MLX_REWARD:
        raise InputError(
            f"{request.source} is a parm-mlx reward model already", hint="convert the model that it was made from"
        )
    if kind is Kind.PARM and not request.to_peft:
        raise InputError(f"{request.source} is a parm-mlx adapter already", hint="--to peft writes it in PEFT's format")
    if kind is Kind.PARM and request.objectives is not None:
        raise InputError("--objectives cannot be used with --to peft: PEFT's config has no place for names")
    if kind is not Kind.PARM and request.to_peft:
        raise InputError(f"{request.source} is in PEFT's format already")


def _convert_adapter(request: Request, source: Source, say: Say) -> None:
    config, tensors = _read(request, source, say)
    given = request.guide_model
    if given is not None:
        path = resolve(given, "guide model")
        _check_backbone(request, path, config, tensors)
        is_hub_id = not Path(given).expanduser().is_dir()
        absolute = given if is_hub_id else str(path.resolve())
        config = replace(config, base_model=absolute if request.to_peft else backbone_reference(given, request.out))
    elif request.to_peft and config.base_model is not None:
        config = replace(config, base_model=str(find_backbone(source.path, config.base_model)))
    with new_directory(request.out, request.force, [source.path, given]) as partial:
        if not request.to_peft:
            save_adapter(partial, config, tensors)
        elif config.kind == "lora":
            write_lora(partial, config, tensors, config.base_model if given else None)
        else:
            write_pblora(partial, config, tensors, config.base_model if given else None)
    say(_describe(config, tensors))


def _read(request: Request, source: Source, say: Say) -> tuple[PBLoRAConfig, Tensors]:
    if source.kind is Kind.PARM:
        return read_adapter(source.path)
    read = read_pblora if source.kind is Kind.PEFT_PBLORA else read_lora
    config, tensors = read(source.path, source.config, request.objectives)
    if request.objectives is None:
        order = " (the official safety task's order is harmless,helpful)" if config.k == 2 else ""
        say(f"PEFT's config names no objectives: called {', '.join(config.objectives)}; --objectives names them{order}")
    if request.guide_model is None:
        say("not checked against its backbone; --guide-model does that")
    return config, tensors


def _check_backbone(request: Request, path: Path, config: PBLoRAConfig, tensors: Tensors) -> None:
    backbone, _ = load_weights_and_tokenizer(path, lazy=True)
    try:
        load_into(backbone, config, tensors)
    except AdapterError as error:
        what = f"{request.source} on guide model {request.guide_model}"
        raise AdapterError(f"{what}: {error}", hint=error.hint) from None


def _describe(config: PBLoRAConfig, tensors: Tensors) -> str:
    layers = sum(name.endswith(".a") for name in tensors)
    backbone = config.base_model or "not recorded"
    return (
        f"objectives {', '.join(config.objectives)}; r1={config.r1}, r2={config.r2}, scale {config.scale:g}; "
        f"{layers} layers ({', '.join(config.target_modules)}); backbone {backbone}"
    )
