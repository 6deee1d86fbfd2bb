"""``parm-mlx convert``: models and adapters in other formats to ours, and adapters back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parm_mlx.cli import console
from parm_mlx.cli.options import UploadRepo, flag, grouped, path_or_id
from parm_mlx.errors import InputError
from parm_mlx.hub import check_upload, upload
from parm_mlx.ranges import Whole
from parm_mlx.settings import PATH, TemplateName


@grouped
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Model or adapter: directory or hub id, or a GGUF file. Its kind is detected.", parser=path_or_id
        ),
    ],
    out: Annotated[Path, flag("Directory to write.")],
    force: Annotated[bool, flag("Replace an existing model or adapter in --out.")] = False,
    quantize: Annotated[bool, typer.Option("-q", "--quantize", help="Quantise a model.")] = False,
    q_bits: Annotated[int | None, flag("Bits per weight.", Whole(1, 8), default_text="4; mxfp8: 8")] = None,
    q_group_size: Annotated[
        int | None, flag("Weights that share a scale.", Whole(1, 1024), default_text="64 in mode affine")
    ] = None,
    q_mode: Annotated[
        Literal["affine", "mxfp4", "nvfp4", "mxfp8"] | None, flag("How to quantise.", default_text="affine")
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        flag("Type of a model's plain weights.", default_text="what its config says"),
    ] = None,
    to: Annotated[Literal["mlx", "peft"], flag("Format of the result.")] = "mlx",
    objectives: Annotated[
        str | None,
        flag(
            'Names of an adapter\'s objectives, in the order of training: "harmless,helpful".',
            default_text="objective_1, objective_2, …",
        ),
    ] = None,
    guide_model: Annotated[
        str | None,
        flag(
            "Backbone of an adapter: directory or hub id. The adapter is checked against it and records it.",
            PATH,
            default_text="what the adapter records, unchecked",
        ),
    ] = None,
    chat_template: Annotated[
        TemplateName | None,
        flag(
            "Built-in chat template that an adapter was trained with; the adapter records it.",
            default_text="the tokenizer's own",
        ),
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        flag(
            "Whether a reward model gives costs, which are negated.",
            name="--lower-is-better/--higher-is-better",
            default_text="cost or reward in its name or config",
        ),
    ] = None,
    upload_repo: UploadRepo = None,
) -> None:
    """Convert models, reward models and adapters.

    Hugging Face causal LMs become MLX models. Sequence classifiers of decoders and Beaver's score models become reward
    models for evaluate and data relabel. GGUF files of llama.cpp become MLX models with the same weights, bit for bit
    where MLX has their format (docs/gguf.md). PARM adapters of the official code (PEFT, PBLORA) and plain LoRA adapters
    (PEFT, LORA: a GenARM reward model) become PARM adapters of parm-mlx; --to peft takes them back, tensor for tensor.

    \b
    Examples:
      parm-mlx convert Qwen/Qwen2.5-0.5B-Instruct --out base -q --q-bits 4
      parm-mlx convert SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2
      parm-mlx convert beaver-7b-v1.0-cost --out models/beaver-cost -q
      parm-mlx convert official-adapter --out parm --objectives harmless,helpful --guide-model backbone
      parm-mlx convert parm --out official-again --to peft
    """
    details = {"--q-bits": q_bits, "--q-group-size": q_group_size, "--q-mode": q_mode}
    given = [option for option, value in details.items() if value is not None]
    if given and not quantize:
        raise InputError(f"{', '.join(given)} needs -q", hint="add -q to quantise the model")
    check_upload(upload_repo)

    from parm_mlx.convert.card import card
    from parm_mlx.convert.model import Quantization
    from parm_mlx.convert.run import Request
    from parm_mlx.convert.run import convert as run

    request = Request(
        source=source,
        out=out,
        to_peft=to == "peft",
        force=force,
        quantization=Quantization(q_mode or "affine", q_bits, q_group_size) if quantize else None,
        dtype=dtype,
        objectives=objectives,
        guide_model=guide_model,
        chat_template=chat_template,
        lower_is_better=lower_is_better,
    )
    run(request, console.note)
    console.echo(out)
    if upload_repo is not None:
        console.note(f"uploaded: {upload(out, upload_repo, card(out, source, upload_repo))}")
