import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.cli.console import visible
from parm_mlx.guidance.chat import Conversation

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(
    run_cli: Run, official: Path, official_parm: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    models = ["--model", official / "base_lm", "--parm", official_parm, "--temp", 0, "--max-tokens", 12]

    def run(lines: str, *more: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return run_cli("chat", *models, *more)

    return run


def test_drafts_change_no_answer_of_a_chat(chat: Run) -> None:
    lines = "What is the capital of France?\n/alpha 0,1\nTell me a joke.\n"
    plain = chat(lines, "--quiet")
    drafted = chat(lines, "--quiet", "--speculation", "base", "--num-draft-tokens", 2)
    assert drafted == plain
    assert "drafts: " in chat(lines, "--speculation", "base")[2].splitlines()[-1]


def test_a_whole_conversation(chat: Run, official: Path) -> None:
    """The first answers are the official greedy tokens at (1, 0) and (0, 1), cut at 12 tokens."""
    cases = json.loads((official / "expected_greedy.json").read_text())
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(official / "base_lm")
    question = cases["prompts"][0]
    first, second = (
        visible(tokenizer.decode(case["generated_ids"][:12], skip_special_tokens=True))
        for alpha in ([1, 0], [0, 1])
        for case in cases["cases"]
        if case["alpha"] == alpha and case["prompt_index"] == 0
    )
    script = (
        f"{question}\n/compare 1, 0 helpful = 1\n/reset\n\n/alpha 0,2\n{question}\n/alpha\n/help\n/quit\nnever read\n"
    )
    code, out, err = chat(script, "--alpha", "1,0")
    assert code == 0
    compared = [
        f"[harmless=1 helpful=0]\n{first.strip()}\n\n",
        f"[harmless=0 helpful=1]\n{second.strip()}\n\n",
    ]
    assert out.replace(" …", "") == f"{first}\n{''.join(compared)}{second}\n"
    notes = err.splitlines()
    assert notes[0] == "preference: harmless=1 helpful=0   /help lists the commands"
    assert "the conversation starts again" in notes
    assert "alpha 0,2 is used as harmless=0 helpful=1" in notes
    assert notes.count("preference: harmless=0 helpful=1") == 2
    assert any(note.startswith("/compare") for note in notes)


def test_quiet_prints_answers_only(chat: Run) -> None:
    code, out, err = chat("hello\n", "--quiet", "--alpha", "0.5,0.5")
    assert (code, err) == (0, "")
    assert out.strip()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/alpha 0.7 0.3", "error: '0.7 0.3' in alpha is not a number"),
        ("/alpha 1", "error: alpha has 1 weight(s)"),
        ("/alpha kind=1", "error: unknown objective 'kind'"),
        ("/compare 1,0", "error: nothing to compare yet"),
        ("/compare", "error: nothing to compare yet"),
        ("/nonsense", "error: unknown command /nonsense"),
    ],
)
def test_a_wrong_command_does_not_end_the_conversation(chat: Run, line: str, reason: str) -> None:
    code, out, err = chat(f"{line}\nhello\n/compare\n")
    assert code == 0
    assert reason in err
    assert out.strip()
    assert "[base alone]\n" in out
    assert "[harmless=1 helpful=0]\n" in out


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Conversation.ask

    def interrupted(self: Conversation, question: str, *more: Any) -> Iterator[Any]:
        for number, chunk in enumerate(ask(self, question, *more)):
            if question == "first" and number == 3:
                signal.raise_signal(signal.SIGINT)
            yield chunk

    monkeypatch.setattr(Conversation, "ask", interrupted)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = chat("first\nsecond\n")
    assert code == 0
    assert err.count("stopped") == 1
    assert len(out.splitlines()) >= 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_real_process_answers_a_pipe(official: Path, official_parm: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "parm_mlx.cli.main",
        "chat",
        "--model",
        official / "base_lm",
        "--parm",
        official_parm,
    ]
    done = subprocess.run([*map(str, command), "--quiet"], input="hello\n", capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert done.stderr == "" or done.stderr.startswith("hint: OpenBLAS")


def test_logits_that_are_not_finite_are_an_error_line_and_the_conversation_goes_on(
    chat: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide breaks while it answers the second question."""
    import mlx.core as mx

    from parm_mlx.guidance.guide import Guide

    expected = chat("Hi\nTell me a joke.\n", "--quiet")[1].splitlines()
    original, broken = Guide.run, [False]

    def run(self: Guide, *args: Any, **kwargs: Any) -> mx.array:
        return original(self, *args, **kwargs) * (mx.inf if broken[0] else 1)

    def ask(self: Conversation, question: str, *args: Any) -> Iterator[Any]:
        broken[0] = question == "What?"
        yield from answer(self, question, *args)

    answer = Conversation.ask
    monkeypatch.setattr(Guide, "run", run)
    monkeypatch.setattr(Conversation, "ask", ask)
    code, out, err = chat("Hi\nWhat?\nTell me a joke.\n", "--quiet")
    assert (code, out.splitlines()) == (0, expected)
    assert err.startswith("error: the logits of the guide are not finite: an answer ended after 0 tokens\n")


def test_a_line_that_is_not_text_does_not_end_the_conversation(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = chat("hello\n", "--quiet")[1]
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("io.StringIO", lambda _: lines)
    code, out, err = chat("", "--quiet")
    assert (code, out) == (0, answer)
    assert err.startswith("error: the line is not UTF-8")


def test_a_space_before_an_answer_stays_in_the_conversation(
    run_cli: Run, official: Path, official_parm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read in the second turn begins with all that was read and written in the first."""
    read: list[list[int]] = []
    original = Conversation._read

    def spied(self: Conversation, request: Any) -> Any:
        read.append([*self._base.tokens])
        read.append(list(request.prompt.base))
        return original(self, request)

    monkeypatch.setattr(Conversation, "_read", spied)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the capital of France?\nTell me a joke.\n"))
    code, _, err = run_cli(
        *("chat", "--model", official / "base_lm", "--parm", official_parm, "--max-tokens", 6, "--seed", 3, "--quiet")
    )
    assert code == 0, err
    _, first, held, second = read
    assert len(held) > len(first)
    assert second[: len(held)] == held


def test_a_line_that_is_not_utf_8_is_refused_and_the_next_is_read(chat: Run) -> None:
    code, out, err = chat("caf\udce9\nhello\n", "--alpha", "0.5,0.5", "--quiet")
    assert code == 0
    assert err == "error: the line is not UTF-8: caf\\udce9\n"
    assert out.strip()


def test_the_base_alone_and_the_other_settings_of_a_turn(chat: Run, official: Path, run_cli: Run) -> None:
    question = "What is the capital of France?"
    alone = run_cli(*("generate", question, "--model", official / "base_lm", "--alpha", "base", "--max-tokens", 12))[1]
    code, out, err = chat(f"/alpha base\n{question}\n/reset\n/alpha 1,0\n/beta 1e6\n{question}\n")
    assert code == 0
    assert [line.strip() for line in out.splitlines()] == [alone.strip()] * 2, (
        "a guide of strength 1e-6 changes nothing"
    )
    assert "preference: base alone" in err
    assert "beta: 1e+06" in err
    _, out, err = chat(
        f"{question}\n/reset\n/temp 5\n{question}\n/reset\n/temp 0\n/system Be rude.\n/system\n{question}\n"
    )
    assert len(set(out.splitlines())) == 3
    assert "temperature: 5" in err
    assert "system message: Be rude." in err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/beta 0", "error: beta must be"),
        ("/temp warm", "error: the temperature must be"),
        ("/save", "error: /save needs the name of a file"),
        ("/load nowhere.json", "error: conversation: nowhere.json is missing in ."),
    ],
)
def test_a_setting_that_cannot_be_used(chat: Run, line: str, reason: str) -> None:
    code, out, err = chat(f"{line}\nhello\n")
    assert (code, len(out.splitlines())) == (0, 1)
    assert reason in err


