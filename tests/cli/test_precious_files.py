"""Whatever --out names, no command loses a byte of anybody's files, with or without --force."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.outputs import MARKER, new_directory

Run = Callable[..., tuple[int, str, str]]

ROW = {"prompt": "How?", "responses": ["So.", "Not so."], "preferred": {"warmth": 0, "focus": 1}}


def commands(world: Path, official: Path) -> dict[str, list[object]]:
    """Every command that writes, without --out and its place."""
    data, prompts = world / "inputs" / "pairs.jsonl", world / "inputs" / "questions.txt"
    base = world / "inputs" / "base"
    run = ["evaluate", "--model", base, "--parm", BUNDLED_PARM, "--grid", 1, "--max-tokens", 2, "--bootstrap", 5]
    refine = ["refine", "--parm", BUNDLED_PARM, "--prompts"]
    short = ["--iters", 1, "--warmup", 0, "--val-batches", 0]
    return {
        "convert a model": ["convert", official / "arm_base"],
        "convert an adapter": ["convert", official / "parm_k2", "--guide-model", official / "arm_base"],
        "fuse": ["fuse", "--parm", world / "inputs" / "parm", "--guide-model", base, "--alpha", "1,0"],
        "refine": [*refine, world / "inputs" / "four.txt", "--max-tokens", 1, "--iters", 1],
        "prepare": ["data", "prepare", data, "--valid-share", 0, "--test-share", 0],
        "train": ["train", "--model", base, "--data", data, *short],
        "relabel": ["data", "relabel", data, "--reward", "brevity=brevity"],
        "evaluate": [*run, "--prompts", prompts],
        "compare": ["evaluate", "--compare", world / "runs" / "a", world / "runs" / "b"],
    }


WITH_FORCE = ("convert a model", "convert an adapter", "fuse", "refine", "prepare", "train")
NAMES = (*WITH_FORCE, "relabel", "evaluate", "compare")
WAYS = [*((name, False) for name in NAMES), *((name, True) for name in WITH_FORCE)]
REFUSED = re.compile(
    "exists already|never replaced|not replace|which is read|not made it|cannot be written|is a file|is not of|"
    "must end with|out is missing|must not be empty"
)


def build(world: Path) -> None:
    """A person's files, and inputs among them."""

    def put(path: str, text: str = "precious") -> None:
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        (world / path).write_text(text)

    for path in ("home/thesis.txt", "home/.ssh/id", "home/project/notes.txt", "file", "git/.git/HEAD", "file.jsonl"):
        put(path)
    put("git/main.py", "print()")
    put("mount/disk.img")
    put("mlx/config.json", "{}")
    put("mlx/model.safetensors")
    put("peft/adapter_config.json", "{}")
    put("prepared/prepared.json", "{}")
    put("prepared/train.jsonl")
    put("run/run.json", json.dumps({"format": 1, "objectives": ["warmth", "focus"], "settings": {}}))
    put("run/results.jsonl", '{"half')
    put("new.checkpoints/step-00000001/adapters.safetensors")
    put("inputs/pairs.jsonl", json.dumps(ROW) + "\n")
    put("inputs/questions.txt", "How?\n")
    put("inputs/four.txt", "How?\nWhy?\nWho?\nWhen?\n")
    put("inputs/config.json", "{}")
    shutil.copytree(BUNDLED_BASE, world / "inputs" / "base")
    shutil.copytree(BUNDLED_PARM, world / "inputs" / "parm")
    for place in ("home", "home/project", "mount"):
        put(f"{place}/{MARKER}", json.dumps({"files": {}}))
    for name in ("mixed", "edited", "inside"):
        with new_directory(world / name) as partial:
            (partial / "config.json").write_text("{}")
    put("mixed/thesis.txt")
    put("edited/config.json", '{"mine": 1}')
    (world / "inside" / "config.json").unlink()
    (world / "inside" / "config.json").symlink_to(world / "file")
    (world / "link").symlink_to(world / "mixed")
    (world / "dangling").symlink_to("nowhere")
    os.mkfifo(world / "fifo")
    (world / "runs" / "a").mkdir(parents=True)
    (world / "runs" / "b").mkdir()


