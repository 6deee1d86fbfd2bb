import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(official: Path, official_parm: Path) -> list[str]:
    return ["--model", str(official / "base_lm"), "--parm", str(official_parm)]


def test_logits_that_are_not_finite_are_one_line_and_exit_1(
    run_cli: Run, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two prompts: the other's answer is printed."""
    import mlx.core as mx

    from parm_mlx.guidance.guide import Guide

    original = Guide.run

    def run(self: Guide, inputs: mx.array, *args: object) -> mx.array:
        logits = original(self, inputs, *args)  # type: ignore[arg-type]
        return (
            logits if inputs.shape[1] > 1 else logits * mx.where(mx.arange(len(logits)) == 1, mx.nan, 1)[:, None, None]
        )

    monkeypatch.setattr(Guide, "run", run)
    prompts = ("--prompt", "Hi", "--prompt", "Tell me a joke.")
    code, out, err = run_cli("generate", *models, *prompts, "--json", "--max-tokens", 4)
    assert code == 1
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["Hi"]
    assert err.startswith("error: the logits of ")
    assert " not finite: an answer ended after 0 tokens\nhint: " in err


def test_several_alphas_give_one_json_object_each(run_cli: Run, official: Path, models: list[str]) -> None:
    expected = json.loads((official / "expected_greedy.json").read_text())
    code, out, err = run_cli(
        "generate",
        *models,
        "--prompt",
        expected["prompts"][0],
        "--alpha",
        "1,0",
        "--alpha",
        "helpful=1",
        "--json",
        "--max-tokens",
        32,
    )
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    cases = {tuple(case["alpha"]): case for case in expected["cases"] if case["prompt_index"] == 0}
    assert [record["alpha"] for record in records] == [[1, 0], [0, 1]]
    for record in records:
        case = cases[tuple(record["alpha"])]
        assert record["text"] == case["text"]
        assert record["finish_reason"] == ("stop" if case["ended_with_eos"] else "length")
        assert record["tokens"] == len(case["generated_ids"]) - case["ended_with_eos"]
        assert record["objectives"] == ["harmless", "helpful"]


def test_drafts_change_no_answer_and_are_counted(
    run_cli: Run, official: Path, official_parm: Path, models: list[str]
) -> None:
    ask = ["--prompt", "Tell me a joke.", "--alpha", "1,0", "--alpha", "0,1", "--max-tokens", 20, "--json"]
    plain = [json.loads(line) for line in run_cli("generate", *models, *ask)[1].splitlines()]
    for drafts in (
        ["--speculation", "base"],
        ["--speculation", "guide"],
        ["--draft-model", official / "base_lm", "--num-draft-tokens", 2],
    ):
        code, out, err = run_cli("generate", *models, *ask, *drafts)
        assert code == 0
        records = [json.loads(line) for line in out.splitlines()]
        counts = [record.pop("drafts") for record in records]
        assert records == plain
        assert all(count["acceptance_rate"] == round(count["accepted"] / count["drafted"], 4) for count in counts)
        drafted, accepted = (sum(count[key] for count in counts) for key in ("drafted", "accepted"))
        assert f"drafts: {accepted} of {drafted} tokens kept" in err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--share", "on"], "error: base {base} and guide model {arm} cannot share one forward pass: "),
        (["--draft-model", "{gone}"], "error: draft model {gone}: no such directory"),
        (["--draft-model", "{parm}"], "error: {parm} is not a model directory: config.json is missing"),
        (
            ["--speculation", "off", "--num-draft-tokens", "2"],
            "error: --num-draft-tokens and --speculation off exclude",
        ),
        (
            ["--draft-model", "{base}", "--speculation", "base"],
            "error: --draft-model and --speculation base exclude each",
        ),
        (["--share", "maybe"], "error: Invalid value for '--share'"),
        (["--speculation", "base", "--num-draft-tokens", "0"], "error: Invalid value for '--num-draft-tokens'"),
    ],
)
def test_what_cannot_be_shared_or_drafted_is_one_line(
    run_cli: Run,
    official: Path,
    official_parm: Path,
    models: list[str],
    tmp_path: Path,
    options: list[str],
    error: str,
) -> None:
    places = {
        "base": official / "base_lm",
        "arm": official / "arm_base",
        "parm": official_parm,
        "gone": tmp_path / "no",
    }
    code, out, err = run_cli("generate", *models, "--prompt", "Hi", *(o.format(**places) for o in options))
    assert (code, out) == (2, "")
    assert err.startswith(error.format(**places))
    assert len(err.splitlines()) <= 2


