"""Kills training runs at random moments, resumes them, and compares the adapters with that of a run left alone.

    python tests/kill_runs.py --runs 20
    python tests/kill_runs.py --model parm_mlx/models/base --data build/bundled/pairs.jsonl --steps 40

Half of the signals are SIGKILL; the others are SIGINT, SIGTERM and a disk that takes no more than a few kilobytes per
file. Every run must end with the same bytes as the run that nobody disturbed, and with the same metrics, each step
once. The test suite runs a short version.
"""

import argparse
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from parm_mlx.training.checkpoint import read_checkpoint

MODEL = Path(__file__).parent / "fixtures" / "official" / "arm_base"
SETTINGS = (
    *("--batch-size", "4", "--val-batches", "2", "--warmup", "3", "--learning-rate", "5e-3"),
    *("--steps-per-save", "4", "--steps-per-eval", "7", "--steps-per-report", "3", "--keep-checkpoints", "2"),
)
FULL_DISK = "full disk"
ENDINGS = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, FULL_DISK)
FILE_LIMIT = 8_192  # bytes: metrics fit, adapters do not
TIMINGS = ("tokens_per_second", "pairs_per_second", "peak_memory_gb")


def write_data(path: Path) -> None:
    """24 pairs on 12 prompts; a third of them is judged by one objective only."""
    rows = []
    for i in range(24):
        responses = [f"Of course, here is answer number {i}.", "No."]
        preferred = {"long": 0, "short": 1} if i % 3 else {"long": 0}
        rows.append({"prompt": f"Question {i % 12}?", "responses": responses, "preferred": preferred})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(model: Path, data: Path, out: Path, steps: int) -> list[str]:
    """The training command; with nothing to resume it starts from the beginning."""
    arguments = ("train", "--model", model, "--data", data, "--out", out, "--iters", steps, *SETTINGS, "--resume")
    return [sys.executable, "-m", "parm_mlx.cli.main", *map(str, arguments)]


def limit_files() -> None:
    """Lets no file of this process grow beyond the limit, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def begins(run: "subprocess.Popen[bytes]", out: Path) -> float:
    """Waits until a run trains, or is over, and returns the time."""
    metrics = out.with_name(f"{out.name}.checkpoints") / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while run.poll() is None and not (metrics.exists() and metrics.stat().st_mtime_ns > before):
        time.sleep(0.005)
    return time.monotonic()


def disturb(arguments: Sequence[str], out: Path, ending: Any, delay: float) -> int:
    """Starts a run, ends it so many seconds after its training began, and returns its exit code."""
    full = ending == FULL_DISK
    run = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit_files if full else None
    )
    try:
        begins(run, out)
        return run.wait(None if full else delay)
    except subprocess.TimeoutExpired:
        run.send_signal(ending)
        return run.wait()


def check_readable(out: Path) -> int:
    """Checks that every checkpoint that is there can be read, and returns the step of the newest."""
    checkpoints = out.with_name(f"{out.name}.checkpoints")
    return max((read_checkpoint(path).step for path in checkpoints.glob("step-*")), default=0)


def outcome(out: Path) -> dict[str, Any]:
    """What has to be equal: the files of the adapter, and the metrics without their timings."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    files = {name: (out / name).read_bytes() for name in ("adapters.safetensors", "adapter_config.json")}
    return {**files, "metrics": metrics}


def kill_runs(
    folder: Path, runs: int, kills: int, steps: int, seed: int = 0, model: Path = MODEL, data: Path | None = None
) -> list[str]:
    """Disturbs runs and checks how they end.

    Args:
        folder: An empty folder.
        runs: Number of runs.
        kills: How often each is ended before it may finish.
        steps: Steps of a run.
        seed: Seed of the moments.
        model: The backbone.
        data: What to train on; a few made-up pairs by default.

    Returns:
        One line per ending.

    Raises:
        AssertionError: An adapter or its metrics differ, or something unreadable is left.
    """
    rng = random.Random(seed)
    if data is None:
        data = folder / "pairs.jsonl"
        write_data(data)
    train = partial(command, model, data)
    whole = folder / "whole"
    reference = subprocess.Popen(train(whole, steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = begins(reference, whole)
    assert reference.wait() == 0
    seconds = time.monotonic() - started
    expected = outcome(whole)
    story: list[str] = []
    for number in range(runs):
        out = folder / f"run{number}"
        told: list[str] = []
        while len(told) < kills:
            ending = ENDINGS[len(story) % len(ENDINGS)]
            left = 1 - check_readable(out) / steps
            code = disturb(train(out, steps), out, ending, rng.uniform(0, 0.9) * left * seconds)
            if code == 0:  # it was faster than the signal: once more from the beginning
                shutil.rmtree(out)
                told.clear()
                continue
            name = ending if isinstance(ending, str) else ending.name
            told.append(f"{out.name}: {name}, exit {code}, newest checkpoint {check_readable(out)}")
            story.append(told[-1])
            print(told[-1], file=sys.stderr, flush=True)
        subprocess.run(train(out, steps), check=True, capture_output=True)
        found = outcome(out)
        for part, value in expected.items():
            assert found[part] == value, f"{part} differs after {'; '.join(told)}"
    hidden = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
    assert not hidden, f"left over: {hidden}"
    return story


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="per run")
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, help="preference data; a few made-up pairs by default")
    arguments = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        story = kill_runs(Path(folder), **arguments)
    print(
        f"{arguments['runs']} runs, ended {len(story)} times: every adapter equals the undisturbed one, byte for byte"
    )


if __name__ == "__main__":
    main()
