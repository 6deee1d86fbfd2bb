"""The ``parm-mlx`` command: registers the commands, and turns errors into one line and an exit code."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from parm_mlx import __version__
from parm_mlx.cli import bench, chat, console, convert, data, demo, doctor, evaluate, fuse, generate, train
from parm_mlx.errors import ParmError, QuietError

app = typer.Typer(
    name="parm-mlx",
    help="Steer a language model by preference while it generates.",
    epilog="Start with: parm-mlx demo",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

app.command("demo", short_help="Answer unseen questions at several preferences.")(demo.demo)
app.command("chat", short_help="Chat, and change the preference at any turn.")(chat.chat)
app.command("generate", short_help="Answer prompts at one or several preferences.")(generate.generate)
app.command("evaluate", short_help="Measure how answers follow the preference.")(evaluate.evaluate)
app.command("train", short_help="Train a PARM adapter on preference data.")(train.train)
app.command("convert", short_help="Convert models and adapters.")(convert.convert)
app.command("fuse", short_help="Fix a PARM at one preference as a plain model.")(fuse.fuse)
app.command("bench", short_help="Measure the speed of guided decoding.")(bench.bench)
app.command("doctor", short_help="Examine this machine.")(doctor.doctor)
app.add_typer(data.app, name="data", short_help="Inspect and prepare preference data.")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parm-mlx {__version__}")
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
        typer.echo(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed while running, 2 wrong usage or input, 130 or 143 stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends the program by its own hand, so that nothing unfinished is left behind."""
    sys.exit(128 + number)


def run(arguments: list[str]) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code.
    """
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [argument for argument in arguments if argument != "--debug"]
    try:
        result = app(arguments, standalone_mode=False)
    except ParmError as error:
        if debug:
            raise
        if not isinstance(error, QuietError):
            console.show_error(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _other(error, debug)
    return result if isinstance(result, int) else 0


def _other(error: BaseException, debug: bool) -> int:
    """Usage errors and aborts of the command-line parser, Ctrl-C, and whatever was not foreseen."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        console.note("interrupted")
        return console.INTERRUPTED
    if debug:
        raise error
    if hasattr(error, "format_message"):
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            console.print_error(message, f"see {context.command_path} --help" if context else None)
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, MemoryError):
        console.print_error(f"there is not enough memory: {error}", "smaller batches or a smaller model need less")
        return 1
    console.print_error(f"{type(error).__name__}: {error}", "this was not foreseen; --debug shows where it happened")
    return 1


if __name__ == "__main__":
    main()
