"""One conversion from beginning to end: find the source, see what it is, convert it, write the result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parm_mlx.convert.detect import Kind, Source, detect
from parm_mlx.convert.lora import is_lora, read_lora, write_lora
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.convert.pblora import read_pblora, write_pblora
from parm_mlx.errors import AdapterError, InputError, OutputError
from parm_mlx.files import check_new, new_directory, resolve
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.pblora.adapter import Tensors, load_into, read_adapter, save_adapter
from parm_mlx.pblora.config import PBLoRAConfig

Say = Callable[[str], None]
MODELS = (Kind.HF_MODEL, Kind.MLX_MODEL)


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
    """

    source: str
    out: Path
    to_peft: bool = False
    force: bool = False
    quantization: Quantization | None = None
    dtype: str | None = None
    objectives: str | None = None
    guide_model: str | None = None


def convert(request: Request, say: Say) -> Kind:
    """Converts a model or an adapter.

    Args:
        request: What to do.
        say: Where notes go, the detected kind first.

    Returns:
        What the source is.

    Raises:
        InputError: The source cannot be converted as asked; nothing was written.
        RunError: A download or a write failed; nothing was written.
    """
    check_new(request.out, request.force)
    source = detect(resolve(request.source, "source"))
    say(f"{request.source} is a {source.kind.value}")
    _check_options(request, source.kind)
    _keep_apart(request.out, source.path)
    if source.kind in MODELS:
        convert_model(
            source,
            request.out,
            quantization=request.quantization,
            dtype=request.dtype,
            force=request.force,
            say=say,
        )
    else:
        _convert_adapter(request, source, say)
    return source.kind


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
    given = [option for option, is_given in refused.items() if is_given]
    if given:
        raise InputError(f"{', '.join(given)} cannot be used here: {request.source} is a {kind.value}")
    if kind is Kind.PARM and not request.to_peft:
        raise InputError(f"{request.source} is a parm-mlx adapter already", hint="--to peft writes it in PEFT's format")
    if kind is Kind.PARM and request.objectives is not None:
        raise InputError("--objectives cannot be used with --to peft: PEFT's config has no place for names")
    if kind is not Kind.PARM and request.to_peft:
        raise InputError(f"{request.source} is in PEFT's format already")


def _keep_apart(out: Path, source: Path) -> None:
    written, read = out.expanduser().resolve(), source.resolve()
    if written == read or written in read.parents:
        raise OutputError(f"--out {out} would replace {source}, which is read", hint="choose another --out")


def _convert_adapter(request: Request, source: Source, say: Say) -> None:
    config, tensors = _read(request, source, say)
    backbone = None
    if request.guide_model is not None:
        backbone = _checked_backbone(request.guide_model, request.source, config, tensors)
        config = replace(config, base_model=backbone)
    with new_directory(request.out, request.force) as partial:
        if not request.to_peft:
            save_adapter(partial, config, tensors)
        elif is_lora(config, tensors):
            write_lora(partial, config, tensors, backbone)
        else:
            write_pblora(partial, config, tensors, backbone)
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


def _checked_backbone(guide_model: str, adapter: str, config: PBLoRAConfig, tensors: Tensors) -> str:
    """Checks the shapes of an adapter against its backbone, and returns how the adapter should record that one."""
    path = resolve(guide_model, "guide model")
    backbone, _ = load_weights_and_tokenizer(path, lazy=True)
    try:
        load_into(backbone, config, tensors)
    except AdapterError as error:
        raise AdapterError(f"{adapter} on guide model {guide_model}: {error}", hint=error.hint) from None
    return str(path.resolve()) if Path(guide_model).expanduser().is_dir() else guide_model


def _describe(config: PBLoRAConfig, tensors: Tensors) -> str:
    layers = sum(name.endswith(".a") for name in tensors)
    backbone = config.base_model or "not recorded"
    return (
        f"objectives {', '.join(config.objectives)}; r1={config.r1}, r2={config.r2}, scale {config.scale:g}; "
        f"{layers} layers ({', '.join(config.target_modules)}); backbone {backbone}"
    )
