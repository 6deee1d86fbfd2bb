"""``parm-mlx train``: preference data → a PARM adapter."""

from pathlib import Path
from typing import Annotated

import typer

from parm_mlx.cli import console


def train(
    model: Annotated[
        str | None, typer.Option("--model", help="Backbone of the PARM: directory or hub id of an MLX model.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Preference data: a .jsonl file (split by prompt), or a folder with train.jsonl and valid.jsonl, "
            "or with one file per objective.",
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Directory for the adapter.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with any of these settings; flags override it.")
    ] = None,
    iters: Annotated[int | None, typer.Option("--iters", help="Number of steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the data, instead of --iters.", show_default="2")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs per step.", show_default="8")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Highest learning rate; cosine decay.", show_default="0.0005"),
    ] = None,
    warmup: Annotated[int | None, typer.Option("--warmup", help="Steps of linear warm-up.", show_default="20")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="Decoupled weight decay.", show_default="0.05")
    ] = None,
    max_seq_length: Annotated[
        int | None,
        typer.Option(
            "--max-seq-length",
            help="Most tokens of a prompt with its response; longer pairs are left out, never cut.",
            show_default="1024",
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            "--objectives", help="Names in the order of alpha, comma-separated.", show_default="from the data"
        ),
    ] = None,
    beta_objective: Annotated[
        str | None,
        typer.Option(
            "--beta-objective", help="Beta of each objective, comma-separated, or one for all.", show_default="0.01"
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", help="Margin that the preferred response should win by.", show_default="0"),
    ] = None,
    dirichlet: Annotated[
        float | None,
        typer.Option(
            "--dirichlet", help="Concentration of the distribution that alpha is drawn from.", show_default="0.5"
        ),
    ] = None,
    alpha_per: Annotated[
        str | None,
        typer.Option("--alpha-per", help="Draw one alpha per 'example' or per 'batch'.", show_default="example"),
    ] = None,
    r1: Annotated[
        int | None, typer.Option("--r1", help="Rank that does not depend on alpha.", show_default="4")
    ] = None,
    r2: Annotated[int | None, typer.Option("--r2", help="Rank that depends on alpha.", show_default="4")] = None,
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", help="The update is scaled by this over r2.", show_default="8")
    ] = None,
    dropout: Annotated[
        float | None, typer.Option("--dropout", help="Share of the adapter's input dropped.", show_default="0.05")
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            "--target-modules",
            help="Name suffixes of the adapted layers, comma-separated.",
            show_default="query, key and value projections",
        ),
    ] = None,
    steps_per_report: Annotated[
        int | None, typer.Option("--steps-per-report", help="Steps between reports.", show_default="10")
    ] = None,
    steps_per_eval: Annotated[
        int | None, typer.Option("--steps-per-eval", help="Steps between validations.", show_default="200")
    ] = None,
    val_batches: Annotated[
        int | None,
        typer.Option("--val-batches", help="Batches per validation; -1: all, 0: none.", show_default="25"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of everything random.", show_default="0")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter that exists at --out.")] = False,
) -> None:
    """Train a PARM adapter on preference data.

    Rows are {"prompt": "…", "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
    or {"prompt": "…", "chosen": "…", "rejected": "…", "objective": "helpful"}, one JSON object per line.

    Ctrl-C ends the training after the step in progress and saves what has been learned.

    \b
    Examples:
      parm-mlx train --model base --data pairs.jsonl --out my-parm --iters 200
      parm-mlx train --model base --data pairs/ --out my-parm --objectives harmless,helpful
      parm-mlx train --config train.yaml --learning-rate 1e-4 --out second-try
    """
    flags = {name: value for name, value in locals().items() if name not in ("config", "force")}
    from parm_mlx.training.config import TrainConfig

    settings = TrainConfig.from_sources(config, flags)
    console.blas_hint()
    from parm_mlx.training.progress import ConsoleProgress
    from parm_mlx.training.trainer import train as run

    result = run(settings, force=force, progress=ConsoleProgress(console.stderr()))
    typer.echo(str(result.out))
    if result.interrupted:
        console.note(f"interrupted: the adapter holds what {result.steps} steps have learned")
        raise typer.Exit(console.INTERRUPTED)
    console.note(f"{result.steps} steps; use it with: parm-mlx chat --parm {result.out}")
