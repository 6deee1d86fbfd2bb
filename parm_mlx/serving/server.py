"""Runs the application, and watches its engine."""

import errno
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from parm_mlx.errors import InputError
from parm_mlx.serving.app import make_app
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.service import Service
from parm_mlx.serving.settings import LOCAL, ServerOptions

WATCH = 1.0  # seconds between two looks at the engine
TOLD = 3.0  # seconds in which clients are told that the engine has ended
DRAIN = 10  # seconds beyond the time of an answer that its connection may take when the server ends
KEEP_ALIVE = 30
BACKLOG = 512
FILES = 10240  # connections and files at a time, where the system allows it: macOS begins with 256


def check_options(options: ServerOptions) -> None:
    """Raises InputError where a server would be open to other machines without a key, or its key cannot be sent."""
    if options.host not in LOCAL and not options.api_key:
        hint = "give a key with --api-key or PARM_MLX_API_KEY"
        raise InputError(f"--host {options.host} is reached from other machines, and needs --api-key", hint=hint)
    if options.api_key and not (options.api_key.isascii() and options.api_key.isprintable()):
        raise InputError("--api-key goes into a header of HTTP: letters, digits and signs of ASCII only")


def listen(options: ServerOptions) -> socket.socket:
    """Takes the address, before models are loaded.

    Raises:
        InputError: It cannot be taken.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = error.strerror if isinstance(error, OSError) else "there is no such address"
        message = f"{options.host}:{options.port} cannot be listened at: {reason}"
        raise InputError(message, hint="take another --port" if taken else None) from None
    return listener


class Server(uvicorn.Server):
    """Ends when the answers that were asked for are given or, at a second signal, with an error for each."""

    def __init__(self, config: uvicorn.Config, engine: Engine, note: Callable[[str], None]) -> None:
        super().__init__(config)
        self._engine, self._note = engine, note

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes SIGINT and SIGTERM."""
        if self.should_exit:
            self._engine.abandon("the server is shutting down")
            return
        super().handle_exit(sig, frame)
        if left := self._engine.active + self._engine.queued:
            self._note(f"ends after {left} answer{'s' * (left != 1)}; another Ctrl-C ends it now")


def _allow_files() -> None:
    """Raises the soft limit of open files, to no more than the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(service: Service, listener: socket.socket, ready: Callable[[str], None], note: Callable[[str], None]) -> None:
    """Serves until SIGTERM or Ctrl-C, and ends when the answers that were asked for are given.

    Ends the process with status 1 where the engine has ended or hangs, when its requests have been told.
    """
    _allow_files()
    engine, options = service.engine, service.options
    config = uvicorn.Config(
        make_app(service, engine.close),
        log_level="error",
        access_log=False,
        backlog=BACKLOG,
        lifespan="on",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(options.timeout) + DRAIN,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = Server(config, engine, note)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(engine, server, ended), name="watch", daemon=True).start()
    host, port = listener.getsockname()[:2]
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        server.run(sockets=[listener])
    finally:
        ended.set()
        engine.close(drain=False)
    if engine.problem:
        _end(engine.problem)


def _watch(engine: Engine, server: Server, ended: threading.Event) -> None:
    """Ends a server whose engine has ended or hangs."""
    while not ended.wait(WATCH):
        if problem := engine.problem:
            engine.give_up(problem)
            server.should_exit = True
            if not ended.wait(TOLD):
                _end(problem)
            return


def _end(message: str) -> None:
    """Ends the process, which a thread that hangs in MLX would keep alive."""
    os.write(sys.stderr.fileno(), f"error: {message}\n".encode())
    os._exit(1)
