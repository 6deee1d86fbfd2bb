"""``parm-mlx train``: preference data → a PARM adapter."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parm_mlx.cli import console, options
from parm_mlx.training.config import SMOOTHING, TrainConfig


def train(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", help="Backbone of the PARM: directory or hub id of an MLX model.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Preference data: a file (.jsonl or .json, or either with .gz; split by prompt), a folder with "
            "train.jsonl and valid.jsonl, or with one file or one such folder per objective, or a hub id: "
            "owner/name or owner/name:folder,folder.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Directory for the adapter.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with any of these settings; flags override it.")
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            help="PARM adapter to begin from, directory or hub id. Its objectives come first; those that are new begin "
            "as the mean of its own.",
            show_default="a fresh adapter",
        ),
    ] = None,
    iters: Annotated[
        int | None, typer.Option("--iters", help="Number of steps.", show_default="as --epochs says")
    ] = None,
    epochs: Annotated[
        float, typer.Option("--epochs", help="Passes over the training pairs, instead of --iters.")
    ] = TrainConfig.epochs,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Pairs that are computed together.")
    ] = TrainConfig.batch_size,
    grad_accumulation_steps: Annotated[
        int,
        typer.Option(
            "--grad-accumulation-steps",
            help="Batches per step: the same step as one larger batch, in the memory of a small one.",
        ),
    ] = TrainConfig.grad_accumulation_steps,
    grad_checkpoint: Annotated[
        bool,
        typer.Option("--grad-checkpoint", help="Compute layers again in the backward pass: less memory, more time."),
    ] = TrainConfig.grad_checkpoint,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="Highest learning rate; it decays with a cosine.")
    ] = TrainConfig.learning_rate,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps of linear warm-up.")] = TrainConfig.warmup,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", help="Decoupled weight decay of the adapter.")
    ] = TrainConfig.weight_decay,
    max_seq_length: Annotated[
        int,
        typer.Option(
            "--max-seq-length",
            help="Most tokens of a prompt with its response; longer pairs are left out, never cut.",
        ),
    ] = TrainConfig.max_seq_length,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used, instead of refusing the data.")
    ] = TrainConfig.skip_bad,
    chat_template: options.TrainedTemplate = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives",
            help="Names in the order of alpha, comma-separated.",
            show_default="those of the data",
        ),
    ] = None,
    beta_objective: Annotated[
        str, typer.Option("--beta-objective", help="Beta of each objective, comma-separated, or one for all.")
    ] = ",".join(map(str, TrainConfig.beta_objective)),
    gamma: Annotated[
        float, typer.Option("--gamma", help="Margin that the preferred response should win by.")
    ] = TrainConfig.gamma,
    dirichlet: Annotated[
        float,
        typer.Option(
            "--dirichlet",
            help="Concentration of the Dirichlet distribution that alpha is drawn from; below 1, corners are likelier.",
        ),
    ] = TrainConfig.dirichlet,
    alpha_per: Annotated[
        Literal["example", "batch"] | None,
        typer.Option(
            "--alpha-per",
            help="Draw one alpha per pair, or one per step.",
            show_default="example; batch for tchebycheff",
        ),
    ] = None,
    scalarization: Annotated[
        Literal["linear", "tchebycheff"],
        typer.Option(
            "--scalarization",
            help="How alpha makes one loss of several: their weighted sum, or a smooth maximum of the weighted losses, "
            "which also finds trade-offs that no sum does.",
        ),
    ] = TrainConfig.scalarization,
    smoothing: Annotated[
        float | None,
        typer.Option(
            "--smoothing",
            help="Smoothness of the maximum of tchebycheff; smaller is closer to the plain maximum.",
            show_default=str(SMOOTHING),
        ),
    ] = None,
    adapter: Annotated[
        Literal["pblora", "lora", "svd-lora"],
        typer.Option(
            "--adapter", help="Kind of adapter; the others have as many trainable numbers as pblora with these ranks."
        ),
    ] = TrainConfig.adapter,
    r1: Annotated[int, typer.Option("--r1", help="Rank that does not depend on alpha.")] = TrainConfig.r1,
    r2: Annotated[int, typer.Option("--r2", help="Rank that depends on alpha.")] = TrainConfig.r2,
    lora_alpha: Annotated[
        float, typer.Option("--lora-alpha", help="The update is scaled by this over r2; over the rank for lora.")
    ] = TrainConfig.lora_alpha,
    dropout: Annotated[
        float, typer.Option("--dropout", help="Share of the adapter's input that is dropped.")
    ] = TrainConfig.dropout,
    target_modules: Annotated[
        str | None,
        typer.Option(
            "--target-modules",
            help="Name suffixes of the adapted layers, comma-separated.",
            show_default="query, key and value projections",
        ),
    ] = None,
    steps_per_report: Annotated[
        int, typer.Option("--steps-per-report", help="Steps between reports.")
    ] = TrainConfig.steps_per_report,
    steps_per_eval: Annotated[
        int, typer.Option("--steps-per-eval", help="Steps between validations.")
    ] = TrainConfig.steps_per_eval,
    steps_per_save: Annotated[
        int, typer.Option("--steps-per-save", help="Steps between checkpoints, in OUT.checkpoints.")
    ] = TrainConfig.steps_per_save,
    keep_checkpoints: Annotated[
        int,
        typer.Option(
            "--keep-checkpoints",
            help="How many of the newest checkpoints to keep, besides the best by validation.",
        ),
    ] = TrainConfig.keep_checkpoints,
    save: Annotated[
        Literal["last", "best"],
        typer.Option("--save", help="Which adapter is the result: of the last step, or the best by validation loss."),
    ] = TrainConfig.save,
    val_batches: Annotated[
        int, typer.Option("--val-batches", help="Batches per validation; -1 for all, 0 for none.")
    ] = TrainConfig.val_batches,
    report_to: Annotated[
        str | None,
        typer.Option("--report-to", help="Also send the numbers to trackers: wandb, swanlab, comma-separated."),
    ] = None,
    project_name: Annotated[
        str, typer.Option("--project-name", help="Project that trackers show the run in.")
    ] = TrainConfig.project_name,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = TrainConfig.seed,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the newest checkpoint, with the same settings, data and models."),
    ] = False,
    resume_anyway: Annotated[
        bool,
        typer.Option(
            "--resume-anyway", help="Continue also where data or models have changed; the adapter records it."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an adapter that exists at --out, and checkpoints of an earlier run."),
    ] = False,
) -> None:
    """Train a PARM adapter on preference data.

    A row of the data is one JSON object on a line; "prompt" is a text or a list of messages.

    \b
      {"prompt": "…", "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
      {"prompt": "…", "chosen": "…", "rejected": "…", "objective": "helpful"}

    Rows of HH-RLHF and of PKU-SafeRLHF are read as they are; `parm-mlx data inspect` shows what is in the data.

    While training, checkpoints are written to OUT.checkpoints; each can be used as an adapter. After Ctrl-C, a kill or
    a full disk, the same command with --resume goes on as if nothing had happened. Ctrl-C and SIGTERM finish the step
    in progress and save first. The finished adapter takes the place of the checkpoints; only the best by validation
    stays, when it is not the result. Where data, the backbone or the adapter of --start-from have changed, --resume is
    refused and names what has; --resume-anyway goes on.

    \b
    Examples:
      parm-mlx train --model base --data pairs.jsonl --out my-parm --iters 200
      parm-mlx train --model base --data pairs/ --out my-parm --objectives harmless,helpful
      parm-mlx train --model base --data pairs.jsonl --out my-parm --iters 200 --resume
      parm-mlx train --model base --data three.jsonl --out wider --start-from my-parm --iters 100
      parm-mlx train --config train.yaml --learning-rate 1e-4 --out second-try
    """
    names = context.params.keys() - {"config", "force", "resume", "resume_anyway"}
    given = {name: context.params[name] for name in names if _is_given(context, name)}
    settings = TrainConfig.from_sources(config, given)
    console.blas_hint()
    from parm_mlx.training.progress import ConsoleProgress
    from parm_mlx.training.run import train as run

    progress = ConsoleProgress(console.stderr())
    result = run(settings, force=force, resume=resume, resume_anyway=resume_anyway, progress=progress)
    if result.rank:
        raise typer.Exit(128 + result.signal if result.signal else 0)
    console.echo(result.out)
    if result.signal is not None:
        console.note(
            f"stopped at step {result.steps}; the same command with --resume finishes the run\n"
            f"{result.out} holds what has been learned; try it: parm-mlx chat --parm {result.out}"
        )
        raise typer.Exit(128 + result.signal)
    console.note(f"{result.steps} steps done; try it: {console.program()} chat --parm {result.out}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
