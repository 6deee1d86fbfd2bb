import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.guidance.encoding import encode
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.guidance.session import load_session
from parm_mlx.training.optimizer import auto_learning_rate
from parm_mlx.training.progress import ConsoleProgress

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {i}?", "responses": ["Yes, of course.", "No."], "preferred": {"warm": 0, "brief": 1}}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def train(run_cli: RunCli, official: Path, folder: Path) -> RunCli:
    def run(*arguments: Any) -> tuple[int, str, str]:
        base = ["--model", official / "arm_base", "--data", folder / "pairs.jsonl", "--out", folder / "mine"]
        return run_cli("train", *base, *arguments)

    return run


def test_training_and_the_use_of_its_result(train: RunCli, run_cli: RunCli, folder: Path, official: Path) -> None:
    code, out, err = train("--iters", 20, "--batch-size", 4, "--steps-per-report", 5)
    assert (code, out.strip()) == (0, str(folder / "mine"))
    assert "objectives and their labels: warm (11), brief (11)" in err
    assert err.count("step 5/20  loss") == 1
    assert "at warm=0.25 brief=0.75:" in err
    assert "20 steps done" in err
    code, out, err = run_cli(
        *("generate", "--model", official / "base_lm", "--parm", folder / "mine"),
        *("--prompt", "Hi", "--alpha", "warm=1", "--max-tokens", 2, "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["objectives"] == ["warm", "brief"]


def test_guidance_reads_the_template_of_the_training(train: RunCli, folder: Path, official: Path) -> None:
    assert train("--iters", 1, "--val-batches", 0, "--chat-template", "hh")[0] == 0
    assert json.loads((folder / "mine" / "adapter_config.json").read_text())["chat_template"] == "hh"
    prompter = load_session(official / "base_lm", folder / "mine").prompter
    tokenizer = load_base(official / "base_lm")[1]
    assert prompter("Hi").guide == encode(tokenizer, "\n\nHuman: Hi\n\nAssistant:")
    assert prompter("Hi").base == encode(tokenizer, render_prompt(tokenizer, "Hi"))


def test_a_missing_chat_template_is_said_once(run_cli: RunCli, folder: Path, official: Path) -> None:
    shutil.copytree(official / "arm_base", folder / "bare")
    settings = json.loads((folder / "bare" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "bare" / "tokenizer_config.json").write_text(json.dumps(settings))
    base = ("train", "--model", folder / "bare", "--data", folder / "pairs.jsonl", "--iters", 1, "--val-batches", 0)
    for more, times in (((), 1), (("--chat-template", "hh"), 0)):
        code, _, err = run_cli(*base, "--out", folder / f"out{times}", *more)
        assert (code, err.count("tokenizer has no chat template: prompts are read as plain text")) == (0, times), err


def test_an_existing_output_needs_force(train: RunCli, folder: Path) -> None:
    arguments = ("--iters", 1, "--batch-size", 2, "--val-batches", 0)
    assert train(*arguments)[0] == 0
    before = (folder / "mine" / "adapters.safetensors").read_bytes()
    code, out, err = train(*arguments, "--seed", 1)
    assert (code, out) == (2, "")
    assert err == f"error: {folder / 'mine'} exists already\nhint: choose another --out, or replace it with --force\n"
    assert train(*arguments, "--seed", 1, "--force")[0] == 0
    assert (folder / "mine" / "adapters.safetensors").read_bytes() != before


def test_settings_from_a_file(run_cli: RunCli, folder: Path, official: Path) -> None:
    (folder / "train.yaml").write_text(
        f"model: {official / 'arm_base'}\ndata: {folder / 'pairs.jsonl'}\nout: {folder / 'mine'}\n"
        "iters: 50\nbatch-size: 2\nlearning-rate: 1e-3\nval-batches: 0\nalpha-per: batch\n"
    )
    code, _, err = run_cli("train", "--config", folder / "train.yaml", "--iters", 2)
    assert code == 0, err
    settings = json.loads((folder / "mine" / "adapter_config.json").read_text())["training"]["settings"]
    assert (settings["iters"], settings["batch_size"], settings["learning_rate"]) == (2, 2, 1e-3)
    assert (settings["alpha_per"], settings["warmup"]) == ("batch", 20)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--batch-size", "0"], "'--batch-size': must be a whole number from 1 to 4096, got '0'"),
        (["--objectives", "wram"], "unknown objective 'wram' (did you mean 'warm'?); the data has warm, brief"),
        (["--config", "nothing.yaml"], "nothing.yaml is missing"),
        (["--alpha-per", "step"], "--alpha-per"),
        (["--chat-template", "bever"], "--chat-template"),
        (["--max-seq-length", "3"], "no training pair is left"),
        (["--epochs", "1", "--iters", "1"], "iters and epochs are both given"),
    ],
)
def test_wrong_usage_is_one_clear_line(train: RunCli, folder: Path, arguments: list[str], error: str) -> None:
    code, out, err = train(*arguments)
    assert (code, out) == (2, "")
    assert error in err
    assert "Traceback" not in err
    assert not (folder / "mine").exists()


def test_missing_settings_are_listed(run_cli: RunCli) -> None:
    code, _, err = run_cli("train")
    assert code == 2
    assert err == "error: training settings: model is missing; data is missing; out is missing\n"


def test_bad_rows_are_reported_with_file_and_line(train: RunCli, folder: Path) -> None:
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "x"\n{"prompt": "x"}\n')
    code, _, err = train()
    assert code == 2
    assert "2 rows cannot be used\n  pairs.jsonl:13: broken JSON" in err
    assert "\n  pairs.jsonl:14: needs 'responses'" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_goes_on(
    train: RunCli, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def advance(self: ConsoleProgress, step: int) -> None:
        if step == 3:
            signal.raise_signal(number)

    arguments = ("--iters", 6, "--batch-size", 2, "--val-batches", 1)
    with monkeypatch.context() as patched:
        patched.setattr(ConsoleProgress, "advance", advance)
        code, out, err = train(*arguments)
    checkpoint = folder / "mine.checkpoints" / "step-00000003"
    assert (code, out.strip()) == (128 + number, str(checkpoint))
    assert "stopped at step 3; the same command with --resume finishes the run" in err
    assert f"parm-mlx chat --parm {checkpoint}" in err
    code, out, err = train(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {checkpoint.parent} holds the checkpoints of an earlier run, up to step 3\nhint: ")
    code, out, err = train(*arguments, "--resume", "--learning-rate", "1e-3", "--gamma", 1)
    assert code == 2
    assert "made with other settings:\n  learning_rate: null → 0.001\n  gamma: 0.0 → 1.0\n" in err
    code, out, err = train(*arguments, "--resume", "--steps-per-report", 3)
    assert (code, out.strip()) == (0, str(folder / "mine")), err
    assert f"going on after step 3 from {checkpoint}" in err
    code, out, err = train(*arguments, "--resume")
    assert (code, out.strip()) == (0, str(folder / "mine")), err
    assert "is finished already" in err


def test_ctrl_c_before_the_first_step_leaves_nothing(
    train: RunCli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConsoleProgress, "begin", lambda self, steps, done: signal.raise_signal(signal.SIGINT))
    assert train("--iters", 10)[0] == 130
    assert not (folder / "mine").exists()


def test_help_shows_the_defaults_and_examples(run_cli: RunCli) -> None:
    code, out, _ = run_cli("train", "--help")
    assert code == 0
    assert "(auto)]" in out
    assert "parm-mlx train --model base --data pairs.jsonl --out my-parm" in out


def test_training_says_whether_alpha_moves_the_adapter(train: RunCli, folder: Path) -> None:
    quick = ("--batch-size", 4, "--warmup", 0, "--beta-objective", 0.1)
    code, _, err = train("--iters", 3, "--learning-rate", 1e-9, *quick)
    assert code == 0
    assert "3 steps are few" in err
    assert "alpha hardly moves the adapter: its corners are 0.000 nats per token apart" in err
    assert "try it" not in err
    code, _, err = train("--iters", 20, "--learning-rate", 0.05, *quick, "--force")
    assert code == 0
    assert "alpha moves the adapter: its corners are " in err
    assert "\ntry it: " in err


def test_the_learning_rate_follows_the_hidden_size(train: RunCli, folder: Path) -> None:
    code, _, err = train("--iters", 1)
    assert code == 0
    assert "learning rate 0.014, for a hidden size of 64" in err
    training = json.loads((folder / "mine" / "adapter_config.json").read_text())["training"]
    assert (training["settings"]["learning_rate"], training["peak_learning_rate"]) == (None, 0.014)
    assert auto_learning_rate(4096) == 5e-4
    assert auto_learning_rate(576) == 0.0024


def test_an_adapter_that_moves_finds_its_backbone(
    run_cli: RunCli, folder: Path, official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the way that the training was given, from the same folder; else the hint names the flag."""
    shutil.copytree(official / "arm_base", folder / "models" / "base")
    monkeypatch.chdir(folder)
    command = ("--model", "models/base", "--data", "pairs.jsonl", "--out", "mine", "--iters", 1, "--val-batches", 0)
    assert run_cli("train", *command)[0] == 0
    (folder / "far" / "away").mkdir(parents=True)
    (folder / "mine").rename(folder / "far" / "away" / "mine")
    ask = ("--prompt", "Hi", "--max-tokens", 2)
    assert run_cli("generate", "--parm", "far/away/mine", *ask)[0] == 0
    monkeypatch.chdir(folder / "far")
    code, _, err = run_cli("generate", "--parm", "away/mine", *ask)
    assert code == 2
    assert "models/base" in err.splitlines()[0]
    assert "--guide-model DIR says where it is now" in err
    assert run_cli("generate", "--parm", "away/mine", "--guide-model", folder / "models" / "base", *ask)[0] == 0
