"""A side channel beside ``mx.distributed``: what rank 0 tells the others, signs of life, and the end of a run.

A process that waits for a message here sleeps, where one that waits in an exchange of MLX keeps a core busy. A process
that is killed closes its connection, and one that is stopped, or whose machine is gone, gives no sign of life: both
are seen here within their limits, though MLX itself waits on.
"""

import json
import os
import queue
import secrets
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

from parm_mlx import interrupt
from parm_mlx.distributed import TOLD, Group
from parm_mlx.errors import LostError, QuietError, RunError

SILENCE = 30.0  # seconds without a sign of life after which a process counts as lost
BEATS = 10  # signs of life in that time
NOTICED = 2.0  # seconds after which a process that was killed is noticed
JOINING = 60.0  # seconds that the others have to connect
HINT = "start it again in all processes"
_BEAT, _MESSAGE, _END, _BYE, _INTERRUPT = b"beat", b"mess", b"endd", b"byeb", b"intr"


class _Frame(NamedTuple):
    kind: bytes
    content: bytes


class Link:
    """Connections between rank 0 and every other process; to be closed, best by ``with``, when the work is done.

    When a process is lost, the others end: :class:`LostError` is raised in a thread of this link, in the process that
    is to tell it, and :class:`QuietError` in others. ``threading.excepthook`` gets them, because MLX cannot be
    interrupted while the main thread waits in it; the command line ends the process there. Ctrl-C in another process
    than rank 0 is passed on to rank 0.

    Raises:
        RunError: The processes cannot be connected.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._peers: dict[int, socket.socket] = {}
        self._failed: int | None = None  # a process that has left because of an error or a signal
        if group.size == 1:
            return
        try:
            self._connect()
        except OSError as error:
            hint = "rank 0 must accept TCP connections from the other machines"
            raise RunError(f"rank {group.rank} cannot be connected beside the exchanges: {error}", hint=hint) from error
        if not group.main and threading.current_thread() is threading.main_thread():
            interrupt.pass_on(self._pass_on)
        for rank, peer in self._peers.items():
            threading.Thread(target=self._listen, args=(rank, peer), name=f"link {rank}", daemon=True).start()
        threading.Thread(target=self._beat, name="link", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Tells all others something; only rank 0 does."""
        for peer in self._peers.values():
            self._send(peer, _Frame(_MESSAGE, message))

    def receive(self) -> bytes:
        """Waits for what rank 0 tells next, asleep."""
        return self._messages.get()

    def close(self, exit_code: int = 0) -> None:
        """Leaves; rank 0 thereby ends the others, with this exit code, where they have not left."""
        if self._closed.is_set():
            return
        self._closed.set()
        last = _Frame(_END if self.group.main else _BYE, json.dumps(exit_code).encode())
        for peer in self._peers.values():
            self._send(peer, last)
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def wait_for_loss(self) -> None:
        """Waits a moment after an error of MLX, which may notice sooner than this link that a process is lost."""
        self._closed.wait(NOTICED)
        if self._closed.is_set() and self.group.size > 1:
            time.sleep(NOTICED)  # the thread that has noticed ends this process

    def __enter__(self) -> "Link":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RuntimeError | LostError):
            self.wait_for_loss()
        self.close(0 if error is None else _exit_code(error))
        if isinstance(error, RuntimeError) and self._failed is not None:
            raise _lost(self._failed) from error

    def _connect(self) -> None:
        group = self.group
        if not group.main:
            (host, port, secret) = json.loads(group.broadcast(b""))
            peer = socket.create_connection((host, port), timeout=JOINING)
            peer.sendall(bytes.fromhex(secret) + bytes([group.rank]))
            self._peers[0] = peer
            return
        host, secret = _own_host(), secrets.token_bytes(16)
        with socket.create_server((host, 0)) as server:
            server.settimeout(JOINING)
            group.broadcast(json.dumps([host, server.getsockname()[1], secret.hex()]).encode())
            while len(self._peers) < group.size - 1:
                peer, _ = server.accept()
                peer.settimeout(JOINING)
                greeting = _read(peer, len(secret) + 1)
                if greeting is not None and secrets.compare_digest(greeting[:-1], secret):
                    self._peers[greeting[-1]] = peer
                else:
                    peer.close()

    def _send(self, peer: socket.socket, frame: _Frame) -> None:
        with self._writing, suppress(OSError):  # the thread that listens to it tells that it is gone
            peer.sendall(frame.kind + struct.pack("!I", len(frame.content)) + frame.content)

    def _beat(self) -> None:
        while not self._closed.wait(SILENCE / BEATS):
            for peer in self._peers.values():
                self._send(peer, _Frame(_BEAT, b""))

    def _listen(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(SILENCE)
        while True:
            try:
                frame = _frame(peer)
            except TimeoutError:
                return self._lose(LostError(f"no sign of life from rank {rank} for {SILENCE:g} seconds", hint=HINT))
            except OSError:
                frame = None
            if self._closed.is_set():
                return None
            if frame is None:
                return self._lose(_lost(rank))
            if frame.kind == _MESSAGE:
                self._messages.put(frame.content)
            elif frame.kind == _INTERRUPT:
                interrupt.request()
            elif frame.kind == _BYE:
                self._failed = rank if json.loads(frame.content) else self._failed
                return None
            elif frame.kind == _END:
                self._closed.set()
                if code := json.loads(frame.content):
                    time.sleep(TOLD)
                raise QuietError(code)

    def _lose(self, error: LostError) -> None:
        """Ends this process and, where it is rank 0, the others; where rank 0 is lost, rank 1 tells it."""
        self._closed.set()
        for peer in self._peers.values():
            self._send(peer, _Frame(_END, b"1"))
        if self.group.rank > 1:
            raise QuietError(1)
        raise error

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        """Passes Ctrl-C on to rank 0, which decides for all."""
        for peer in self._peers.values():
            self._send(peer, _Frame(_INTERRUPT, b""))


def _lost(rank: int) -> LostError:
    return LostError(f"rank {rank} has ended", hint=HINT)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def _own_host() -> str:
    """The address of rank 0, by which the other machines reach it."""
    if hostfile := os.environ.get("MLX_HOSTFILE"):
        addresses = json.loads(Path(hostfile).read_text(encoding="utf-8"))[0]
        first: str = addresses[0] if isinstance(addresses, list) else addresses
        return first.rpartition(":")[0]
    if coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
        return coordinator.rpartition(":")[0]
    return socket.gethostbyname(socket.gethostname())


def _frame(peer: socket.socket) -> _Frame | None:
    """The next frame; None at the end of the connection."""
    head = _read(peer, 8)
    if head is None:
        return None
    (size,) = struct.unpack("!I", head[4:])
    content = _read(peer, size)
    return None if content is None else _Frame(head[:4], content)


def _read(peer: socket.socket, size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        part = peer.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return parts
