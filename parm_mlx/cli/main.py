"""The entry of ``parm-mlx``, and the one place that turns errors into a line and an exit code.

The commands are imported while they run, so that Ctrl-C during the imports is handled like any other.
"""

import errno
import io
import os
import signal
import sys
import termios
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from parm_mlx.cards import problem
from parm_mlx.cli import console
from parm_mlx.cli.defaults import apply_settings
from parm_mlx.errors import LostError, ParmError, QuietError
from parm_mlx.files import decoded
from parm_mlx.machine import NO_BACKEND, lacks_backend

_terminal: list[Any] | None = None  # its settings when the program began

_WRONG_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed while running, 2 wrong usage or input, 130 or 143 stopped."""
    _prepare_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    threading.excepthook = _end_lost
    if sys.stdin.isatty():
        global _terminal
        _terminal = termios.tcgetattr(sys.stdin)
    code = run(sys.argv[1:] if arguments is None else arguments)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python shuts down shows no traceback
    sys.exit(code)


def _prepare_streams() -> None:
    """Lets any text be printed in any encoding, and gives closed standard streams to the null device.

    Otherwise the next file that is opened would get the number of the closed stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _end(number: int, _frame: FrameType | None) -> None:
    """Ends the program as an exception does, so that nothing unfinished is left behind."""
    sys.exit(128 + number)


def _end_lost(failure: threading.ExceptHookArgs) -> None:
    """Ends the program where other processes are lost and MLX waits for them in the main thread, forever."""
    if isinstance(failure.exc_value, LostError | QuietError):
        if isinstance(failure.exc_value, LostError):
            _restore_terminal()
            console.print_error(str(failure.exc_value), failure.exc_value.hint)
        os._exit(failure.exc_value.exit_code)
    threading.__excepthook__(failure)


def _restore_terminal() -> None:
    """Leaves the terminal as it was: a chat that waits for a line has changed it."""
    if _terminal is not None:
        with suppress(OSError, termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, _terminal)
        sys.stderr.write("\r\n")


def run(arguments: list[str]) -> int:
    """Runs one command, given its arguments; returns the exit code."""
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [argument for argument in arguments if argument != "--debug"]
    try:
        from parm_mlx.cli.app import app

        if arguments and not {"-h", "--help", "--version"} & set(arguments):
            apply_settings()
        result = app([decoded(text, "an argument") for text in arguments], standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            error = error.__cause__
        if debug and not isinstance(error, KeyboardInterrupt | BrokenPipeError | QuietError):
            raise
        try:
            return _report(error)
        except OSError:  # stderr cannot be written either
            return 1
    return result if isinstance(result, int) else 0


def _report(error: BaseException) -> int:
    """Prints an error as one line, with a hint where there is one, and returns the exit code."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":  # typer's, where input ends
        console.note_interrupt()
        return console.INTERRUPTED
    if isinstance(error, ParmError):
        if not isinstance(error, QuietError):
            console.print_error(str(error), error.hint)
        return error.exit_code
    if hasattr(error, "format_message"):  # the command-line parser's
        if message := error.format_message():
            context = getattr(error, "ctx", None)
            console.print_error(message, f"see {context.command_path} --help" if context else None)
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError) and error.errno:
        return _report_os_error(error)
    if isinstance(error, UnicodeError):
        console.print_error(f"a text is not UTF-8: {error}")
        return 2
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.home, Path.expanduser
        console.print_error("a path begins with ~ and the name of a user that does not exist")
        return 2
    if isinstance(error, MemoryError):
        console.print_error(f"there is not enough memory: {error}", "smaller batches or a smaller model need less")
        return 1
    if lacks_backend(error):
        console.print_error(NO_BACKEND)
        return 1
    if known := problem(error):
        console.print_error(*known)
        return 1
    if isinstance(error, ValueError) and "raise maximum limit" in str(error):  # importing mlx-lm raises it to 4096
        console.print_error("mlx-lm must be allowed to open 4096 files", "raise the hard limit: ulimit -Hn 4096")
        return 1
    console.print_error(f"{type(error).__name__}: {error}", "this was not foreseen; --debug shows where it happened")
    return 1


def _report_os_error(error: OSError) -> int:
    """Prints what the system refused: a path that cannot be used is wrong input, a full disk a failure."""
    reason = error.strerror or str(error)
    hint = None
    if error.errno == errno.ENOENT and not error.filename:  # only getcwd names no file
        console.print_error("the current directory does not exist any more")
        return 2
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "`ulimit -n 1024` allows more open files"
    if error.errno in (errno.ENOSPC, errno.EIO) and not error.filename:
        with suppress(OSError, ValueError):  # what is left in the buffer of stdout cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = f"the output cannot be written: {reason}"
    console.print_error(f"{error.filename}: {reason}" if error.filename else reason, hint)
    return 2 if error.errno in _WRONG_PATH else 1


if __name__ == "__main__":
    main()
