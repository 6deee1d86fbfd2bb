"""The commands of ``parm-mlx``."""

from typing import Annotated

import typer

import parm_mlx
from parm_mlx.cli import (
    bench,
    chat,
    console,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    fuse,
    generate,
    refine,
    serve,
    train,
)

app = typer.Typer(
    name="parm-mlx",
    help="Steer a language model by preference while it generates.",
    epilog="Start with: parm-mlx demo",
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

app.command("demo", short_help="Answer unseen questions at several preferences.")(demo.demo)
app.command("chat", short_help="Chat, and change the preference at any turn.")(chat.chat)
app.command("generate", short_help="Answer prompts at one or several preferences.")(generate.generate)
app.command("serve", short_help="Serve models to OpenAI's clients, and a page.")(serve.serve)
app.command("evaluate", short_help="Measure how answers follow the preference.")(evaluate.evaluate)
app.command("train", short_help="Train a PARM adapter on preference data.")(train.train)
app.command("refine", short_help="Bring one-pass guidance nearer to exact guidance.")(refine.refine)
app.command("convert", short_help="Convert models and adapters.")(convert.convert)
app.command("fuse", short_help="Fix a PARM at one preference as a plain model.")(fuse.fuse)
app.command("bench", short_help="Measure the speed of guided decoding.")(bench.bench)
app.command("doctor", short_help="Examine this machine.")(doctor.doctor)
app.add_typer(data.app, name="data", short_help="Inspect and prepare preference data.")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.echo(f"parm-mlx {parm_mlx.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Steer a language model by preference while it generates."""
    if context.invoked_subcommand is None:
        console.echo(context.get_help())
