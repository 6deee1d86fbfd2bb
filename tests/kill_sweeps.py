"""Kills evaluation sweeps at random moments, resumes them, and compares their answers with a run left alone.

    python tests/kill_sweeps.py --kills 10
    python tests/kill_sweeps.py --kills 5 --sample    `data sample` in place of `evaluate`

Every kill is SIGKILL, at a random moment between the first answer and the end. ``results.jsonl`` must end with the
same bytes as that of the run that nobody disturbed. The test suite runs a short version.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTINGS = (
    "evaluate",
    "--model",
    "bundled",
    "--limit",
    "16",
    "--grid",
    "0.1",
    "--temp",
    "1",
    "--max-tokens",
    "100",
    "--bootstrap",
    "10",
)
SAMPLING = ("data", "sample", "--model", "bundled", "--magpie", "60", "--max-tokens", "100")
SAMPLING += ("--reward", "warmth=warmth", "--reward", "focus=focus")


def command(out: Path, settings: Sequence[str]) -> list[str]:
    """A command on the bundled model."""
    return [sys.executable, "-m", "parm_mlx.cli.main", *settings, "--out", str(out)]


def lines(out: Path) -> int:
    """How many answers are kept."""
    file = out / "results.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def disturb(out: Path, settings: Sequence[str], delay: float) -> int | None:
    """Starts a run and kills it so many seconds after its first new answer; its exit code, None where it was killed."""
    before = lines(out)
    run = subprocess.Popen(command(out, settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and lines(out) <= before:
        time.sleep(0.01)
    try:
        return run.wait(delay)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGKILL)
        run.wait()
        return None


def kill_sweeps(folder: Path, kills: int, seed: int = 0, settings: Sequence[str] = SETTINGS) -> list[str]:
    """Disturbs runs, each until it has been killed twice, and checks how they end.

    Args:
        folder: An empty folder.
        kills: How many kills there shall be.
        seed: Seed of the moments.
        settings: The command and its flags.

    Returns:
        One line per kill.

    Raises:
        AssertionError: The answers differ.
    """
    rng = random.Random(seed)
    whole = folder / "whole"
    reference = subprocess.Popen(command(whole, settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while reference.poll() is None and not lines(whole):
        time.sleep(0.01)
    began = time.monotonic()
    error = reference.communicate()[1]
    assert reference.returncode == 0, error.decode()
    seconds = time.monotonic() - began
    files = [file for file in ("results.jsonl", "scores.jsonl", "pairs.jsonl") if (whole / file).exists()]
    story: list[str] = []
    number = 0
    while len(story) < kills:
        out = folder / f"run{number}"
        number += 1
        for _ in range(2):
            if len(story) < kills and disturb(out, settings, rng.uniform(0, 0.7 * seconds)) is None:
                story.append(f"{out.name}: killed with {lines(out)} of {lines(whole)} answers")
                print(story[-1], file=sys.stderr, flush=True)
        subprocess.run(command(out, settings), check=True, capture_output=True)
        for file in files:
            assert (out / file).read_bytes() == (whole / file).read_bytes(), f"{file} differs: {story[-2:]}"
        hidden = sorted(path.name for path in out.iterdir() if ".partial-" in path.name or "rank" in path.name)
        assert not hidden, f"left over: {hidden}"
    return story


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="kill data sample in place of evaluate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = SAMPLING if arguments.sample else SETTINGS
        story = kill_sweeps(Path(folder), arguments.kills, arguments.seed, settings)
    print(f"killed {len(story)} times: the answers of every run equal those of the undisturbed one, byte for byte")


if __name__ == "__main__":
    main()
