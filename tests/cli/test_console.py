import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.cli import console

Run = Callable[..., tuple[int, str, str]]
TITLE = "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve ☕\tand\nnewline", "naïve ☕\tand\nnewline"),
        (TITLE, r"\x1b]0;owned\x07"),
        ("a\rb\x08\x00\x7f", r"a\rb\x08\x00\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("user\u202egpj.exe\u2066", r"user\u202egpj.exe\u2066"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_visible(text: str, shown: str) -> None:
    assert console.visible(text) == shown


def test_all_that_is_printed_is_visible_but_json_is_raw(capsys: pytest.CaptureFixture[str]) -> None:
    for cached in (console.stdout, console.stderr):
        cached.cache_clear()
    console.echo(TITLE)
    console.stdout().print(TITLE)
    console.note(TITLE)
    console.print_error(TITLE, TITLE)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert out == r"\x1b]0;owned\x07" + "\n" + r"\x1b]0;owned\x07" + "\n"
    assert err.count(r"\x1b]0;owned\x07") == 3
    console.record({"text": "\x9b é"})
    assert json.loads(line := capsys.readouterr().out) == {"text": "\x9b é"}
    assert "é" in line


def test_json_is_ascii_where_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    console.record({"text": "☕"})
    assert stream.buffer.getvalue() == b'{"text": "\\u2615"}\n'  # type: ignore[attr-defined]


PROGRAM = [sys.executable, "-m", "parm_mlx.cli.main"]
BAD_CONFIG = ["train", "--config", "☕.yaml"]


def shell(redirection: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f'"$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, "bash", *PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_shows_escapes(encoding: str) -> None:
    done = shell("", *BAD_CONFIG, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert r"\u2615.yaml is missing" in done.stderr


@pytest.mark.parametrize(
    ("redirection", "code", "shown"),
    [
        ("<&-", 0, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        pytest.param(
            ">/dev/full",
            1,
            "error: the output cannot be written: No space left on device\n",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only"),
        ),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_standard_streams_that_are_closed_or_full(redirection: str, code: int, shown: str) -> None:
    done = shell(redirection, "--help")
    assert "Traceback" not in done.stderr
    if "|" not in redirection:  # a short text may be written before the pipe breaks
        assert done.returncode == code
    assert done.stderr == shown


def test_arguments_that_are_not_utf_8_are_refused(run_cli: Run) -> None:
    code, out, err = run_cli("generate", "--prompt", "a\udcffb")
    assert (code, out) == (2, "")
    assert err == "error: an argument is not UTF-8: a\\udcffb\n"