HOSTILE = (
    *("~", "~/..", "home", "home/project", ".", "", "..", "/", "mount"),
    *("file", "file.jsonl", "link", "link/", "dangling", "fifo", "file/below"),
    *("git", "mlx", "peft", "prepared", "run", "new", "mixed", "edited", "inside"),
    *("inputs", "inputs/base", "inputs/parm", "inputs/../inputs", "inputs/pairs.jsonl", "inputs/questions.txt"),
)


def everything(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        else:
            found[name] = str(path.read_bytes()) if path.is_file() else "no file"
    return found


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world = tmp_path / "world"
    build(world)
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.chdir(world / "home" / "project")
    mounted = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == world / "mount" or mounted(path))
    return world


@pytest.mark.parametrize(("name", "force"), WAYS)
def test_no_command_loses_a_byte(name: str, force: bool, world: Path, official: Path, run_cli: Run) -> None:
    command, before = commands(world, official)[name], everything(world)
    for target in HOSTILE:
        if target == "new" and name != "train":
            continue
        out = target if target in ("~", "~/..", ".", "", "..", "/") else world / target
        code, _, err = run_cli(*command, "--out", out, *(["--force"] if force else []))
        assert code == 2, (target, err)
        assert REFUSED.search(err), (target, err)
        assert everything(world) == before, target


@pytest.mark.parametrize(("name", "force"), [way for way in WAYS if way[0] not in ("evaluate", "compare")])
def test_what_appears_meanwhile_is_kept(
    name: str, force: bool, world: Path, official: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is put where the output goes, once the command has begun to write."""
    out, make = world / "late.jsonl", tempfile.mkdtemp

    def late(*given: str, **options: str) -> str:
        if options.get("prefix", "").startswith(".late.jsonl.") and not out.exists():
            out.mkdir()
            (out / "thesis.txt").write_text("precious")
        return make(*given, **options)

    monkeypatch.setattr(tempfile, "mkdtemp", late)
    code, _, err = run_cli(*commands(world, official)[name], "--out", out, *(["--force"] if force else []))
    assert code == 2, err
    assert everything(out) == {"thesis.txt": str(b"precious")}
    left = {path.name for path in world.iterdir() if path.name.startswith((".late", "late"))}
    assert left == ({"late.jsonl", "late.jsonl.checkpoints"} if name == "train" else {"late.jsonl"})


def test_a_training_whose_output_appears_meanwhile_is_not_lost(
    world: Path, official: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, make = world / "late", tempfile.mkdtemp

    def late(*given: str, **options: str) -> str:
        if options.get("prefix", "").startswith(".late.") and not out.exists():
            out.mkdir()
        return make(*given, **options)

    command = [*commands(world, official)["train"], "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", late)
        code, _, err = run_cli(*command)
    assert code == 2
    assert "the trained adapter is" in err
    out.rmdir()
    assert run_cli(*command, "--resume")[0] == 0
    assert (out / "adapters.safetensors").is_file()
    assert not out.with_name("late.checkpoints").exists()


def test_a_training_does_not_drop_checkpoints_that_it_begins_from(world: Path, official: Path, run_cli: Run) -> None:
    """--force drops the checkpoints of an earlier run; not if one of them is read."""
    command = [*commands(world, official)["train"], "--out", world / "new2"]
    checkpoint = world / "new2.checkpoints" / "step-00000001"
    shutil.copytree(world / "inputs" / "parm", checkpoint)
    before = everything(world)
    code, _, err = run_cli(*command, "--start-from", checkpoint, "--force")
    assert code == 2
    assert "which is read" in err
    assert everything(world) == before


def test_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    """The command is ended while it writes: exit code 128 + 15, no output and no hidden folder."""
    rows = [json.dumps({**ROW, "prompt": f"How {i}?"}) + "\n" for i in range(20_000)]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    command = [sys.executable, "-m", "parm_mlx.cli.main", "data", "prepare", "pairs.jsonl", "--out", "out"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
        while run.poll() is None and not any(".partial-" in path.name for path in tmp_path.iterdir()):
            time.sleep(0.001)
        run.send_signal(number)
        run.communicate(timeout=60)
        assert run.returncode == 128 + number
        assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
