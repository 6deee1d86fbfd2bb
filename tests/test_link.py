"""The side channel of several processes over loopback: what happens to the others when one is killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ring import ring

# The process of VICTIM waits for a line; the others wait for it in an exchange of MLX, which cannot be interrupted.
SCRIPT = """
import os, sys, threading
import mlx.core as mx
from parm_mlx import link
from parm_mlx.cli import main
from parm_mlx.distributed import join

threading.excepthook = main._end_lost
link.SILENCE = 1.0
group = join()
with link.Link(group) as channel:
    print("ready", flush=True)
    if group.rank == int(os.environ["VICTIM"]):
        sys.stdin.readline()
        if not group.main:
            print(channel.receive().decode(), flush=True)
        sys.exit(3)
    channel.send(b"hello")
    mx.eval(mx.distributed.all_sum(mx.ones(1), group=group.members))
"""
LIMIT = 20  # seconds; a second is what it takes, on a machine that is not busy

Processes = list["subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[int, int], Processes]]:
    """Starts so many processes, of which one is the victim, and waits until all are connected."""
    running: Processes = []

    def started(size: int, victim: int) -> Processes:
        environment = {**os.environ, **ring(tmp_path, size), "VICTIM": str(victim)}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        for rank in range(size):
            command = [sys.executable, "-P", "-c", SCRIPT]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(
                subprocess.Popen(command, env={**environment, "MLX_RANK": str(rank)}, text=True, **pipes)  # type: ignore[call-overload]
            )
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        return running

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(processes: Processes) -> list[str]:
    """The lines of all processes on stderr, but for MLX's own."""
    found = []
    for process in processes:
        assert process.stderr is not None
        found += [line for line in process.stderr.read().splitlines() if not line.startswith("[ring]")]
    return [line for line in found if not line.startswith("hint:")]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_all_with_one_line(start: Callable[[int, int], Processes], victim: int) -> None:
    processes = start(3, victim)
    processes[victim].kill()
    assert sorted(process.wait(LIMIT) for process in processes) == [-signal.SIGKILL, 1, 1]
    assert said(processes) == [f"error: rank {victim} has ended"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_others_within_the_limit(
    start: Callable[[int, int], Processes], victim: int
) -> None:
    processes = start(2, victim)
    processes[victim].send_signal(signal.SIGSTOP)
    assert processes[1 - victim].wait(LIMIT) == 1
    assert said([processes[1 - victim]]) == [f"error: no sign of life from rank {victim} for 1 seconds"]
    processes[victim].send_signal(signal.SIGCONT)
    assert processes[victim].wait(LIMIT) == 1
    assert said([processes[victim]]) == []


def test_the_others_end_as_rank_0_does(start: Callable[[int, int], Processes]) -> None:
    processes = start(2, 0)
    assert processes[0].stdin is not None
    processes[0].stdin.write("\n")
    processes[0].stdin.flush()
    assert [process.wait(LIMIT) for process in processes] == [3, 3]
    assert said(processes) == []


def test_who_waits_for_a_message_sleeps(start: Callable[[int, int], Processes]) -> None:
    processes = start(2, 1)  # rank 1 is in receive once it has a line; it has got the message already
    time.sleep(0.2)
    before = _cpu(processes[1])
    time.sleep(1)
    assert _cpu(processes[1]) - before < 0.3


def _cpu(process: "subprocess.Popen[str]") -> float:
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
