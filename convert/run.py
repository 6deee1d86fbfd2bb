"""Conversion of one source: detection, conversion, output."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parm_mlx.convert import peft
from parm_mlx.convert.detect import Kind, Source, detect
from parm_mlx.convert.gguf import unpack
from parm_mlx.convert.gguf_file import is_gguf
from parm_mlx.convert.model import Quantization, convert_model
from parm_mlx.errors import AdapterError, InputError, ModelError
from parm_mlx.files import expanded, is_dir, resolve
from parm_mlx.guidance.templates import check_template
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.outputs import check_new, new_directory
from parm_mlx.pblora.adapter import backbone_reference, find_backbone, load_into, read_adapter, save_adapter

Note = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """A conversion, with options for one kind of source each."""

    source: str  # directory or hub id of a model or an adapter, or a GGUF file
    out: Path
    to_peft: bool = False  # an adapter in PEFT's format, not in ours
    force: bool = False
    quantization: Quantization | None = None  # of a model
    dtype: str | None = None  # of a model's plain weights
    objectives: str | None = None  # names of an adapter's, in the order of training
    guide_model: str | None = None  # directory or hub id of an adapter's backbone
    chat_template: str | None = None  # the built-in one that an adapter was trained with
    lower_is_better: bool | None = None  # a reward model gives costs; found out if None


def convert(request: Request, note: Note) -> None:
    """Converts a model or an adapter; ``note`` takes notes for the user, the detected kind first.

    Raises:
        InputError: The source cannot be converted as asked; nothing was written.
        RunError: A download or a write failed; nothing was written.
    """
    check_new(request.out, request.force, [request.source, request.guide_model])
    check_template(request.chat_template)
    if is_gguf(request.source):
        source = Source(expanded(request.source), Kind.GGUF, {}, request.source)
    else:
        source = detect(resolve(request.source, "source"), request.source)
    note(f"{source.name} is a {source.kind.value}")
    _check_options(request, source.kind)
    if source.kind is Kind.GGUF:
        _convert_gguf(request, source.path, note)
    elif source.kind.is_model:
        _convert_model(request, source, note)
    else:
        _convert_adapter(request, source, note)


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


def _convert_model(request: Request, source: Source, note: Note) -> None:
    convert_model(
        source,
        request.out,
        quantization=request.quantization,
        dtype=request.dtype,
        lower_is_better=request.lower_is_better,
        force=request.force,
        note=note,
    )


def _convert_gguf(request: Request, path: Path, note: Note) -> None:
    """Unpacks a GGUF model, and then quantises or casts it where that is asked."""
    if request.quantization is None and request.dtype is None:
        with new_directory(request.out, request.force, [path]) as partial:
            notes, _ = unpack(path, partial)
    else:
        with tempfile.TemporaryDirectory(prefix="parm-mlx-") as folder:
            notes, is_quantised = unpack(path, Path(folder))
            if is_quantised and request.quantization is not None:
                raise ModelError(f"{path} is quantised already", hint="it converts without -q, as it is")
            unpacked = replace(detect(Path(folder)), kind=Kind.HF_MODEL, name=request.source)
            _convert_model(request, unpacked, note)
    for line in notes:
        note(line)


def _convert_adapter(request: Request, source: Source, note: Note) -> None:
    given = request.guide_model
    if source.kind is Kind.PARM:
        config, tensors = read_adapter(source.path)
    else:
        config, tensors = peft.read(source.path, source.config, request.objectives)
        config = replace(config, chat_template=request.chat_template)
        if request.objectives is None:
            names = ", ".join(config.objectives)
            order = " (the official safety task's order is harmless,helpful)" if config.k == 2 else ""
            note(f"PEFT's config names no objectives: called {names}; --objectives names them{order}")
        if given is None:
            note("not checked against its backbone; --guide-model does that")
    if given is not None:
        path = resolve(given, "guide model")
        backbone, _ = load_weights_and_tokenizer(path, lazy=True)
        try:
            load_into(backbone, config, tensors)
        except AdapterError as error:
            raise AdapterError(f"{request.source} on guide model {given}: {error}", hint=error.hint) from None
        is_hub_id = not is_dir(expanded(given, ModelError), ModelError)
        absolute = given if is_hub_id else str(path.resolve())
        config = replace(config, base_model=absolute if request.to_peft else backbone_reference(given, request.out))
    elif request.to_peft and config.base_model is not None:
        config = replace(config, base_model=str(find_backbone(source.path, config)))
    with new_directory(request.out, request.force, [source.path, given]) as partial:
        if not request.to_peft:
            save_adapter(partial, config, tensors)
        else:
            peft.write(partial, config, tensors, config.base_model if given else None)
    layers = sum(name.endswith(".a") for name in tensors)
    note(
        f"objectives {', '.join(config.objectives)}; r1={config.r1}, r2={config.r2}, scale {config.scale:g}; "
        f"{layers} layers ({', '.join(config.target_modules)}); backbone {config.base_model or 'not recorded'}"
    )
