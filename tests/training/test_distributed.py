"""Several processes on this machine, joined by the ring backend over loopback, as ``mlx.launch`` starts them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from ring import ring

from parm_mlx.distributed import join
from parm_mlx.errors import ConfigError, RunError
from parm_mlx.training.checkpoint import read_checkpoint

SETTINGS = (
    *("--iters", "4", "--batch-size", "6", "--val-batches", "-1", "--warmup", "1", "--learning-rate", "1e-3"),
    *("--dropout", "0", "--steps-per-eval", "4", "--steps-per-report", "1", "--steps-per-save", "2"),
    *("--nll-weight", "0.2", "--w2-learning-rate", "2e-3"),
)
TIMEOUT = 120
# The command line, in which the process of ENDING1 sends itself that signal after its third step.
SCRIPT = """
import os, sys
from parm_mlx import distributed
from parm_mlx.cli.main import main
from parm_mlx.training.progress import Progress

how = os.environ.get("ENDING" + os.environ.get("MLX_RANK", ""), "")
distributed.PATIENCE = float(os.environ.get("PATIENCE", distributed.PATIENCE))

def advance(self, step):
    if step == 3 and how:
        os.kill(os.getpid(), int(how))

Progress.advance = advance
main(sys.argv[1:])
"""


class Processes:
    """Starts training in several processes, each in a folder of its own.

    Args:
        folder: An empty folder.
        model: The backbone.
        data: The pairs.
    """

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.folder, self.arguments = folder, ("train", "--model", str(model), "--data", str(data), *SETTINGS)
        self.running: list[subprocess.Popen[str]] = []

    def place(self, rank: int) -> Path:
        place = self.folder / f"rank{rank}"
        place.mkdir(exist_ok=True)
        return place

    def __call__(self, size: int, *more: str, **environment: str) -> list[tuple[int, str, str]]:
        """Trains to the end; exit code, stdout and stderr of each."""
        self.start(size, *more, **environment)
        return self.wait()

    def wait(self) -> list[tuple[int, str, str]]:
        outputs = [process.communicate(timeout=TIMEOUT) for process in self.running]
        return [(process.returncode, *output) for process, output in zip(self.running, outputs, strict=True)]

    def start(self, size: int, *more: str, **environment: str) -> None:
        self.launch(size, ["-c", SCRIPT, *self.arguments, "--out", "out", *more], **environment)

    def launch(self, size: int, arguments: Sequence[str], **environment: str) -> None:
        environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        if size > 1:
            environment |= ring(self.folder, size)
        self.running = [
            subprocess.Popen(
                [sys.executable, "-P", *arguments],
                cwd=self.place(rank),
                env={**os.environ, **environment, **({"MLX_RANK": str(rank)} if size > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]

    def kill(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def processes(
    official: Path, tmp_path: Path, write_rows: Callable[..., Path], rows: list[dict[str, Any]]
) -> Iterator[Processes]:
    started = Processes(tmp_path, official / "arm_base", write_rows(rows))
    yield started
    started.kill()


@pytest.fixture(scope="session")
def alone(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Trains in one process, once per session; the data is the same in every test."""
    done: list[Path] = []

    def train_alone(data: Path) -> Path:
        if not done:
            folder = tmp_path_factory.mktemp("alone")
            [(code, _, err)] = Processes(folder, official / "arm_base", data)(1)
            assert code == 0, err
            done.append(folder / "rank0" / "out")
        return done[0]

    return train_alone


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    other = {"tokens_per_second", "pairs_per_second", "peak_memory_gb", "padding"}
    return [
        number
        for line in lines
        for name, value in sorted(line.items())
        if name not in other | {"kind", "grid"}
        for number in (value.values() if isinstance(value, dict) else [value])
    ] + [point["loss"] for line in lines if line["kind"] == "valid" for point in line["grid"]]


