"""Processes that ``mlx.launch`` starts to train or to sweep together over ``mx.distributed``.

Every process reads the model and the data, and computes its share. Rank 0, the main process, alone writes and reports.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from numpy.typing import NDArray

from parm_mlx.errors import ConfigError, LostError, ParmError, QuietError, RunError
from parm_mlx.interrupt import Stop

# What mlx.launch sets for each backend (for MPI, what Open MPI sets).
BACKENDS = {"MLX_HOSTFILE": "ring", "MLX_JACCL_COORDINATOR": "jaccl", "OMPI_COMM_WORLD_SIZE": "mpi"}
JOINING = 120.0  # seconds that all processes have to start
PATIENCE = 600.0
TOLD = 1.0  # seconds in which the main process tells of an error
_WATCH = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
pid, seconds, message = sys.argv[1:]
if not select.select([sys.stdin], [], [], float(seconds))[0]:
    print(message, file=sys.stderr)
    os.kill(int(pid), signal.SIGKILL)
"""


class Group:
    """The processes of a run; without ``members``, the group of ``mx.distributed``, this one alone.

    Attributes:
        peak_memory: Highest memory use of MLX in any process, in bytes, as of the last sum.
    """

    def __init__(self, members: mx.distributed.Group | None = None) -> None:
        self.members = members
        self.rank, self.size = (members.rank(), members.size()) if members else (0, 1)
        self.peak_memory = 0.0
        self._stop = self._agreed = Stop()
        self._patience = threading.TIMEOUT_MAX

    @property
    def main(self) -> bool:
        """True for the process that writes and reports."""
        return self.rank == 0

    def watch(self, stop: Stop) -> Stop:
        """Returns the request to stop of any process, as of the last sum, from that of this process.

        From now on, a process that waits for the others for 10 minutes gives up: a machine without power or cable
        vanishes without closing the connection. MLX cannot be interrupted while it waits, so that a :class:`LostError`
        is raised in another thread, where ``threading.excepthook`` gets it; the command line ends the process then.
        """
        self._stop, self._agreed, self._patience = stop, Stop() if self.size > 1 else stop, PATIENCE
        return self._agreed

    def sum(self, tree: Any) -> Any:
        """Sums arrays of all processes in float32, in one reduction, which carries signals and memory use along.

        Raises:
            LostError: Another process is gone.
        """
        if self.size == 1:
            return tree
        own = np.zeros((2, self.size), np.float32)
        own[:, self.rank] = self._stop.signal or 0, mx.get_peak_memory()
        flat: Any = tree_flatten(tree)
        leaves: list[mx.array] = [mx.array(own), *(leaf for _, leaf in flat)]
        total = self._all_sum(mx.concatenate([leaf.reshape(-1).astype(mx.float32) for leaf in leaves]))
        pieces = iter(mx.split(total, np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()))
        signals, memory = np.array(next(pieces)).reshape(2, self.size)
        self.peak_memory = float(memory.max())
        self._agreed.signal = self._agreed.signal or next((int(number) for number in signals if number), None)
        summed = tree_map(lambda leaf: next(pieces).reshape(leaf.shape).astype(leaf.dtype), tree)
        mx.eval(summed)
        return summed

    @contextmanager
    def agreed(self, patience: float | None = None) -> Iterator[None]:
        """Runs the block so that it fails in every process if it fails in one.

        Blocks may be nested: where one process fails in the outer block and another is in the inner one, they agree
        there, and the error leaves the outer block without another exchange, for which the other would not be there.

        Args:
            patience: Seconds to wait for the others at the end of the block, where one has much more to do.

        Raises:
            ParmError: In the main process: what failed, with the rank if that was in another one.
            QuietError: In the others.
            LostError: Another process is gone.
        """
        if self.size == 1:
            yield
            return
        error = None
        try:
            yield
        except LostError:
            raise
        except ParmError as caught:
            if caught.agreed:
                raise
            error = caught
        failed = self._gather([error is not None], patience)[:, 0]
        if not failed.any():
            return
        first = int(failed.argmax())
        report = json.dumps([error.exit_code, str(error), error.hint] if error else None).encode()
        code, message, hint = json.loads(self.broadcast(report, first))
        if not self.main:
            shown: ParmError = QuietError(code)
        elif error and first == self.rank:
            shown = error
        else:
            shown = ParmError(f"rank {first}: {message}", hint=hint)
            shown.exit_code = code
        shown.agreed = True
        if shown is error:
            raise shown
        raise shown from error

    @contextmanager
    def reported_once(self) -> Iterator[None]:
        """Leaves an error that all processes meet alike to the main one; a lost connection is raised in each."""
        try:
            yield
        except LostError:
            raise
        except ParmError as error:
            if self.main:
                raise
            time.sleep(TOLD)  # mlx.launch ends all processes when one has failed, and the main one has yet to tell
            raise QuietError(error.exit_code) from error

    def broadcast(self, content: bytes, root: int = 0) -> bytes:
        """Returns the content that process ``root`` gives, in every process."""
        if self.size == 1:
            return content
        length = int(self._gather([len(content)])[root, 0])
        if not length:
            return b""
        words = np.zeros(-(-length // 4), np.int32)
        if self.rank == root:
            words.view(np.uint8)[:length] = np.frombuffer(content, np.uint8)
        return np.array(self._all_sum(mx.array(words))).view(np.uint8)[:length].tobytes()

    def union(self, content: bytes) -> list[bytes]:
        """Returns the contents that the processes give, by rank, in every process."""
        return [self.broadcast(content if root == self.rank else b"", root) for root in range(self.size)]

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Raises ConfigError, with the names, if facts (plain values by name) differ between the processes."""
        if self.size == 1:
            return
        digests = [hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest()[:4] for fact in facts.values()]
        table = self._gather([int.from_bytes(digest, "little", signed=True) for digest in digests])
        other = [name for name, column in zip(facts, table.T, strict=True) if (column != column[0]).any()]
        if other:
            ranks = ", ".join(map(str, np.flatnonzero((table != table[0]).any(axis=1))))
            raise ConfigError(
                f"{' and '.join(other)} differ between rank 0 and rank {ranks}",
                hint="every machine needs the same data, model, settings and versions of the packages",
            )

    def _gather(self, values: Sequence[int], patience: float | None = None) -> NDArray[np.int32]:
        table = np.zeros((self.size, len(values)), np.int32)
        table[self.rank] = values
        return np.array(self._all_sum(mx.array(table), patience))

    def _all_sum(self, array: mx.array, patience: float | None = None) -> mx.array:
        """Sums on the CPU, with nothing else in flight: a GPU must not wait for another machine."""
        mx.eval(array)
        watchdog = threading.Timer(patience or self._patience, _give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            total = mx.distributed.all_sum(array, group=self.members, stream=mx.cpu)
            mx.eval(total)
        except RuntimeError as error:
            raise LostError(f"rank {self.rank}: the connection to another process was lost") from error
        finally:
            watchdog.cancel()
        return total


def refuse_several() -> None:
    """Raises ConfigError in the main process, and QuietError in others, where ``mlx.launch`` has started several."""
    group = join()
    with group.reported_once():
        if group.size > 1:
            raise ConfigError(
                f"{group.size} processes were started, and each would do the whole work",
                hint="--shard divides the models between them, where a command has it; else leave out mlx.launch",
            )


def join() -> Group:
    """Returns the group that this process was started in, as the environment says; without ``mlx.launch``, of one.

    Raises:
        ConfigError: It was started for a backend that parm-mlx does not use.
        RunError: The others cannot be reached.
    """
    backend = next((name for variable, name in BACKENDS.items() if os.environ.get(variable)), None)
    if backend is None and "MLX_RANK" in os.environ:
        raise ConfigError(
            f"this process is rank {os.environ['MLX_RANK']} of several, by a backend that parm-mlx does not use",
            hint="mlx.launch --backend ring, jaccl, jaccl-ring or mpi",
        )
    hostfile = Path(os.environ.get("MLX_HOSTFILE", ""))
    alone = backend == "ring" and hostfile.is_file() and not hostfile.read_text(encoding="utf-8").strip()
    if backend is None or alone:  # mlx.launch -n 1 writes an empty file
        return Group()
    try:
        with _within(JOINING, f"error: the other processes did not join over {backend} within {JOINING:g} seconds"):
            return Group(mx.distributed.init(strict=True, backend=backend))
    except RuntimeError as error:
        raise RunError(
            f"the other processes cannot be joined over {backend}: {error}",
            hint="are the addresses and ports right, and does every machine run the same command?",
        ) from error


@contextmanager
def _within(seconds: float, message: str) -> Iterator[None]:
    """Ends this process, with a message, if the block takes longer; another process sees to that.

    MLX waits for the others with Python's lock in its hands, so that neither a thread nor a signal handler would run.
    """
    command = [sys.executable, "-S", "-c", _WATCH, str(os.getpid()), str(seconds), message]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as watchdog:
        yield
        watchdog.communicate(b"joined")


def _give_up() -> None:
    raise LostError(
        f"no word from the other processes for {PATIENCE:g} seconds",
        hint="the same command with --resume goes on from the newest checkpoint, with any number of processes",
    )
