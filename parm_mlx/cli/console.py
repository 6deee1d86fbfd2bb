"""Printing: results on stdout; notes, progress and errors on stderr.

Text of models, data, names and files may hold control characters. Everything here shows them as visible escapes; they
are written raw only in JSON (:func:`record`) and in files.
"""

import codecs
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import parm_mlx

if TYPE_CHECKING:
    from rich.console import Console

    from parm_mlx.cli.wrap import Wrap

T = TypeVar("T")

INTERRUPTED = 130
CUT = " …"  # after an answer that is cut off

# C0 without tab and newline, DEL, C1, embeddings, overrides and isolates of bidirectional text, surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_muted = False


def mute() -> None:
    """Prints nothing from now on but errors that end the program: another process prints the same."""
    global _muted
    _muted = True
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process


def leave_out(prefix: bytes) -> None:
    """Leaves out lines on stderr, from now on, that libraries print and that begin so; what Python prints stays."""
    own, (source, sink) = os.dup(2), os.pipe()
    sys.stderr.flush()
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    sys.stderr = os.fdopen(own, "w", buffering=1, encoding=encoding, errors="backslashreplace")
    os.dup2(sink, 2)
    os.close(sink)

    def pass_on() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if not line.startswith(prefix):
                    os.write(own, line)

    threading.Thread(target=pass_on, name="stderr", daemon=True).start()


def visible(text: str) -> str:
    """Returns a text with control characters other than newline and tab as escapes: ``\\x1b``."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: object = "", end: str = "\n") -> None:
    """Prints a result."""
    _write(visible(str(text)) + end)


def writer(indent: str = "") -> "Wrap | Plain":
    """Returns what prints the text of an answer as it comes: in whole words on a terminal, as it is elsewhere."""
    if not stdout().is_terminal:
        return Plain(indent)
    from parm_mlx.cli.wrap import Wrap

    return Wrap(lambda text: echo(text, end=""), lambda: shutil.get_terminal_size().columns, indent)


def thought_writer(indent: str = "") -> "Wrap | Silent":
    """Returns what prints the text of a thought as it comes: dimmed on a terminal, and nothing elsewhere."""
    if not stdout().is_terminal:
        return Silent()
    from parm_mlx.cli.wrap import Wrap

    def dimmed(text: str) -> None:
        stdout().print(text, style="dim", end="", soft_wrap=True)

    return Wrap(dimmed, lambda: shutil.get_terminal_size().columns, indent)


class Silent:
    """Takes text and prints nothing."""

    def feed(self, text: str) -> None:
        """Takes more text."""

    def close(self) -> None:
        """Does nothing."""


class Plain:
    """Prints the text of an answer as it is, and a line break after it."""

    def __init__(self, indent: str = "") -> None:
        self._indent, self._begun = indent, False

    def feed(self, text: str) -> None:
        """Prints more of the text."""
        lines = text.split("\n")
        for number, line in enumerate(lines):
            if number:
                echo()
                self._begun = False
            if line:
                echo(line if self._begun else self._indent + line, end="")
                self._begun = True

    def close(self) -> None:
        """Prints the line break."""
        echo()


def record(value: Any) -> None:
    """Prints a result as one line of JSON."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _write(json.dumps(value, ensure_ascii=codecs.lookup(encoding).name != "utf-8") + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@cache
def stderr() -> "Console":
    """Returns the console for everything that is not a result; plain if stderr is not a terminal or NO_COLOR is set."""
    return _console(stderr=True)


@cache
def stdout() -> "Console":
    """Returns the console for tables and coloured results."""
    return _console(markup=False)


def _console(**options: Any) -> "Console":
    from rich.console import Console

    class Visible(Console):
        def print(self, *objects: Any, **style: Any) -> None:
            super().print(*(visible(item) if isinstance(item, str) else item for item in objects), **style)

    console = Visible(highlight=False, emoji=False, **options)
    console.soft_wrap = not console.is_terminal  # a terminal breaks lines anywhere, and rich between words
    return console


def program() -> str:
    """Returns the command that runs this program: its name if the shell finds it, else its path."""
    path = Path(os.path.relpath(sys.argv[0]))
    return str(path) if path.name == "parm-mlx" and not shutil.which("parm-mlx") else "parm-mlx"


def note(message: str) -> None:
    """Prints something beside the results."""
    if _muted:
        return
    stderr().print(message, style="dim", markup=False)


def note_interrupt() -> None:
    """Notes that Ctrl-C has ended the command, in place of the ^C that a terminal shows."""
    if stderr().is_terminal:
        sys.stderr.write("\r\x1b[K")
    note("interrupted")


def print_error(message: str, hint: str | None = None) -> None:
    """Prints ``error: …`` and ``hint: …``."""
    from rich.markup import escape

    stderr().print(f"[bold red]error:[/] {escape(message)}")
    if hint:
        stderr().print(f"[cyan]hint:[/] {escape(hint)}")


def blas_hint() -> None:
    """Says in one line that matrix products are slow on this machine, if they are."""
    if not parm_mlx.FAST_BLAS:
        from parm_mlx.machine import BLAS_HINT

        stderr().print(f"[cyan]hint:[/] {BLAS_HINT}")


def progress(items: Iterable[T], total: int | None, label: str) -> Iterator[T]:
    """Passes items on, with a progress bar on stderr if that is a terminal."""
    from rich.progress import track

    shown = stderr().is_terminal and not _muted
    yield from track(items, label, total, console=stderr(), transient=True) if shown else items


def waiting(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """As :func:`progress`, for items that are printed: the bar is there while one is waited for, and only then."""
    if _muted or not stderr().is_terminal:
        yield from items
        return
    from rich.progress import Progress

    bar = Progress(console=stderr(), transient=True)
    task = bar.add_task(label, total=total)
    left = iter(items)
    while True:
        with bar:
            item = next(left, None)
        if item is None:
            return
        bar.advance(task)
        yield item
