import errno
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from parm_mlx.cli import app as cli
from parm_mlx.errors import RunError

Run = Callable[..., tuple[int, str, str]]
COMMANDS = ("demo", "chat", "generate", "train", "refine", "convert", "fuse", "data")


def test_help_names_every_command(run_cli: Run) -> None:
    code, out, err = run_cli("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run_cli: Run, command: str) -> None:
    code, out, _ = run_cli(command, "--help")
    assert code == 0
    assert f"parm-mlx {command}" in out.partition("Example")[2]


def test_no_command_shows_the_help(run_cli: Run) -> None:
    assert run_cli() == run_cli("--help")


def test_the_version(run_cli: Run) -> None:
    import parm_mlx

    assert run_cli("--version") == (0, f"parm-mlx {parm_mlx.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["generate", "--nonsense"], "No such option"),
        (["generate", "--beta", "strong", "--prompt", "x"], "beta must be a number from 1e-06 to 1e+06, got 'strong'"),
        (["nonsense"], "No such command"),
        (["generate", "--max-tokens", "0", "--prompt", "x"], "max-tokens"),
        (["generate", "--top-p", "2", "--prompt", "x"], "top-p"),
        (["fuse"], "Missing"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(run_cli: Run, arguments: list[str], reason: str) -> None:
    code, out, err = run_cli(*arguments)
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert reason in lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])


def failing(error: BaseException) -> Callable[..., None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (RunError("the disk is full", hint="make room"), 1, "error: the disk is full\nhint: make room\n"),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(errno.EACCES, "Permission denied", "locked/x"), 2, "error: locked/x: Permission denied\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xxx"), 2, "error: xxx: File name too long\n"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 1, "error: x: Too many open files\nhint: `ulimit -n"),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 1, "error: out: No space left on device\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory"),
            2,
            "error: the current directory does not exist",
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "error: a text is not UTF-8: "),
        (RuntimeError("Could not determine home directory."), 2, "error: a path begins with ~"),
        (ImportError("libmlx.so: cannot open shared object file"), 1, "error: MLX has no back end"),
        (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero\nhint: this was not"),
    ],
)
def test_failures_have_an_exit_code_and_no_traceback(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, shown: str
) -> None:
    app = cli.typer.Typer()
    app.command("fail")(failing(error))
    app.callback()(cli.options)
    monkeypatch.setattr(cli, "app", app)
    got, out, err = run_cli("fail")
    assert (got, out) == (code, "")
    assert err.startswith(shown)
    assert "Traceback" not in err
    if code != 130:
        with pytest.raises(type(error)):
            run_cli("fail", "--debug")


def test_ctrl_c_while_the_commands_are_imported(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        @property
        def app(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "parm_mlx.cli.app", Interrupted())
    code, out, err = run_cli("--help")
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_brackets_in_errors_are_no_markup(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    app = cli.typer.Typer()
    app.command("fail")(failing(RunError("[red]tensor[0][/red] is broken")))
    app.callback()(cli.options)
    monkeypatch.setattr(cli, "app", app)
    assert run_cli("fail")[2] == "error: [red]tensor[0][/red] is broken\n"


def test_help_and_usage_errors_wait_for_no_heavy_import() -> None:
    script = (
        "import sys; from parm_mlx.cli.main import run; run(['--help']); run(['generate', '--nope']);"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'huggingface_hub', 'numpy', 'yaml', 'jinja2'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


WAITING = """
import time
from parm_mlx import files
from parm_mlx.cli.main import main

def wait(*arguments):
    print("ready", flush=True)
    time.sleep(60)

files.read_text = wait
main(["train", "--config", "x.yaml"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_program_with_its_exit_code_and_no_traceback(number: int, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert (out, err) == (b"", b"interrupted\n" if number == signal.SIGINT else b"")