def test_one_answer_is_printed_alone_and_several_with_titles(run_cli: Run, models: list[str]) -> None:
    code, out, _ = run_cli("generate", *models, "--prompt", "Hi", "--max-tokens", 4)
    assert code == 0
    assert "[" not in out.splitlines()[0][:1]
    code, out, err = run_cli(
        "generate", *models, "--prompt", "Hi", "--max-tokens", 4, "--alpha", "2,0", "--alpha", "0,1"
    )
    assert out.startswith("[harmless=1 helpful=0]\n")
    assert "[harmless=0 helpful=1]\n" in out
    used, measured = err.splitlines()
    assert used == "alpha 2,0 is used as harmless=1 helpful=0"
    assert re.fullmatch(r"2 answers, 8 tokens, [\d.]+ tokens/s; peak memory [\d.]+ GB", measured)


def test_prompts_come_from_stdin_and_files(
    run_cli: Run, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is the capital of France?\n"))
    from_stdin = run_cli("generate", *models, "--prompt", "-", "--max-tokens", 5, "--json")[1]
    file = tmp_path / "prompts.jsonl"
    file.write_text('"What is the capital of France?"\n\n{"prompt": "Tell me a joke."}\n', encoding="utf-8")
    lines = run_cli("generate", *models, "--prompts", file, "--max-tokens", 5, "--json")[1].splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["What is the capital of France?", "Tell me a joke."]
    assert lines[0] == from_stdin.strip()


def test_system_prompts_and_plain_text_change_what_is_read(run_cli: Run, models: list[str]) -> None:
    def text(*more: object) -> str:
        return run_cli("generate", *models, "--prompt", "Hi", "--max-tokens", 8, *more)[1]

    assert len({text(), text("--system-prompt", "Be kind."), text("--ignore-chat-template")}) == 3


def test_sampling_is_reproducible(run_cli: Run, models: list[str]) -> None:
    def text(seed: int) -> str:
        return run_cli("generate", *models, "--prompt", "Hi", "--max-tokens", 8, "--temp", 1, "--seed", seed)[1]

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompt", "x", "--prompts", "questions.txt"], "--prompt and --prompts exclude each other"),
        (["x", "--prompt", "y"], "unexpected argument 'x'"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "x", "--alpha", "0.5"], "alpha has 1 weight(s), the objectives are harmless, helpful (k=2)"),
        (["--prompt", "x", "--alpha", "kind=1"], "unknown objective 'kind'"),
        (["--prompt", "x", "--alpha", ""], "'--alpha': must not be empty"),
        (["--prompt", "x", "--alpha", "0,0"], "alpha is all zero"),
        (["--prompt", "x", "--alpha=-1,2"], "the weight of harmless must be"),
        (["--prompt", "x", "--beta", "0"], "beta must be a number from 1e-06 to 1e+06, got '0'"),
        (["--prompt", "x", "--beta", "nan"], "beta must be"),
        (["--prompt", "x", "--parm", "nowhere"], "adapter nowhere: no such directory"),
        (["--prompt", "x", "--model", "nowhere"], "model nowhere: no such directory"),
        (["--prompt", "x", "--guide-model", "nowhere"], "guide model nowhere: no such directory"),
        (
            ["--prompt", "x", "--ignore-chat-template", "--system-prompt", "y"],
            "--system-prompt needs the chat template",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(run_cli: Run, models: list[str], arguments: list[str], reason: str) -> None:
    code, out, err = run_cli("generate", *models, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert reason in err.splitlines()[0]


def test_a_prompt_on_stdin_that_is_not_text(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8", errors="surrogateescape")
    )
    code, out, err = run_cli("generate", "--prompt", "-")
    assert (code, out) == (2, "")
    assert "not UTF-8" in err


def test_a_base_needs_a_parm(run_cli: Run, models: list[str]) -> None:
    code, _, err = run_cli("generate", *models[:2], "--prompt", "x")
    assert code == 2
    assert err.splitlines() == [
        f"error: {models[1]} needs a PARM, the adapter that guides it",
        "hint: add --parm, or --alpha base for the answers of the base alone",
    ]
    code, _, err = run_cli("generate", *models[:2], "--guide-model", models[1], "--prompt", "x", "--alpha", "base")
    assert (code, err.splitlines()[0]) == (2, "error: --guide-model needs a PARM, the adapter that guides")
    code, _, err = run_cli("generate", *models[:2], "x", "--alpha", "base", "--alpha", "1,0")
    assert code == 2
    code, out, _ = run_cli("generate", *models[:2], "x", "--alpha", "base", "--max-tokens", 3)
    assert code == 0
    assert out.strip()


def test_the_base_alone_beside_guided_answers(run_cli: Run, official: Path, models: list[str]) -> None:
    ask = ("--prompt", "Tell me a joke.", "--max-tokens", 8, "--json")
    both = [
        json.loads(line)
        for line in run_cli("generate", *models, *ask, "--alpha", "base", "--alpha", "1,0")[1].splitlines()
    ]
    assert [record["alpha"] for record in both] == [None, [1, 0]]
    alone = json.loads(run_cli("generate", "--model", official / "base_lm", "--alpha", "base", *ask)[1])
    assert alone["text"] == both[0]["text"] != both[1]["text"]


def test_one_answer_is_streamed_and_is_that_of_a_batch(
    run_cli: Run, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("--max-tokens", 8, "--temp", 0.8, "--alpha", "1,0")
    code, out, err = run_cli("generate", "Tell me a joke.", *models, *ask)
    assert code == 0
    err = re.sub("drafts: .*\n|measuring once .*\n", "", err)
    assert err.endswith("cut at 8 tokens (--max-tokens)\n")
    err = err.removesuffix("cut at 8 tokens (--max-tokens)\n")
    assert re.fullmatch(
        r"prompt: \d+ tokens, [\d.]+ tokens/s; answer: 8 tokens, [\d.]+ tokens/s; peak memory [\d.]+ GB\n", err
    )
    several = run_cli("generate", "-p", "Tell me a joke.", "-p", "Why?", *models, *ask)[1]
    assert several.split("]\n")[1].split("\n\n[")[0].strip() == f"{out.strip()} …"
    monkeypatch.setattr("sys.stdin", io.StringIO("Tell me a joke.\n"))
    assert run_cli("generate", *models, *ask)[1] == out
    drafted = run_cli("generate", "Tell me a joke.", *models, *ask, "--speculation", "base")
    assert drafted[1] == out
    assert "drafts: " in drafted[2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("p.txt", b"", "holds no prompt"),
        ("p.jsonl", b"{broken", "p.jsonl:1: broken JSON"),
        ("p.jsonl", b'{"text": 1}', "p.jsonl:1: 'prompt' is missing"),
        ("p.jsonl", b'{"prompt": 1}', "'prompt' must be a text"),
        ("p.txt", b"word " * 2000, "tokens, and the model reads 1024 with its answer"),
        ("p.txt", b"\xff\xfe", "not UTF-8 text"),
        ("p.yaml", b"x", "must end with .txt, .jsonl, .json or .csv"),
    ],
)
def test_wrong_prompt_files(
    run_cli: Run, models: list[str], tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    code, _, err = run_cli("generate", *models, "--prompts", file)
    assert code == 2
    assert reason in err
    assert "Traceback" not in err
    assert "indexing errors" not in err
    code, _, err = run_cli("generate", *models, "--prompts", tmp_path / "missing.txt")
    assert (code, err.splitlines()) == (
        2,
        [f"error: {tmp_path / 'missing.txt'}: no such file"],
    )


@pytest.mark.parametrize(("spec", "noted"), [("2,3", True), ("helpful=0.5", True), ("0.4,0.6", False)])
def test_a_preference_that_is_normalised_is_shown(run_cli: Run, models: list[str], spec: str, noted: bool) -> None:
    _, _, err = run_cli("generate", *models, "--prompt", "x", "--max-tokens", 1, "--alpha", spec)
    assert (f"alpha {spec} is used as" in err) is noted


def test_an_explained_answer(run_cli: Callable[..., tuple[int, str, str]], models: list[object]) -> None:
    ask = ("--prompt", "Tell me a joke.", "--max-tokens", 6, "--alpha", "1,0", "--alpha", "base")
    code, out, _ = run_cli("generate", *models, *ask, "--json", "--explain")
    assert code == 0
    guided, alone = map(json.loads, out.splitlines())
    assert "explain" not in alone
    assert len(guided["explain"]) == guided["tokens"]
    for token in guided["explain"]:  # greedy: what was said is the likeliest
        assert token["top"][0]["id"] == token["id"]
        assert token["top"][0]["logprob"] == pytest.approx(token["logprob"])
        assert token["base_top"][0]["logprob"] >= token["base"]
    assert run_cli("generate", *models, *ask, "--explain")[0] == 2
