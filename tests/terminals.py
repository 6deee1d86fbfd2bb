"""Commands in terminals of their own, and what must be on their screens in the end.

    python tests/terminals.py

runs every command at 60, 80 and 200 columns, and Ctrl-C at ten moments; tests/cli/test_terminal.py does some of it.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pyte

ROWS = 200
BUNDLED = ("--model", "bundled")
QUESTION = "How do I bake bread?"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, arguments: Sequence[object], columns: int, home: Path, keep_cache: bool = False) -> None:
        self.screen = pyte.Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self.screen)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": str(home)}
        if not keep_cache:
            environment["HOME"] = str(home)
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
            self.read(0.05)
        assert text in self.text, self.text

    def wait_for_main(self) -> None:
        """Waits until the program handles SIGTERM, which it does before its imports; off Linux, for a moment."""
        status = Path("/proc", str(self.process.pid), "status")
        if not status.exists():
            time.sleep(0.15)
            return
        end = time.monotonic() + 60
        while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            assert time.monotonic() < end, "the program has not begun"
            time.sleep(0.005)

    def finish(self, seconds: float = 300) -> int:
        """Reads to the end of what the program writes; returns its exit code."""
        end = time.monotonic() + seconds
        while self.read(0.05):
            assert time.monotonic() < end, self.text
        os.close(self._master)
        return self.process.wait()

    def read(self, seconds: float) -> bool:
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


ANSWERING = {
    "one": ("generate", QUESTION, *BUNDLED, "--alpha", "0,1", "--max-tokens", 40, "--speculation", "off"),
    "several": ("generate", QUESTION, *BUNDLED, "--alpha", "base", "--alpha", "1,0", "--max-tokens", 40),
    "demo": ("demo", *BUNDLED, "--prompt", QUESTION, "--max-tokens", 30),
}


def check_answers(name: str, columns: int, home: Path) -> None:
    """Answers are whole words, the same as in a pipe, and no bar is left between them."""
    terminal = Terminal(ANSWERING[name], columns, home)
    assert terminal.finish() == 0
    assert_clean(terminal)
    printed = words(piped(ANSWERING[name], home))
    shown = words(terminal.text)
    start = next(i for i in range(len(shown)) if shown[i : i + 3] == printed[:3])
    assert shown[start : start + len(printed)] == printed


def check_chat(columns: int, home: Path) -> None:
    """A pasted message is asked once, the last line comes back, and commands and objectives complete."""
    terminal = Terminal(
        ("chat", *BUNDLED, "--alpha", "1,0", "--temp", 0, "--max-tokens", 24, "--speculation", "off"), columns, home
    )
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
    terminal.write("/be")  # typed while the answer comes
    terminal.wait_for("cut at 24 tokens")
    terminal.wait_for(">> /be")
    assert terminal.text.count("bake bread?") == 1
    terminal.write("\x15")
    terminal.write("\x1b[A")
    terminal.wait_for(">> How do I bake bread?")
    terminal.write("\x03")
    terminal.wait_for("leaves")
    terminal.write("/bye\r")
    assert terminal.finish() == 0
    assert_clean(terminal)
    again = Terminal(("chat", *BUNDLED, "--alpha", "1,0", "--speculation", "off"), columns, home)
    again.wait_for(">>")
    again.write("\x1b[A")
    again.wait_for("/bye")
    again.write("\r")
    assert again.finish() == 0


def write_pairs(home: Path) -> None:
    """A few pairs to train on."""
    rows = [
        {"prompt": f"Question {i}?", "responses": ["Yes, of course.", "No."], "preferred": {"warm": 0, "brief": 1}}
        for i in range(8)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TRAIN = ("train", *BUNDLED, "--data", "pairs.jsonl", "--iters", 3, "--batch-size", 2)
EVALUATE = ("evaluate", *BUNDLED, "--limit", 1, "--grid", 1, "--max-tokens", 8, "--bootstrap", 5)


def check_work(columns: int, home: Path) -> None:
    """Training and evaluation leave no bar and break no word."""
    write_pairs(home)
    out = f"-{columns}"
    for command, notes in (
        ((*TRAIN, "--out", "parm" + out), ("3 steps are few: alpha rarely moves an adapter", "memory: ")),
        ((*EVALUATE, "--out", "run" + out), ("3 answers, ", "hypervolume")),
    ):
        terminal = Terminal(command, columns, home)
        assert terminal.finish() == 0, terminal.text
        assert not re.search(r"[━╸╺]", terminal.text), terminal.text
        shown = " ".join(words(terminal.text))
        for note in notes:
            assert note in shown, terminal.text


# At such a temperature answers do not come to an end.
ENDLESS = ("generate", QUESTION, *BUNDLED, "--max-tokens", 900, "--temp", 100)
LONG_TRAIN = (*TRAIN, "--iters", 5000, "--val-batches", 0, "--warmup", 0)
LONG_EVALUATE = (*EVALUATE, "--limit", 50, "--grid", 0.1, "--max-tokens", 200)
MOMENTS: dict[str, tuple[tuple[object, ...], str, float]] = {  # the command, the text that is waited for, and how long
    "imports": (ENDLESS, "", 0),
    "loading": (ENDLESS, "", 0.8),
    "first words": (ENDLESS, "\n", 0),
    "an answer": (ENDLESS, "\n", 0.3),
    "a bar": ((*ENDLESS, "--alpha", "base", "--alpha", "1,0"), "answers", 0.2),
    "a demo": (("demo", *BUNDLED, "--max-tokens", 900, "--temp", 100), "alone]", 0.4),
    "training": (LONG_TRAIN, "tokens/s", 0.1),
    "the first step": (LONG_TRAIN, "trainable numbers", 0.1),
    "evaluating": (LONG_EVALUATE, "answers", 0.5),
    "a chat": (("chat", *BUNDLED, "--max-tokens", 900, "--temp", 100), ">>", 0.3),
}


def check_ctrl_c(moment: str, home: Path) -> None:
    """Ctrl-C ends a command with one line, without a piece of a bar or a traceback; in a chat it stops the answer."""
    command, text, after = MOMENTS[moment]
    write_pairs(home)
    if command[0] in ("train", "evaluate"):
        command = (*command, "--out", moment.replace(" ", "-"))
    terminal = Terminal(command, 80, home)
    if not text:
        terminal.wait_for_main()
    elif text == "\n":
        while not terminal.lines:
            assert terminal.read(0.02), "the answer has begun"
    else:
        terminal.wait_for(text)
    if command[0] == "chat":
        terminal.write(f"{QUESTION}\r")
    begun = time.monotonic()
    while time.monotonic() < begun + after:
        terminal.read(0.02)
    terminal.write("\x03")
    if command[0] == "chat":
        terminal.wait_for("stopped")
        terminal.write("/bye\r")
    code = terminal.finish()
    assert code == (0 if command[0] == "chat" else 130), terminal.text
    assert "Traceback" not in terminal.text
    assert not re.search(r"[━╸╺]", terminal.text), terminal.text
    if command[0] in ("generate", "demo"):
        assert terminal.lines[-1] == "interrupted", terminal.text
    if command[0] in ("train", "evaluate"):
        shown = " ".join(words(terminal.text))
        assert "--resume finishes the run" in shown or "the same command goes on" in shown or "interrupted" in shown


def main() -> None:
    """Runs everything."""
    checks = [(check_answers, name, columns) for columns in (60, 80, 200) for name in ANSWERING]
    everything = [*checks, *((check, columns) for columns in (60, 80, 200) for check in (check_chat, check_work))]
    failed = 0
    for check, *given in [*everything, *((check_ctrl_c, moment) for moment in MOMENTS)]:
        with tempfile.TemporaryDirectory() as home:
            try:
                check(*given, Path(home))  # type: ignore[operator]
                print("ok    ", check.__name__, *given, flush=True)  # type: ignore[attr-defined]
            except AssertionError as reason:
                failed += 1
                print("FAILED", check.__name__, *given, reason, flush=True)  # type: ignore[attr-defined]
    sys.exit(f"{failed} failed" if failed else 0)


if __name__ == "__main__":
    main()