@pytest.mark.parametrize("leave", ["exit", "/bye", "/quit"])
def test_leaving(chat: Run, leave: str) -> None:
    assert chat(f"{leave}\nhello\n", "--quiet") == (0, "", "")


def test_a_block_is_one_message(chat: Run) -> None:
    one = chat('"""first line\nsecond line"""\n', "--quiet")
    assert len(one[1].splitlines()) == 1
    assert one == chat('"""\nfirst line\nsecond line\n"""\n', "--quiet")
    assert one != chat("first line\n", "--quiet")
    assert len(chat("first line\nsecond line\n", "--quiet")[1].splitlines()) == 2


def test_a_saved_conversation_goes_on_as_it_would_have(
    chat: Run, tmp_path: Path, run_cli: Run, official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "talk.json"
    turns = "What is the capital of France?\n/alpha 0,1\nTell me a joke.\n"
    expected = chat(f"{turns}And another one?\n", "--quiet")[1].splitlines()[-1]
    code, _, err = chat(f"{turns}/save {file}\n/save {file}\n", "--quiet")
    assert code == 0
    assert err.splitlines()[0] == f"error: {file} exists already"
    before = file.read_bytes()
    assert chat(f"/load {file}\nAnd another one?\n", "--quiet") == (0, f"{expected}\n", "")
    assert "the file does not say how the last answer was steered" in chat(f"/load {file}\n/why\n", "--quiet")[2]
    assert chat(f"/load {file}\nAnd another one?\n", "--temp", 1, "--beta", 9, "--quiet")[1] == f"{expected}\n"
    err = chat(f"/load {file}\n", "--temp", 1, "--beta", 9)[2]
    assert "beta: 1\ntemperature: 0\npreference: harmless=0 helpful=1" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/load {file}\nAnd another one?\n"))
    code, out, err = run_cli("chat", "--model", official / "base_lm", "--alpha", "base", "--max-tokens", 12)
    assert code == 0
    assert out.strip()
    assert "with other models than before" in err
    assert "preference: base alone" in err
    assert file.read_bytes() == before


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"messages": "hello"},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "x"}]},
        {"asked": {"base": [], "guide": []}},
        {"asked": {"base": [1]}},
        {"asked": {"base": [1], "guide": [10**9]}},
        {"answer": [True]},
        {"answer": None},
        {"turns": -1},
        {"turns": 10**30},
        {"settings": None},
        {"settings": {"beta": 0, "temp": 0}},
        {"settings": {"beta": None, "temp": "hot"}},
        {"alpha": [1]},
        {"alpha": [2, -1]},
        {"alpha": [float("nan"), 1]},
    ],
)
def test_a_damaged_conversation_is_one_line(chat: Run, tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "talk.json"
    chat(f"hello\n/save {file}\n", "--quiet")
    _change(file, **values)
    code, out, err = chat(f"/load {file}\nhello\n", "--quiet")
    assert (code, len(out.splitlines()), len(err.splitlines())) == (0, 1, 1)
    assert "talk.json" in err
    _change(file, format="another")
    assert "is not a conversation that /save wrote" in chat(f"/load {file}\n", "--quiet")[2]


def test_a_conversation_longer_than_the_context_forgets_its_oldest_turns(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 turns of the bundled pair, which reads 1,024 tokens."""
    lines = [f"How do I clean {thing} number {n}?" for n in range(20) for thing in ("a window", "an oven")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, err = run_cli("chat", "--model", "bundled", "--alpha", "1,0", "--max-tokens", 12, "--temp", 0)
    assert code == 0, err
    assert len([line for line in out.splitlines() if line]) >= 40
    assert "turns are forgotten" in err or "turn is forgotten" in err
    assert "error" not in err


def test_why_an_answer_says_what_it_says(chat: Run) -> None:
    """The shares of base, guide and both are those of an explained answer, and /why needs a guided one."""
    _, out, err = chat("/why\nTell me a joke.\n/why\n/alpha base\nTell me another.\n/why\n", "--alpha", "1,0")
    assert err.count("error: ") == 2
    assert "there is no answer yet" in err
    assert "the base answers alone" in err
    rows = [line for line in out.splitlines() if " by the base, " in line]
    assert 0 < len(rows) <= 6
    for row in rows:
        base, guide, both = (float(share) for share in re.findall(r"([\d.e+-]+) %", row))
        assert min(base, guide, both) >= 0
        assert max(base, guide, both) <= 100
    assert any("the base alone: " in row for row in rows)
