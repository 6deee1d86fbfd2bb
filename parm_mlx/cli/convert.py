"""``parm-mlx convert``: models and adapters in other formats to ours, and adapters back."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from parm_mlx.cli import console
from parm_mlx.errors import InputError


class Mode(enum.StrEnum):
    """MLX's quantisation modes."""

    AFFINE = "affine"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    MXFP8 = "mxfp8"


class DType(enum.StrEnum):
    """Types that weights can be stored in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Format(enum.StrEnum):
    """Formats of the result."""

    MLX = "mlx"
    PEFT = "peft"


def convert(
    source: Annotated[str, typer.Argument(help="Model or adapter: directory or hub id. Its kind is detected.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing model or adapter in --out.")] = False,
    quantize: Annotated[bool, typer.Option("-q", "--quantize", help="Quantise a model.")] = False,
    q_bits: Annotated[
        int | None, typer.Option("--q-bits", min=1, max=8, help="Bits per weight.", show_default="4; mxfp8: 8")
    ] = None,
    q_group_size: Annotated[
        int | None,
        typer.Option(
            "--q-group-size", min=1, max=1024, help="Weights that share a scale.", show_default="64 in mode affine"
        ),
    ] = None,
    q_mode: Annotated[Mode | None, typer.Option("--q-mode", help="How to quantise.", show_default="affine")] = None,
    dtype: Annotated[
        DType | None,
        typer.Option("--dtype", help="Type of a model's plain weights.", show_default="what its config says"),
    ] = None,
    to: Annotated[Format, typer.Option("--to", help="Format of the result.")] = Format.MLX,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives",
            help='Names of an adapter\'s objectives, in the order of training: "harmless,helpful".',
            show_default="objective_1, objective_2, …",
        ),
    ] = None,
    guide_model: Annotated[
        str | None,
        typer.Option(
            "--guide-model",
            help="Backbone of an adapter: directory or hub id. The adapter is checked against it and records it.",
            show_default="what the adapter records, unchecked",
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            help="Built-in chat template that an adapter was trained with; the adapter records it.",
            show_default="the tokenizer's own",
        ),
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-is-better/--higher-is-better",
            help="Whether a reward model gives costs, which are negated.",
            show_default="cost or reward in its name or config",
        ),
    ] = None,
) -> None:
    """Convert models, reward models and adapters.

    Hugging Face causal LMs become MLX models. Sequence classifiers of decoders and Beaver's score models become reward
    models for evaluate and data relabel. PARM adapters of the official code (PEFT, PBLORA) and plain LoRA adapters
    (PEFT, LORA: a GenARM reward model) become PARM adapters of parm-mlx; --to peft takes them back, tensor for tensor.

    \b
    Examples:
      parm-mlx convert Qwen/Qwen2.5-0.5B-Instruct --out base -q --q-bits 4
      parm-mlx convert beaver-7b-v1.0-cost --out models/beaver-cost -q
      parm-mlx convert official-adapter --out parm --objectives harmless,helpful --guide-model backbone
      parm-mlx convert parm --out official-again --to peft
    """
    given = {"--q-bits": q_bits, "--q-group-size": q_group_size, "--q-mode": q_mode}
    lone = [option for option, value in given.items() if value is not None]
    if lone and not quantize:
        raise InputError(f"{', '.join(lone)} needs -q", hint="add -q to quantise the model")

    from parm_mlx.convert.model import Quantization
    from parm_mlx.convert.run import Request
    from parm_mlx.convert.run import convert as run

    quantization = Quantization((q_mode or Mode.AFFINE).value, q_bits, q_group_size) if quantize else None
    request = Request(
        source=source,
        out=out,
        to_peft=to is Format.PEFT,
        force=force,
        quantization=quantization,
        dtype=dtype.value if dtype else None,
        objectives=objectives,
        guide_model=guide_model,
        chat_template=chat_template,
        lower_is_better=lower_is_better,
    )
    run(request, console.note)
    console.echo(out)
