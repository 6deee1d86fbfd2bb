"""What a person types into a conversation, or a pipe holds: one message after the other."""

import os
import re
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

BLOCK = '"""'  # opens and closes a message of several lines
Words = Mapping[str, Callable[[], Sequence[str]] | None]  # commands and what may follow them; None is a path


class Lines:
    """Reads messages: at a terminal with history, completion of commands, and pasted lines as one message."""

    def __init__(self, prompt: str, words: Words) -> None:
        self._prompt = prompt
        terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._session = _session(words) if terminal else None

    def read(self) -> str | None:
        """Returns the next message, without white space around it; None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        message = self._line(self._prompt)
        if message is None or not message.startswith(BLOCK):
            return message
        lines = [message.removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK):
            line = self._line("... " if self._prompt else "")
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines).strip().removesuffix(BLOCK).strip()

    def _line(self, prompt: str) -> str | None:
        try:
            if self._session is not None:
                return str(self._session.prompt(prompt)).strip()
            if sys.stdin.isatty():
                return input(prompt).strip()
        except EOFError:
            return None
        line = sys.stdin.readline()
        return line.strip() if line else None


@contextmanager
def unechoed(shown: bool = True) -> Iterator[None]:
    """Keeps what is typed while the block prints, if it is ``shown``, out of its text; the next message gets it."""
    if not shown or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def history_file() -> Path:
    """Returns the file of what was typed: ``parm-mlx/chat_history`` in ``$XDG_STATE_HOME``, or ``~/.local/state``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "parm-mlx" / "chat_history"


def _session(words: Words) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            command, space, rest = document.text_before_cursor.partition(" ")
            if not command.startswith("/"):
                return
            if not space:
                yield from (Completion(word, -len(command)) for word in words if word.startswith(command))
            elif command in words:
                values = words[command]
                if values is None:
                    path = Document(rest, len(rest))
                    yield from PathCompleter(expanduser=True).get_completions(path, complete_event)
                else:
                    begun = re.split(r"[ ,]", rest)[-1]
                    yield from (Completion(word, -len(begun)) for word in values() if word.startswith(begun))

    history: History = InMemoryHistory()
    with suppress(OSError, RuntimeError):
        file = history_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        with file.open("a"):
            history = FileHistory(str(file))
    settings: dict[str, Any] = {"history": history, "completer": Commands(), "complete_while_typing": False}
    return PromptSession(**settings)
