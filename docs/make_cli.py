"""Writes docs/cli.md, the reference of the command line, from the commands themselves.

``make docs`` runs it; a test checks that the file is current. The reference is read from the signatures of the command
functions, so it does not depend on the version of typer or on the width of a terminal.
"""

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

OUTPUT = Path(__file__).parent / "cli.md"
HEADER = """# The command line

Results go to stdout, everything else (progress, notes, errors) to stderr. Exit codes: 0 done, 1 a failure while
running, 2 wrong usage or input, 130 stopped with Ctrl-C, 143 training stopped with SIGTERM. `make docs` writes this
page from the commands.
"""
NOTHING = (inspect.Parameter.empty, ...)
KEEP_LINES = "\b\n"


def split(annotation: Any) -> tuple[Any, ArgumentInfo | OptionInfo | None]:
    """Takes a parameter apart into its type and typer's description of it, if it is one that a user can give."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return parts[0], next((note for note in parts[1:] if isinstance(note, (ArgumentInfo, OptionInfo))), None)
    return annotation, None


def describe_names(info: OptionInfo, parameter: str) -> str:
    """The flags of an option. In an annotation, typer keeps the first of them where the default would be."""
    flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
    return ", ".join(flags) or f"--{parameter.replace('_', '-')}"


def describe_type(kind: Any) -> str:
    """A type as a user types it: TEXT, INTEGER, a list of choices; nothing for a flag."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(member for member in typing.get_args(kind) if member is not type(None))
    if typing.get_origin(kind) is list:
        return describe_type(typing.get_args(kind)[0])
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(typing.get_args(kind))
    return {bool: "", str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}[kind]


def describe_default(info: ArgumentInfo | OptionInfo, default: Any) -> str:
    """A default value, or nothing where leaving the option out means that it is off."""
    if isinstance(info.show_default, str):
        return info.show_default
    if default in NOTHING:
        return "required"
    if default is None or default is False:
        return ""
    return f"`{default}`"


def describe_range(info: ArgumentInfo | OptionInfo) -> str:
    """The numbers that an option takes: ``1 to 64``."""
    return "" if info.min is None else f"{info.min:g} to {info.max:g}" if info.max < 1e6 else f"from {info.min:g}"


def cell(text: str) -> str:
    """Text that fits into one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def describe_text(function: Callable[..., Any]) -> str:
    """The docstring of a command; lines that are to stay as they are become a block of code."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        f"```\n{paragraph.removeprefix(KEEP_LINES)}\n```" if paragraph.startswith(KEEP_LINES) else paragraph
        for paragraph in paragraphs
    )


def describe_parameters(function: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """The arguments of a command as its usage line shows them, and a table of arguments and options."""
    hints = typing.get_type_hints(function, include_extras=True)
    arguments, rows = [], []
    for parameter in inspect.signature(function).parameters.values():
        kind, info = split(hints[parameter.name])
        default = parameter.default
        if info is None or info.hidden:
            continue
        if isinstance(info, ArgumentInfo):
            label = info.metavar or parameter.name.upper()
            arguments.append(label if default in NOTHING else f"[{label}]")
        else:
            label = f"{describe_names(info, parameter.name)} {info.metavar or describe_type(kind)}".strip()
        said = "; ".join(filter(None, (describe_default(info, default), describe_range(info))))
        rows.append(f"| `{cell(label)}` | {cell(said)} | {cell(info.help or '')} |")
    header = ["| argument or option | default; range | what it does |", "| --- | --- | --- |"]
    return arguments, [*header, *rows] if rows else []


def describe_command(name: str, function: Callable[..., Any]) -> str:
    """The section of one command: what it does, its arguments and its options."""
    arguments, table = describe_parameters(function)
    usage = " ".join([name, *arguments, "[OPTIONS]"])
    return "\n".join([f"## {name}", "", describe_text(function), "", f"Usage: `{usage}`", "", *table, ""])


def describe_commands(program: str, app: typer.Typer) -> list[str]:
    """The sections of the commands that a program, or a group of its commands, shows."""
    return [
        describe_command(f"{program} {info.name}", info.callback)
        for info in app.registered_commands
        if info.callback is not None and not info.hidden
    ]


def reference(app: typer.Typer) -> str:
    """The whole page, one section for each command that the program shows."""
    sections = [HEADER]
    if app.registered_callback is not None and app.registered_callback.callback is not None:
        _, table = describe_parameters(app.registered_callback.callback)
        sections.append("\n".join(["Before the command:", "", *table, ""]))
    sections += describe_commands("parm-mlx", app)
    for group in app.registered_groups:
        name, inner = f"parm-mlx {group.name}", group.typer_instance
        if (
            inner is not None
            and inner.registered_callback is not None
            and inner.registered_callback.callback is not None
        ):
            sections.append(f"## {name}\n\n{describe_text(inner.registered_callback.callback)}\n")
            sections += describe_commands(name, inner)
    return "\n".join(sections)


if __name__ == "__main__":
    from parm_mlx.cli.app import app

    OUTPUT.write_text(reference(app), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")
