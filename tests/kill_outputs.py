"""Kills every command that writes, at random moments of its writing, and looks at what is left.

    python tests/kill_outputs.py --kills 20

Whatever the moment, the old or the new output stands under its name (of a new output, none or a whole one), files
beside it are as they were, and the next command that writes there leaves nothing unfinished behind. Trainings and
evaluations, which are gone on with, have scripts of their own: kill_runs.py and kill_sweeps.py.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.outputs import new_directory

ROWS = 20_000
TRAIN = ("--iters", 2, "--warmup", 0, "--val-batches", 0, "--batch-size", 2)
RUN = ("--model", "bundled", "--limit", 2, "--grid", 1, "--max-tokens", 4, "--bootstrap", 5)


@dataclass(frozen=True)
class Victim:
    """A command without its --out, whether it takes --force, and the files of its output."""

    command: tuple[object, ...]
    forced: bool
    files: tuple[str, ...] = ()


def program(*arguments: object) -> list[str]:
    """A command line of parm-mlx."""
    return [sys.executable, "-m", "parm_mlx.cli.main", *map(str, arguments)]


def write_pairs(path: Path, rows: int) -> Path:
    """Pairs about so many questions."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {"prompt": f"Question {i}?", "responses": [f"So {i}.", "No."], "preferred": {"warmth": i % 2}}
            file.write(json.dumps(row) + "\n")
    return path


def victims(inputs: Path) -> dict[str, Victim]:
    """Every command that writes an output whole; what they read is made in a folder."""
    pairs, few = write_pairs(inputs / "pairs.jsonl", ROWS), write_pairs(inputs / "few.jsonl", 8)
    runs = inputs / "a", inputs / "b"
    for run, beta in zip(runs, (1, 0.5), strict=True):
        subprocess.run(program("evaluate", *RUN, "--beta", beta, "--out", run), check=True, capture_output=True)
    model = ("config.json", "model.safetensors", "tokenizer.json")
    return {
        "convert": Victim(("convert", BUNDLED_BASE, "--dtype", "float16"), True, model),
        "fuse": Victim(("fuse", "--parm", BUNDLED_PARM, "--alpha", "1,0"), True, model),
        "prepare": Victim(("data", "prepare", pairs), True, ("train.jsonl", "valid.jsonl", "test.jsonl")),
        "train": Victim(
            ("train", "--model", BUNDLED_BASE, "--data", few, *TRAIN), True, ("adapters.safetensors", "metrics.jsonl")
        ),
        "relabel": Victim(("data", "relabel", pairs, "--reward", "brevity=brevity"), False),
        "compare": Victim(("evaluate", "--compare", *runs), False, ("metrics.json", "report.html")),
    }


def state(out: Path, victim: Victim) -> str:
    """What stands under the name of an output: nothing, the old one, or a new one."""
    if not out.exists():
        return "nothing"
    if out.is_file():
        assert len(out.read_text(encoding="utf-8").splitlines()) > ROWS / 2
        return "new"
    if (out / "old").exists():
        assert {path.name for path in out.iterdir()} == {"old", ".parm-mlx"}
        return "old"
    assert all((out / file).stat().st_size for file in victim.files)
    return "new"


def unfinished(folder: Path) -> list[str]:
    """Hidden folders of outputs that were begun."""
    return sorted(path.name for path in folder.iterdir() if ".partial-" in path.name)


def begins(run: "subprocess.Popen[bytes]", folder: Path) -> float:
    """Waits until a command begins to write, or is over, and returns the time."""
    while run.poll() is None and not unfinished(folder):
        time.sleep(0.001)
    return time.monotonic()


def ends(run: "subprocess.Popen[bytes]", folder: Path) -> float:
    """Waits until a command has written its output, and returns the time."""
    while run.poll() is None and unfinished(folder):
        time.sleep(0.001)
    return time.monotonic()


def reset(out: Path, victim: Victim) -> None:
    """Puts an old output in place, where there may be one, and else nothing."""
    shutil.rmtree(out.with_name(f"{out.name}.checkpoints"), ignore_errors=True)
    if victim.forced:
        with new_directory(out, force=True) as partial:
            (partial / "old").touch()
    elif out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink(missing_ok=True)


def kill(name: str, victim: Victim, folder: Path, kills: int, rng: random.Random) -> str:
    """Kills one command so many times, and returns a line on what was left."""
    out, tidy = folder / "out.jsonl", folder / "tidy"
    (folder / "thesis.txt").write_text("precious")
    command = program(*victim.command, "--out", out, *(["--force"] if victim.forced else []))
    reset(out, victim)
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = -begins(run, folder) + ends(run, folder)
    assert run.wait() == 0, command
    left: list[str] = []
    for _ in range(10 * kills):
        reset(out, victim)
        before = state(out, victim)
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begins(run, folder)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        run.kill()
        if run.wait() == 0:  # it was faster than the signal
            continue
        left.append(state(out, victim))
        assert left[-1] in (before, "new"), f"{name}: {left[-1]}"
        with new_directory(tidy, force=True):
            assert not unfinished(folder) or all(entry.startswith(".tidy.") for entry in unfinished(folder))
        assert state(out, victim) == left[-1]
        assert (folder / "thesis.txt").read_text() == "precious"
        if len(left) == kills:
            break
    counts = ", ".join(f"{left.count(each)} times {each}" for each in sorted(set(left)))
    return f"{name}: killed {len(left)} times; under the output's name: {counts}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")
        inputs.mkdir()
        for name, victim in victims(inputs).items():
            place = Path(folder, name)
            place.mkdir()
            print(kill(name, victim, place, arguments.kills, rng), flush=True)


if __name__ == "__main__":
    main()
