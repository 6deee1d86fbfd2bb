"""The screen that a person sees, in terminals of several widths."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pyte
import pytest

ROWS = 200
BUNDLED = ("--model", "bundled")
QUESTION = "How do I bake bread?"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, arguments: Sequence[object], columns: int, home: Path) -> None:
        self.screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(home), "HOME": str(home)}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # pytest-xdist sets the size
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "parm_mlx.cli.main", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=home,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(slave)
        self._master = master

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 180) -> None:
        """Reads until a text is on the screen."""
        end = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < end:
            self._read(0.05)
        assert text in self.text, self.text

    def finish(self, seconds: float = 300) -> int:
        """Reads to the end of what the program writes; returns its exit code."""
        end = time.monotonic() + seconds
        while self._read(0.05):
            assert time.monotonic() < end, self.text
        os.close(self._master)
        return self.process.wait()

    def _read(self, seconds: float) -> bool:
        """Reads what comes within some seconds; returns False at the end."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux, where the program has gone
            return False
        if b"\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
            os.write(self._master, f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R".encode())
        self._stream.feed(data)
        return bool(data)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without the empty ones after the last."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().splitlines()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def words(text: str) -> list[str]:
    return text.split()


def piped(arguments: Sequence[object], home: Path) -> str:
    """What the same command prints into a pipe."""
    command = [sys.executable, "-m", "parm_mlx.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=home, timeout=300).stdout


def assert_clean(terminal: Terminal) -> None:
    """No piece of a progress bar is left."""
    assert not re.search(r"[━╸╺]|\d+%|\d+:\d\d", terminal.text), terminal.text


ASKED = {
    "one": ("generate", QUESTION, *BUNDLED, "--alpha", "0,1", "--max-tokens", 60),
    "several": ("generate", QUESTION, *BUNDLED, "--alpha", "base", "--alpha", "1,0", "--max-tokens", 60),
    "demo": ("demo", *BUNDLED, "--prompt", QUESTION, "--max-tokens", 50),
}


@pytest.mark.parametrize(("name", "columns"), [("one", 200), ("several", 80), ("demo", 60)])
def test_answers_are_whole_words_without_pieces_of_a_bar(name: str, columns: int, tmp_path: Path) -> None:
    terminal = Terminal(ASKED[name], columns, tmp_path)
    assert terminal.finish() == 0
    assert_clean(terminal)
    printed = words(piped(ASKED[name], tmp_path))
    shown = words(terminal.text)
    start = next(i for i in range(len(shown)) if shown[i : i + 3] == printed[:3])
    assert shown[start : start + len(printed)] == printed
    if columns == 60:
        assert max(map(len, terminal.lines)) <= 60


def test_a_conversation_is_clean_has_history_and_completes(tmp_path: Path) -> None:
    terminal = Terminal(("chat", *BUNDLED, "--alpha", "1,0", "--temp", 0, "--max-tokens", 24), 60, tmp_path)
    terminal.wait_for(">>")
    terminal.write("/al\t")
    terminal.wait_for("/alpha")
    terminal.write(" foc\t")
    terminal.wait_for("focus=")
    terminal.write("1,war\t")
    terminal.wait_for("focus=1,warmth=")
    terminal.write("0\r")
    terminal.wait_for("preference: warmth=0 focus=1")
    terminal.write("\x1b[200~How do I bake bread?\nI have an oven.\x1b[201~\r")
    terminal.wait_for("cut at 24 tokens")
    before = terminal.text.count("bake bread?")
    assert before == 1, "a pasted message is asked once"
    terminal.write("\x1b[A")
    terminal.wait_for(">> How do I bake bread?")
    terminal.write("\x03")
    terminal.wait_for("leaves")
    terminal.write("/bye\r")
    assert terminal.finish() == 0
    assert_clean(terminal)
    again = Terminal(("chat", *BUNDLED, "--alpha", "1,0"), 80, tmp_path)
    again.wait_for(">>")
    again.write("\x1b[A")
    again.wait_for("/bye")
    again.write("\r")
    assert again.finish() == 0


@pytest.mark.parametrize("after", [0.0, 0.3])
def test_ctrl_c_leaves_a_clean_line(after: float, tmp_path: Path) -> None:
    """At such a temperature answers do not come to an end."""
    terminal = Terminal(("generate", QUESTION, *BUNDLED, "--max-tokens", 900, "--temp", 100), 80, tmp_path)
    while not terminal.lines:
        assert terminal._read(0.02), "the answer has begun"
    begun = time.monotonic()
    while time.monotonic() < begun + after:
        terminal._read(0.02)
    terminal.write("\x03")
    assert terminal.finish() == 130, terminal.text
    assert terminal.lines[-1] == "interrupted"
    assert "Traceback" not in terminal.text


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {i}?", "responses": ["Yes, of course.", "No."], "preferred": {"warm": 0, "brief": 1}}
        for i in range(8)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_training_and_evaluation_leave_no_bar_and_no_broken_word(pairs: Path, tmp_path: Path) -> None:
    train = ("train", *BUNDLED, "--data", pairs, "--out", "parm", "--iters", 3, "--batch-size", 2)
    evaluate = ("evaluate", *BUNDLED, "--out", "run", "--limit", 1, "--grid", 1, "--max-tokens", 8, "--bootstrap", 5)
    for command, notes in (
        (train, ("3 steps are few: alpha rarely moves an adapter", "memory: ")),
        (evaluate, ("3 answers, ", "hypervolume")),
    ):
        terminal = Terminal(command, 60, tmp_path)
        assert terminal.finish() == 0, terminal.text
        assert not re.search(r"[━╸╺]", terminal.text), terminal.text
        shown = " ".join(words(terminal.text))
        for note in notes:
            assert note in shown
