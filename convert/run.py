"""One conversion from beginning to end: find the source, see what it is, convert it, write the result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parm_mlx.convert.detect import Kind, Source, detect
from parm_mlx.convert.lora import read_lora, write_lora
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.convert.pblora import read_pblora, write_pblora
from parm_mlx.errors import AdapterError, InputError, ModelError
from parm_mlx.files import expanded, is_dir, resolve
from parm_mlx.guidance.templates import check_template
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


@dataclass(frozen=True)
class Request:
    """A conversion.

    Attributes:
        source: Directory or hub id of a model or an adapter.
        out: The directory to write.
        to_peft: Write an adapter in PEFT's format, not in ours.
        force: Replace an existing model or adapter.
        quantization: How to quantise a model.
        dtype: The type of a model's plain weights.
        objectives: Names of an adapter's objectives, in the order of training.
        guide_model: Directory or hub id of an adapter's backbone.
        chat_template: Name of the built-in chat template that an adapter was trained with.
        lower_is_better: Whether a reward model gives costs; found out if None.
    """

    source: str
    out: Path
    to_peft: bool = False
    force: bool = False
    quantization: Quantization | None = None
    dtype: str | None = None
    objectives: str | None = None
    guide_model: str | None = None
    chat_template: str | None = None
    lower_is_better: bool | None = None


def convert(request: Request, say: Say) -> None:
    """Converts a model or an adapter.

    Args:
        request: The source, the result, and options.
        say: Takes notes for the user, the detected kind first.

    Raises:
        InputError: The source cannot be converted as asked; nothing was written.
        RunError: A download or a write failed; nothing was written.
    """
    check_new(request.out, request.force, [request.source, request.guide_model])
    check_template(request.chat_template)
    source = detect(resolve(request.source, "source"), request.source)
    say(f"{source.name} is a {source.kind.value}")
    _check_options(request, source.kind)
    if not source.kind.is_model:
        _convert_adapter(request, source, say)
        return
    convert_model(
        source,
        request.out,
        quantization=request.quantization,
        dtype=request.dtype,
        lower_is_better=request.lower_is_better,
        force=request.force,
        say=say,
    )


def _check_options(request: Request, kind: Kind) -> None:
    refused = {
        "--to peft": kind.is_model and request.to_peft,
        "--objectives": kind.is_model and request.objectives is not None,
        "--guide-model": kind.is_model and request.guide_model is not None,
        "--chat-template": kind.is_model and request.chat_template is not None,
        "-q": not kind.is_model and request.quantization is not None,
        "--dtype": not kind.is_model and request.dtype is not None,
        "--lower-is-better": kind is not Kind.HF_REWARD and request.lower_is_better is True,
        "--higher-is-better": kind is not Kind.HF_REWARD and request.lower_is_better is False,
    }
    if given := [option for option, is_refused in refused.items() if is_refused]:
        raise InputError(f"{', '.join(given)} cannot be used here: {request.source} is a {kind.value}")
    if kind is Kind.MLX_REWARD:
        raise InputError(
            f"{request.source} is a parm-mlx reward model already", hint="convert the model that it was made from"
        )
    if kind is Kind.PARM and not request.to_peft:
        raise InputError(f"{request.source} is a parm-mlx adapter already", hint="--to peft writes it in PEFT's format")
    if not request.to_peft:
        return
    if kind is not Kind.PARM:
        raise InputError(f"{request.source} is in PEFT's format already")
    for option, value in (("--objectives", request.objectives), ("--chat-template", request.chat_template)):
        if value is not None:
            raise InputError(f"{option} cannot be used with --to peft: PEFT's config has no place for it")


def _convert_adapter(request: Request, source: Source, say: Say) -> None:
    config, tensors = _read(request, source, say)
    given = request.guide_model
    if given is not None:
        path = resolve(given, "guide model")
        _check_backbone(request, path, config, tensors)
        is_hub_id = not is_dir(expanded(given, ModelError), ModelError)
        absolute = given if is_hub_id else str(path.resolve())
        config = replace(config, base_model=absolute if request.to_peft else backbone_reference(given, request.out))
    elif request.to_peft and config.base_model is not None:
        config = replace(config, base_model=str(find_backbone(source.path, config.base_model)))
    with new_directory(request.out, request.force, [source.path, given]) as partial:
        if not request.to_peft:
            save_adapter(partial, config, tensors)
        else:
            write = write_lora if config.kind == "lora" else write_pblora
            write(partial, config, tensors, config.base_model if given else None)
    layers = sum(name.endswith(".a") for name in tensors)
    say(
        f"objectives {', '.join(config.objectives)}; r1={config.r1}, r2={config.r2}, scale {config.scale:g}; "
        f"{layers} layers ({', '.join(config.target_modules)}); backbone {config.base_model or 'not recorded'}"
    )


_READERS = {Kind.PEFT_PBLORA: read_pblora, Kind.PEFT_LORA: read_lora}


def _read(request: Request, source: Source, say: Say) -> tuple[PBLoRAConfig, Tensors]:
    if source.kind is Kind.PARM:
        return read_adapter(source.path)
    config, tensors = _READERS[source.kind](source.path, source.config, request.objectives)
    if request.objectives is None:
        order = " (the official safety task's order is harmless,helpful)" if config.k == 2 else ""
        say(f"PEFT's config names no objectives: called {', '.join(config.objectives)}; --objectives names them{order}")
    if request.guide_model is None:
        say("not checked against its backbone; --guide-model does that")
    return replace(config, chat_template=request.chat_template), tensors


def _check_backbone(request: Request, path: Path, config: PBLoRAConfig, tensors: Tensors) -> None:
    backbone, _ = load_weights_and_tokenizer(path, lazy=True)
    try:
        load_into(backbone, config, tensors)
    except AdapterError as error:
        what = f"{request.source} on guide model {request.guide_model}"
        raise AdapterError(f"{what}: {error}", hint=error.hint) from None
