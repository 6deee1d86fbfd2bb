"""``parm-mlx evaluate`` on the bundled model and on the official tiny one."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kill_sweeps import kill_sweeps
from ring import ring

from parm_mlx.errors import RunError
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--model", "bundled", "--limit", 2, "--grid", 0.5, "--max-tokens", 30, "--bootstrap", 20)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of the bundled model."""
    from parm_mlx.cli.main import run

    out = tmp_path_factory.mktemp("evaluate") / "run"
    assert run(["evaluate", "--out", str(out), *map(str, SMALL)]) == 0
    return out


def test_a_run_leaves_everything_and_prints_the_metrics(run_cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    code, printed, err = run_cli("evaluate", "--out", out, *SMALL)
    assert code == 0, err
    names = {path.name for path in out.iterdir()}
    wanted = {"run.json", "results.jsonl", "scores.jsonl", "metrics.json", "pareto.png", "pareto.svg", "report.html"}
    assert names == {".parm-mlx", *wanted}
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["alpha"] for row in results] == [None, None, *[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]] * 2]
    scores = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert [(s["id"], s["alpha"], s["seed"]) for s in scores] == [(r["id"], r["alpha"], r["seed"]) for r in results]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [point["alpha"] for point in metrics["points"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert metrics["time"]["answers"] == 8
    assert min(metrics["time"][name] for name in ("base_token_ms", "backbone_token_ms", "guided_token_ms")) > 0
    first = sum(s["scores"]["warmth"] for s in scores if s["alpha"] == [1.0, 0.0]) / 2
    assert metrics["points"][0]["raw"]["warmth"] == pytest.approx(first)
    for part in ("hypervolume", "mean inner product", "reference point", "Spearman warmth", "8 answers", "scoring"):
        assert part in printed
    assert f"{out / 'report.html'}" in err


def test_what_is_done_is_not_done_again(run_cli: Run, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (done / "results.jsonl").read_bytes()
    timing = json.loads((done / "metrics.json").read_text())["time"]
    monkeypatch.setattr("parm_mlx.answers.sweep.generate_batch", None)
    code, printed, err = run_cli("evaluate", "--out", done, *SMALL, "--json", "--reference", "-9,-9")
    assert code == 0, err
    assert "8 of 8 answers were there already" in err
    metrics = json.loads(printed)
    assert metrics["reference_point"] == {"warmth": -9.0, "focus": -9.0}
    assert metrics["time"] == timing
    assert (done / "results.jsonl").read_bytes() == before


def test_other_rewards_score_the_same_answers(run_cli: Run, done: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in (".parm-mlx", "run.json", "results.jsonl", "scores.jsonl"):
        (tmp_path / "run" / name).write_bytes((done / name).read_bytes())
    rewards = ["--reward", "focus=brevity", "--reward", "warmth=warmth", "--reward", "length=builtin:detail"]
    code, printed, err = run_cli("evaluate", "--out", tmp_path / "run", *SMALL, *rewards, "--json")
    assert code == 0, err
    metrics = json.loads(printed)
    assert metrics["rewards"] == {"warmth": "builtin:warmth", "focus": "builtin:brevity", "length": "builtin:detail"}
    assert metrics["objectives"] == ["warmth", "focus"]


def test_runs_are_compared_on_one_reference_point(run_cli: Run, done: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run_cli("evaluate", "--out", other, *SMALL, "--beta", "0.5")[0] == 0
    code, printed, err = run_cli("evaluate", "--compare", done, other, "--out", tmp_path / "both", "--bootstrap", 20)
    assert code == 0, err
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert [run["name"] for run in metrics["runs"]] == ["run", "other"]
    assert all(run["reference_point"] == metrics["reference_point"] for run in metrics["runs"])
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        ".parm-mlx",
        "metrics.json",
        "pareto.png",
        "pareto.svg",
        "report.html",
    }
    assert "Joint reference point" in printed
    assert "other less run: hypervolume" in printed
    assert "They differ in beta: [1.0], [0.5]" in printed
    assert "beta [1.0] | [0.5]" in (tmp_path / "both" / "report.html").read_text()


def test_several_betas_are_runs_and_their_comparison(
    run_cli: Run, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "strengths"
    code, printed, err = run_cli("evaluate", "--out", out, *SMALL, "--beta", "0.25,1")
    assert code == 0, err
    assert {path.name for path in out.iterdir()} == {"beta-0.25", "beta-1", "comparison"}
    assert (out / "beta-1" / "results.jsonl").read_bytes() == (done / "results.jsonl").read_bytes()
    assert (out / "beta-0.25" / "results.jsonl").read_bytes() != (done / "results.jsonl").read_bytes()
    assert [line.split()[0] for line in printed.splitlines()[1:3]] == ["beta-0.25", "beta-1"]
    compared = json.loads((out / "comparison" / "metrics.json").read_text())
    best = max(compared["runs"], key=lambda run: run["mip_gain"]["value"])["name"].partition("-")[2]
    assert f"alpha does most at beta {best}" in err
    monkeypatch.setattr("parm_mlx.answers.sweep.generate_batch", None)
    code, again, _ = run_cli("evaluate", "--out", out, *SMALL, "--beta", "0.25,1")
    assert (code, again) == (0, printed)
    (tmp_path / "other" / "comparison").mkdir(parents=True)
    (tmp_path / "other" / "comparison" / "mine").touch()
    refused = (
        (out, "1,1", "given twice"),
        (done, "0.5,1", "a run at one β"),
        (tmp_path / "other", "0.5,1", "comparison"),
    )
    for folder, betas, message in refused:
        code, _, err = run_cli("evaluate", "--out", folder, *SMALL, "--beta", betas)
        assert code == 2
        assert message in err


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        ((), 2, "--out is missing"),
        (("--out", "x", "--grid", "0.3"), 2, "the grid step must divide 1"),
        (("--out", "x", "--grid", "0.5", "--alphas", "a"), 2, "exclude each other"),
        (("--out", "x", "--prompts", "empty.txt"), 2, "empty.txt holds no prompt"),
        (("--out", "x", "--prompts", "same.jsonl"), 2, "same.jsonl:2: the same id 'a' as on line 1"),
        (("--out", "x", "--reward", "warmth=warmth"), 2, "no --reward for focus"),
        (("--out", "x", "--reward", "warmth=nothing", "--reward", "focus=focus"), 2, "reward warmth: nothing"),
        (("--out", "x", "--num-samples", "2"), 2, "need a temperature above 0"),
        (
            ("--out", "x", "--reference", "a"),
            2,
            "'--reference': must be a number from -1e+09 to 1e+09, got 'a'",
        ),
        (("--out", "x", "--reference", "-2"), 2, "the reference point has 1 numbers for 2"),
        (("--out", "x", "--prompts", "same.json"), 2, "same.json: no such file"),
        (("--out", "x", "--compare", "x"), 2, "needs two or more folders"),
        (("--out", "x", "--compare", "x", "y"), 2, "x is not the folder of a run"),
        (("--out", "x", "--compare", "x", "y", "--temp", "1"), 2, "--temp cannot be used with --compare"),
        (("--out", "x", "y"), 2, "y: folders of runs go with --compare"),
        (("--out", "full", *SMALL), 2, "full is not empty, and parm-mlx has not made it for a run"),
    ],
)
def test_wrong_input_is_one_line(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], code: int, error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "same.jsonl").write_text('{"prompt": "x", "id": "a"}\n{"prompt": "y", "id": "a"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    named = () if {"--compare", "y", "full"} & {*options} else ("--model", "bundled")
    found, out, err = run_cli("evaluate", *options, *named)
    assert (found, out) == (code, "")
    assert error in err
    assert len([line for line in err.splitlines() if not line.startswith("hint:")]) == 1
    assert not (tmp_path / "x").exists()


def test_a_reward_that_was_edited_scores_again_if_asked(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rewards = ["--reward", "warmth=edited_rewards:one", "--reward", "focus=focus", "--json"]
    found = []
    for number, anyway in ((3, []), (12, ["--resume-anyway"])):
        (tmp_path / "edited_rewards.py").write_text(
            f"def one(prompts, answers):\n    print('hello')\n    return [{number}] * len(answers)\n"
        )
        sys.modules.pop("edited_rewards", None)
        if anyway:
            code, _, err = run_cli("evaluate", "--out", "run", *SMALL, *rewards)
            assert (code, "holds another run (reward_files.edited_rewards:one: " in err) == (2, True), err
        code, printed, err = run_cli("evaluate", "--out", "run", *SMALL, *rewards, *anyway)
        assert code == 0, err
        assert "hello" in err
        found.append(json.loads(printed)["points"][0]["raw"]["warmth"])
    assert found == [3.0, 12.0]


def test_another_base_is_refused_by_name(run_cli: Run, tmp_path: Path) -> None:
    base = Path(shutil.copytree(BUNDLED_BASE, tmp_path / "base"))
    run = ("evaluate", "--out", tmp_path / "run", *SMALL[2:], "--model", base, "--parm", BUNDLED_PARM)
    prompts = ("--prompts", tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("How do I bake bread?\n")
    assert run_cli(*run, *prompts)[0] == 0
    (base / "chat_template.jinja").write_text((base / "chat_template.jinja").read_text() + " ")
    code, _, err = run_cli(*run, *prompts)
    assert (code, "models.base.chat_template.jinja: " in err) == (2, True), err
    code, _, err = run_cli(*run, *prompts, "--resume-anyway")
    assert code == 0, err
    assert "going on with other models or rewards than before: models.base.chat_template.jinja" in err
    record = json.loads((tmp_path / "run" / "run.json").read_text())["resumed_with_changes"]
    assert [list(each["changed"]) for each in record] == [["models.base.chat_template.jinja"]]
    assert record[0]["answers"] == 4


def test_two_commands_cannot_work_on_one_run(run_cli: Run, done: Path) -> None:
    handle = os.open(done, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, _, err = run_cli("evaluate", "--out", done, *SMALL)
    finally:
        os.close(handle)
    assert code == 2
    assert "is in use: another process works on the same run" in err


def test_a_reference_point_that_nothing_dominates(run_cli: Run, done: Path) -> None:
    code, _, err = run_cli("evaluate", "--out", done, *SMALL, "--reference", "50,50")
    assert code == 2
    assert err.splitlines()[-1].startswith(("error:", "hint:"))
    assert "dominates" in err
    assert len((done / "results.jsonl").read_text().splitlines()) == 8


def test_the_folder_of_another_run_is_refused(run_cli: Run, done: Path) -> None:
    code, _, err = run_cli("evaluate", "--out", done, *SMALL, "--beta", "0.25")
    assert code == 2
    assert "holds another run (beta: [1.0], now [0.25])" in err


FAILING = """
def fails(prompts, answers):
    raise ValueError("no")
def nan(prompts, answers):
    return [float("nan")] * len(answers)
def short(prompts, answers):
    return [1.0]
def exits(prompts, answers):
    print("bye")
    raise SystemExit(0)
"""


def test_a_reward_that_fails_loses_no_answer(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_rewards.py").write_text(FAILING)
    for name, problem in (
        ("fails", "failed: ValueError: no"),
        ("nan", "returned nan"),
        ("short", "returned 1 scores"),
        ("exits", "failed: SystemExit: 0"),
    ):
        rewards = ["--reward", f"warmth=failing_rewards:{name}", "--reward", "focus=focus"]
        code, out, err = run_cli("evaluate", "--out", "run", *SMALL, *rewards)
        assert (code, out) == (1, "")
        assert problem in err
        assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 8
    code, _, err = run_cli("evaluate", "--out", "run", *SMALL)
    assert code == 0
    assert "8 of 8 answers were there already" in err


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    run_cli: Run, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parm_mlx.answers import sweep as module

    written = 0
    original = module.result_line

    def full(result: object) -> str:
        nonlocal written
        written += 1
        if written == 4:
            raise RunError("the disk is full: results.jsonl was not written")
        return original(result)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "result_line", full)
    code, _, err = run_cli("evaluate", "--out", tmp_path / "run", *SMALL)
    assert code == 1
    assert err == "error: the disk is full: results.jsonl was not written\n"
    monkeypatch.setattr(module, "result_line", original)
    assert run_cli("evaluate", "--out", tmp_path / "run", *SMALL)[0] == 0
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == (done / "results.jsonl").read_bytes()


def test_ctrl_c_keeps_what_is_done(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parm_mlx.answers import sweep as module

    original, keys = module.result_line, iter([signal.SIGINT])

    def interrupted(result: Any) -> str:
        for number in keys:
            os.kill(os.getpid(), number)
        return original(result)

    monkeypatch.setattr(module, "result_line", interrupted)
    code, out, err = run_cli("evaluate", "--out", tmp_path / "run", *SMALL)
    assert (code, out) == (130, "")
    kept = len((tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert 0 < kept < 8
    assert f"interrupted: {kept} of 8 answers are kept; the same command goes on" in err


def test_killed_runs_end_with_the_same_answers(tmp_path: Path) -> None:
    """The long form: python tests/kill_sweeps.py --kills 10."""
    settings = (
        "evaluate",
        "--model",
        "bundled",
        "--limit",
        "3",
        "--grid",
        "0.5",
        "--temp",
        "1",
        "--max-tokens",
        "16",
        "--bootstrap",
        "10",
    )
    assert len(kill_sweeps(tmp_path, 1, seed=1, settings=settings)) == 1


@pytest.mark.parametrize("grid", ["0.25", "even"])
def test_two_processes_give_what_one_gives(tmp_path: Path, grid: str) -> None:
    arguments = [
        "-m",
        "parm_mlx.cli.main",
        "evaluate",
        "--model",
        "bundled",
        "--out",
        "run",
        "--limit",
        "4",
        "--grid",
        grid,
    ]
    arguments += ["--temp", "1", "--max-tokens", "8", "--bootstrap", "10"]

    def start(folder: Path, **environment: str) -> "subprocess.Popen[str]":
        folder.mkdir(exist_ok=True)
        own = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}
        return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=own, stdout=-1, stderr=-1, text=True)

    alone = start(tmp_path / "one")
    output = alone.communicate(timeout=120)
    assert alone.returncode == 0, output
    hosts = ring(tmp_path, 2)
    both = [start(tmp_path / f"rank{rank}", MLX_RANK=str(rank), **hosts) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[1][0] == ""
    for name in ("results.jsonl", "scores.jsonl"):
        assert (tmp_path / "rank0" / "run" / name).read_bytes() == (tmp_path / "one" / "run" / name).read_bytes()
    left = {path.name for path in (tmp_path / "rank1" / "run").iterdir()}
    assert left == {".parm-mlx"}


def test_a_prompt_that_is_too_long_is_named_before_anything_is_generated(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How do I bake bread?\n" + "bread " * 2000 + "\n")
    code, out, err = run_cli(
        *("evaluate", "--out", tmp_path / "run", "--prompts", tmp_path / "prompts.txt", "--model", "bundled")
    )
    assert (code, out) == (2, "")
    assert "error: prompt line 2: the prompt has" in err
    assert not (tmp_path / "run").exists()
