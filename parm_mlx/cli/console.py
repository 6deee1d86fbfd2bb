"""What commands print: results on stdout; notes, progress and errors on stderr."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import parm_mlx
from parm_mlx.errors import ParmError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

INTERRUPTED = 130


@cache
def stderr() -> "Console":
    """The console for everything that is not a result; plain when stderr is no terminal or NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


@cache
def stdout() -> "Console":
    """The console for results."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def program() -> str:
    """What to type to run this program: its name if the shell finds it, else its path."""
    import os
    import shutil
    import sys

    path = Path(os.path.relpath(sys.argv[0]))
    return str(path) if path.name == "parm-mlx" and not shutil.which("parm-mlx") else "parm-mlx"


def note(message: str) -> None:
    """Says something beside the results."""
    stderr().print(message, style="dim", markup=False)


def show_error(error: ParmError) -> None:
    """Shows an error and its hint."""
    print_error(str(error), error.hint)


def print_error(message: str, hint: str | None = None) -> None:
    """Writes ``error: …`` and ``hint: …``."""
    stderr().print(f"[bold red]error:[/] {_escaped(message)}")
    if hint:
        stderr().print(f"[cyan]hint:[/] {_escaped(hint)}")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def blas_hint() -> None:
    """Says in one line that matrix products are slow on this machine, where they are."""
    if not parm_mlx.FAST_BLAS:
        from parm_mlx.blas import HINT

        stderr().print(f"[cyan]hint:[/] {HINT}")


def progress(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    """Passes items on, with a progress bar on stderr when that is a terminal."""
    from rich.progress import track

    if not stderr().is_terminal:
        yield from items
        return
    yield from track(items, label, total, console=stderr(), transient=True)