def assert_equal(out: Path, expected: Path) -> None:
    ours, theirs = (mx.load(str(path / "adapters.safetensors")) for path in (out, expected))
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(np.array(ours[name]), np.array(tensor), rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(losses(out), losses(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_the_result_of_one_process(
    processes: Processes, alone: Callable[[Path], Path], tmp_path: Path, size: int
) -> None:
    """With 3 processes, the 2 pairs of the validation are too few for all; two parts of the batch go to each of 2."""
    more = ("--grad-accumulation-steps", "3", "--batch-size", "2") if size == 2 else ()
    ends = processes(size, *more)
    assert [code for code, _, _ in ends] == [0] * size, ends
    assert_equal(tmp_path / "rank0" / "out", alone(tmp_path / "pairs.jsonl"))
    assert ends[0][1] == "out\n"
    assert [out for _, out, _ in ends[1:]] == [""] * (size - 1)
    assert "validation at step 4" in ends[0][2]
    assert all("step" not in err for _, _, err in ends[1:])
    assert all(not list(processes.place(rank).iterdir()) for rank in range(1, size))


def test_a_killed_process_leaves_a_checkpoint_that_one_process_ends(
    processes: Processes, alone: Callable[[Path], Path], tmp_path: Path
) -> None:
    ends = processes(2, ENDING1=str(int(signal.SIGKILL)))
    assert [code for code, _, _ in ends] == [1, -signal.SIGKILL]
    checkpoint = tmp_path / "rank0" / "out.checkpoints" / "step-00000003"
    assert read_checkpoint(checkpoint).step == 3
    message = " ".join(ends[0][2].split())
    assert "error: rank 0: the connection to another process was lost after step 3; checkpoint: out.checkp" in message
    assert "--resume goes on from there, with any number of processes" in message
    [(code, _, err)] = processes(1, "--resume")
    assert code == 0, err
    assert_equal(tmp_path / "rank0" / "out", alone(tmp_path / "pairs.jsonl"))


def test_sigterm_to_one_process_stops_all_and_they_go_on_together(
    processes: Processes, alone: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The other process has no file of the run: it gets the checkpoint from the first."""
    ends = processes(2, ENDING1=str(int(signal.SIGTERM)))
    assert [code for code, _, _ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert "stopped at step 4" in ends[0][2]
    assert ends[1][1:] == ("", "")
    assert not list(processes.place(1).iterdir())
    newest = read_checkpoint(tmp_path / "rank0" / "out.checkpoints" / "step-00000004")
    assert newest.step == 4
    ends = processes(2, "--resume")
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert_equal(tmp_path / "rank0" / "out", alone(tmp_path / "pairs.jsonl"))


def test_a_process_that_hangs_ends_the_others(processes: Processes, tmp_path: Path) -> None:
    """The watchdog, with 2 seconds; process 1 stops without closing its connections."""
    processes.start(2, ENDING1=str(int(signal.SIGSTOP)), PATIENCE="2")
    _, err = processes.running[0].communicate(timeout=TIMEOUT)
    assert processes.running[0].returncode == 1
    assert "error: no word from the other processes for 2 seconds\nhint: the same command with --resume" in err
    assert (tmp_path / "rank0" / "out.checkpoints" / "step-00000002").is_dir()


def test_a_process_that_nobody_joins_ends_with_one_line(tmp_path: Path) -> None:
    """Rank 1 was never started, or ended before: rank 0 waits within MLX, where no thread of Python runs."""
    script = "from parm_mlx import distributed; distributed.JOINING = 1; distributed.join()"
    environment = {**os.environ, **ring(tmp_path, 2), "MLX_RANK": "0"}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert found.returncode != 0
    assert found.stderr == "error: the other processes did not join over ring within 1 seconds\n"


def test_an_error_of_one_process_ends_all(processes: Processes, tmp_path: Path) -> None:
    """An output that exists is known to process 0 only; it alone says so."""
    (processes.place(0) / "out").mkdir()
    ends = processes(2)
    assert [code for code, _, _ in ends] == [2, 2]
    assert ends[0][2].startswith("error: out exists already")
    assert ends[1][1:] == ("", "")


def test_environments_of_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is joined in a plain run, nor under ``mlx.launch -n 1``, whose hostfile is empty."""
    for name in ("MLX_HOSTFILE", "MLX_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (join().rank, join().size) == (0, 1)
    monkeypatch.setenv("MLX_RANK", "0")
    with pytest.raises(ConfigError, match="rank 0 of several, by a backend"):
        join()
    hostfile = tmp_path / "hosts"
    hostfile.write_text("\n")
    monkeypatch.setenv("MLX_HOSTFILE", str(hostfile))
    assert join().size == 1
    hostfile.write_text("{")
    with pytest.raises(RunError, match="cannot be joined over ring"):
        join()


def test_the_official_gradients_and_steps(processes: Processes) -> None:
    """Both processes run the tests against the official numbers, whose batches they share."""
    tests = Path(__file__).with_name("test_train_step.py")
    processes.launch(
        2, ["-m", "pytest", "-q", "-k", "official", "-p", "no:cacheprovider", str(tests)], EXPECTED_SIZE="2"
    )
    for code, out, _ in processes.wait():
        assert code == 0, out
