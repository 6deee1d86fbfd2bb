"""Commands over two processes on this machine, as mlx.launch starts them: they do what one process does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from ring import ring

from parm_mlx.named import BUNDLED_BASE

LIMIT = 120
MODEL = ("--model", "bundled", "--shard", "tensor")
Start = Callable[..., list["subprocess.Popen[str]"]]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command in two processes, the other than rank 0 with more arguments, if there are any for it."""
    running: list[subprocess.Popen[str]] = []

    def started(*arguments: str, other: Sequence[str] = ()) -> list["subprocess.Popen[str]"]:
        environment = {**os.environ, **ring(tmp_path, 2), "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1"}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-P", "-m", "parm_mlx.cli.main", *arguments]
        running.extend(
            subprocess.Popen(command + more, cwd=tmp_path, env={**environment, "MLX_RANK": rank}, text=True, **pipes)
            for rank, more in (("0", []), ("1", list(other)))
        )
        return running

    yield started
    for process in running:
        process.kill()
        process.communicate()


def ended(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    outputs = [process.communicate(timeout=LIMIT) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_an_evaluation_has_the_answers_and_scores_of_one_process(start: Start, run_cli: Run, tmp_path: Path) -> None:
    how = ("evaluate", "--model", "bundled", "--limit", "2", "--grid", "1", "--max-tokens", "6", "--bootstrap", "5")
    (code, out, err), follower = ended(start(*how, "--shard", "tensor", "--out", "together", "--json"))
    assert code == 0, err
    assert follower == (0, "", "")
    assert json.loads(out)["objectives"] == ["warmth", "focus"]
    assert run_cli(*how, "--out", str(tmp_path / "alone"))[0] == 0
    for file in ("results.jsonl", "scores.jsonl"):
        assert (tmp_path / "together" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


def test_a_chat_follows_the_lines_of_rank_0(start: Start, run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "How do I bake bread?\n/alpha 0,1\nAnd a cake?\n/nosuch\n"
    how = ("--quiet", "--seed", "3", "--max-tokens", "12", "--speculation", "off")
    processes = start("chat", *MODEL, *how)
    assert processes[0].stdin is not None
    processes[0].stdin.write(lines)
    processes[0].stdin.close()
    processes[0].stdin = None
    (code, out, err), follower = ended(processes)
    assert (code, follower) == (0, (0, "", ""))
    assert err == "error: unknown command /nosuch\nhint: /help lists the commands\n"
    alone = subprocess.run(
        [sys.executable, "-m", "parm_mlx.cli.main", "chat", "--model", "bundled", *how],
        input=lines,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert out == alone.stdout


def test_a_server_answers_from_all_processes_until_it_is_told_to_end(start: Start) -> None:
    processes = start("serve", *MODEL, "--port", "0", "--temp", "0", "--max-tokens", "8")
    assert processes[0].stdout is not None
    address = processes[0].stdout.readline().split(" is served at ")[1].split()[0]

    def ask(alpha: list[int]) -> str:
        content = {
            "model": "bundled",
            "alpha": alpha,
            "messages": [{"role": "user", "content": "How do I bake bread?"}],
        }
        asked = urllib.request.Request(
            f"{address}/v1/chat/completions", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=LIMIT) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    first = ask([1, 0])
    assert first.startswith("I am happy to help!")
    assert ask([0, 1]) != first
    assert ask([1, 0]) == first  # with what was kept of the prompt
    processes[0].send_signal(signal.SIGTERM)
    (code, _, err), (_, out, other) = ended(processes)
    assert code == 128 + signal.SIGTERM
    assert (err, out, other) == ("", "", "")


def answering(start: Start) -> list["subprocess.Popen[str]"]:
    """Two processes that have given the first of many answers."""
    prompts = [part for i in range(24) for part in ("-p", f"How do I bake bread {i}?")]
    processes = start("generate", *MODEL, *prompts, "--json", "--max-tokens", "40", "--alpha", "1,0")
    assert processes[0].stdout is not None
    processes[0].stdout.readline()
    return processes


def test_an_interrupt_of_another_process_than_rank_0_ends_all_at_one_token(start: Start) -> None:
    processes = answering(start)
    processes[1].send_signal(signal.SIGINT)
    (code, _, err), follower = ended(processes)
    assert (code, err) == (130, "interrupted\n")
    assert follower == (130, "", "")


DIVIDED = ("generate", "Hi", "--max-tokens", "4", "--speculation", "off", "--share", "off")


@pytest.mark.parametrize(
    ("command", "other", "message"),
    [
        ((*DIVIDED, *MODEL), ("--max-tokens", "3"), "values of --max-tokens differ between rank 0 and rank 1"),
        ((*DIVIDED, *MODEL), ("--beta", "0.5"), "the settings and objectives and beta of the adapters differ"),
        ((*DIVIDED, *MODEL), ("--guidance", "one-pass"), "rank 1: "),
        ((*DIVIDED, "--model", "bundled", "--shard", "apart"), ("--parm", "nosuch"), "rank 1: adapter nosuch: no such"),
        (
            ("evaluate", *MODEL, "--limit", "1", "--max-tokens", "2", "--out", "run"),
            ("--prompts", "nosuch.txt"),
            "rank 1: nosuch.txt: no such file",
        ),
    ],
)
def test_what_one_process_cannot_do_or_was_not_told_ends_both(
    start: Start, command: Sequence[str], other: Sequence[str], message: str
) -> None:
    (code, out, err), follower = ended(start(*command, other=other))
    assert (code, out) == (2, "")
    assert f"error: {message}" in err
    assert follower == (2, "", "")


def test_an_answer_by_other_weights_is_refused(start: Start, tmp_path: Path) -> None:
    """The processes would mix them in one sum, or wait for each other forever."""
    shutil.copytree(BUNDLED_BASE, tmp_path / "copy")
    weights = mx.load(str(tmp_path / "copy" / "model.safetensors"))
    assert isinstance(weights, dict)
    changed = {name: value * 1.5 if "q_proj" in name else value for name, value in weights.items()}
    mx.save_safetensors(str(tmp_path / "copy" / "model.safetensors"), changed)
    both = ended(start(*DIVIDED, *MODEL, "--parm", "bundled", other=("--model", str(tmp_path / "copy"))))
    assert [code for code, _, _ in both] == [2, 2]
    assert both[0][2].startswith("error: the models differ between rank 0 and rank 1\n")


def test_rank_0_tells_that_another_process_was_ended(start: Start) -> None:
    processes = answering(start)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, err), follower = ended(processes)
    assert (code, err) == (1, "error: rank 1 has ended\nhint: start it again in all processes\n")
    assert follower == (128 + signal.SIGTERM, "", "")
