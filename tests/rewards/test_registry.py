"""Rewards, their cache and what may go wrong with them."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from parm_mlx.errors import InputError, RunError
from parm_mlx.guidance.templates import Content
from parm_mlx.rewards.registry import Reward, load_rewards

MODULE = """
def length(prompts, answers):
    return [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers)]

class Kind:
    best = staticmethod(lambda prompts, answers: [1] * len(answers))

number = 3
"""


def test_built_in_scorers_score_the_answers() -> None:
    rewards = load_rewards(["kind=builtin:warmth", "brevity = brevity"])
    assert list(rewards) == ["kind", "brevity"]
    assert [reward.spec for reward in rewards.values()] == ["builtin:warmth", "builtin:brevity"]
    answers = ["I am glad, my friend.", "No."]
    assert [reward(["?", "?"], answers) for reward in rewards.values()] == [[2.0, 0.0], [-5.0, -1.0]]


def test_python_functions_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    rewards = load_rewards(["a=own_rewards:length", "b=own_rewards:Kind.best"])
    assert sys.path == before
    assert rewards["a"].spec == f"own_rewards:length@{hashlib.sha256(MODULE.encode()).hexdigest()[:8]}"
    assert rewards["a"](["12", "1"], ["345", "2"]) == [5.0, 2.0]
    assert rewards["b"](["12"], ["345"]) == [1.0]
    for spec, problem in (
        ("own_rewards:missing", "has no function missing"),
        ("own_rewards:number", "has no function number"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
    ):
        with pytest.raises(InputError, match=problem):
            load_rewards([f"a={spec}"])


def test_what_is_asked_twice_is_scored_once_longest_first() -> None:
    calls: list[list[str]] = []

    def function(prompts: Sequence[Content], answers: Sequence[str]) -> list[int]:
        calls.append(list(answers))
        return [len(answer) for answer in answers]

    reward = Reward("length", "test", function, batch_size=2)
    answers = ["a", "bbb", "a", "cc", "dddd"]
    assert reward(["p"] * 5, answers) == [1, 3, 1, 2, 4]
    assert calls == [["dddd", "bbb"], ["cc", "a"]]
    assert reward(["p", "q"], ["a", "a"]) == [1, 1]
    assert calls[2:] == [["a", "a"]], "another prompt, another pair"
    conversation: list[dict[str, str]] = [{"role": "user", "content": "p"}]
    assert reward([conversation] * 2, ["cc", "cc"]) == [2, 2]
    assert calls[3:] == [["cc"]]
    assert reward([], []) == []


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ([1.0], r"reward r \(spec\) returned 1 scores for 2 answers"),
        ([1.0, float("nan")], r"returned nan, which is not a finite number, for 'other'"),
        ([float("inf"), 1.0], "returned inf, .* for 'first'"),
        ([10**400, 1], "returned 1000"),
        (["x", 1], "returned 'x'"),
        (None, "failed: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_wrong_results_are_one_line(result: object, problem: str) -> None:
    with pytest.raises(RunError, match=problem):
        Reward("r", "spec", lambda prompts, answers: result)(["p", "p"], ["first", "other"])  # type: ignore[arg-type, return-value]


def test_a_function_that_raises_is_one_line() -> None:
    def function(prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
        raise ValueError("out of words\nand more")

    with pytest.raises(
        RunError, match=r"reward r \(spec\) failed: ValueError: out of words \(at test_registry.py:\d+\)$"
    ):
        Reward("r", "spec", function)(["p"], ["a"])


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("warmth", "is not NAME=SPEC"),
        ("=warmth", "is not NAME=SPEC"),
        ("a=", "is not NAME=SPEC"),
        ("a=builtin:wamth", r"no built-in scorer wamth \(did you mean 'warmth'\?\): "),
        ("a=wamth", r"neither a built-in scorer .* \(did you mean 'warmth'\?\)"),
    ],
)
def test_wrong_forms(spec: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load_rewards([spec])
    with pytest.raises(InputError, match="given twice"):
        load_rewards(["a=warmth", "a=brevity"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("def f(:\n", r"SyntaxError: invalid syntax \(broken_rewards\.py, line 1\)$"),
        ("\nx = 1 / 0\n", r"ZeroDivisionError: division by zero \(at broken_rewards\.py:2\)$"),
        ("import sys; sys.exit(3)\n", r"SystemExit: 3 \(at broken_rewards\.py:1\)$"),
        ("raise SystemExit\n", r"SystemExit \(at broken_rewards\.py:1\)$"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    (tmp_path / "broken_rewards.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(InputError, match=f"reward module broken_rewards cannot be imported: {problem}"):
        load_rewards(["a=broken_rewards:f"])
    assert sys.path == before


@pytest.mark.parametrize("spec", [":f", ".x:f", "a b:f"])
def test_names_that_are_not_those_of_modules(spec: str) -> None:
    with pytest.raises(InputError, match="is not the name of a Python module"):
        load_rewards([f"a={spec}"])


def test_a_function_that_exits_is_one_line() -> None:
    def function(prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
        sys.exit(0)

    with pytest.raises(RunError, match=r"reward r \(spec\) failed: SystemExit: 0 \(at test_registry\.py:\d+\)$"):
        Reward("r", "spec", function)(["p"], ["a"])


def test_a_signal_in_the_middle_of_a_function_ends_the_program() -> None:
    from parm_mlx.cli.main import _end

    def function(prompts: Sequence[Content], answers: Sequence[str]) -> list[float]:
        _end(15, None)
        return [0.0]

    with pytest.raises(SystemExit) as caught:
        Reward("r", "spec", function)(["p"], ["a"])
    assert caught.value.code == 143


def test_what_a_reward_prints_goes_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also what a subprocess prints, which knows the file descriptor alone."""
    body = "    print('two', flush=True)\n    os.system('echo three')\n    return [1]\n"
    code = f"import os\nprint('one')\ndef f(p, a):\n{body}"
    (tmp_path / "loud_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert load_rewards(["a=loud_rewards:f"])["a"](["p"], ["a"]) == [1.0]
    assert capfd.readouterr() == ("", "one\ntwo\nthree\n")


def test_functions_themselves_are_rewards() -> None:
    reward = load_rewards({"kind": "warmth", "length": lambda prompts, answers: [len(answer) for answer in answers]})
    assert reward["kind"].spec == "builtin:warmth"
    assert reward["length"](["?"], ["four"]) == [4.0]
