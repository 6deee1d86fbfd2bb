import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunCli = Callable[..., tuple[int, str, str]]

GOOD: dict[str, Any] = {"prompt": "Hi", "responses": ["Yes", "No"], "preferred": {"helpful": 0, "harmless": 1}}
CHOSEN = {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "objective": "helpful"}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No", "objective": "x"}
SAFE = {"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


# Name of the file, its content, its bad lines, and a part of the reason.
MALFORMED: list[tuple[str, bytes, list[int], str]] = [
    ("f.jsonl", lines(GOOD, b'{"prompt": "Hi"', GOOD), [2], "broken JSON"),
    ("f.jsonl", lines(b"{'prompt': 'Hi'}", GOOD, b"prompt,chosen,rejected"), [1, 3], "broken JSON"),
    ("f.jsonl", lines(GOOD, [GOOD]), [2], "a row must be a JSON object, not a list"),
    ("f.jsonl", lines(GOOD, "Hi", 3, None), [2, 3, 4], "a row must be a JSON object, not a text"),
    ("f.jsonl", lines(without(GOOD, "prompt"), GOOD), [1], "'prompt' is missing"),
    ("f.jsonl", lines(GOOD, without(GOOD, "responses")), [2], "'responses' is missing"),
    ("f.jsonl", lines(GOOD, without(GOOD, "preferred")), [2], "'preferred' is missing"),
    ("f.jsonl", lines(without(CHOSEN, "rejected")), [1], "'rejected' is missing"),
    ("train.jsonl", lines(CHOSEN, without(CHOSEN, "objective") | {"objective": None}), [2], "'objective' is missing"),
    ("f.jsonl", lines(GOOD | {"prompt": 7}), [1], "'prompt' must be a text or a list of messages"),
    ("f.jsonl", lines(GOOD | {"prompt": ""}, GOOD | {"prompt": []}), [1, 2], "'prompt' is empty"),
    ("f.jsonl", lines(GOOD | {"prompt": [{"role": "user"}]}), [1], "must have 'role' and 'content'"),
    ("f.jsonl", lines(GOOD | {"prompt": [{"role": "assistant", "content": "x"}]}), [1], "must not be the assistant's"),
    ("f.jsonl", lines(GOOD | {"responses": ["one"]}), [1], "must be a list of two texts"),
    ("f.jsonl", lines(GOOD | {"responses": ["one", 2]}), [1], "the second response must be a text"),
    ("f.jsonl", lines(GOOD | {"preferred": {"helpful": 2}}), [1], "must be 0 or 1, not 2"),
    ("f.jsonl", lines(GOOD | {"preferred": {"helpful": True}}), [1], "must be 0 or 1, not true"),
    ("f.jsonl", lines(GOOD | {"preferred": {"helpful": 0.5}}, GOOD | {"preferred": {}}), [1, 2], "must be 0 or 1"),
    ("f.jsonl", lines(SAFE, SAFE | {"safer_response_id": -1}), [2], "'safer_response_id' must be 0 or 1, not -1"),
    ("f.jsonl", lines(without(SAFE, "response_1")), [1], "'response_1' is missing"),
    ("f.jsonl", lines(HH, HH | {"chosen": "Hi. Yes."}), [2], "not a transcript that begins with"),
    ("f.jsonl", lines(HH, HH | {"rejected": "\n\nHuman: Ho\n\nAssistant: No"}), [2], "differ before the assistant's"),
    ("f.jsonl", lines(HH | {"chosen": "\n\nHuman: Hi"}), [1], "does not end with a turn of the assistant"),
    ("f.jsonl", lines(GOOD, CHOSEN, SAFE), [2, 3], "mixed formats: this row is chosen and rejected, f.jsonl:1 is"),
    ("f.jsonl", lines(GOOD | CHOSEN), [1], "a row has the fields of one format"),
    ("f.jsonl", lines(GOOD, b'{"prompt": "H\0i"}'), [2], "NUL"),
    ("f.jsonl", lines(GOOD | {"prompt": "H\0i"}), [1], "NUL"),
    ("f.jsonl", lines(GOOD, GOOD | {"prompt": "x" * (16 * 2**20)}, b"{"), [2, 3], "longer than 16 MiB"),
    ("f.jsonl", lines(GOOD, b'{"prompt": "\xe9t\xe9"}'), [2], "not UTF-8 text"),
    ("f.jsonl", lines(GOOD).decode().encode("utf-16"), [1], "UTF-16"),
    ("f.jsonl", lines(GOOD, b"[" * 100_000), [2], "nesting that is too large"),
    ("f.jsonl", lines(GOOD | {"prompt": "\ud800"}), [1], "surrogate"),
    ("f.json", b"[\n" + json.dumps(GOOD).encode() + b",\n{]", [3], "broken JSON"),
    ("f.jsonl.gz", gzip.compress(lines(GOOD, GOOD))[:-9], [2], "the compressed file is broken"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "bad", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_files_are_refused_with_file_and_line(
    run_cli: RunCli, tmp_path: Path, name: str, content: bytes, bad: list[int], reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    out = tmp_path / "out"
    for arguments in (
        ("data", "prepare", path, "--out", out),
        ("data", "relabel", path, "--reward", "brief=brevity", "--out", tmp_path / "out.jsonl"),
        ("train", "--model", "none", "--data", path, "--out", out),
    ):
        begin = time.process_time()
        code, stdout, err = run_cli(*arguments)
        assert time.process_time() - begin < 1 or arguments[0] == "train"
        assert (code, stdout) == (2, "")
        rows = [line.removeprefix("error: ").strip() for line in err.splitlines()]
        if len(bad) > 1:
            assert rows.pop(0) == f"{path}: {len(bad)} rows cannot be used"
        assert [row.partition(": ")[0] for row in rows] == [f"{name}:{line}" for line in bad]
        assert reason in rows[0]
    assert not out.exists()


def test_inspect_counts_bad_rows_and_goes_on(run_cli: RunCli, tmp_path: Path) -> None:
    """Two turns of the assistant at the end, as in a few transcripts of HH-RLHF."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(lines(HH, HH | {"chosen": HH["chosen"] + "\n\nAssistant: More"}, HH | {"rejected": 3}))
    code, out, err = run_cli("data", "inspect", path)
    assert (code, err) == (0, "")
    assert "train: 1 rows\n" in out
    assert "2 rows are left out: they cannot be used\n  f.jsonl:2: " in out
    bad = json.loads(run_cli("data", "inspect", path, "--json")[1])["bad_rows"]
    assert (bad["count"], [row.partition(": ")[0] for row in bad["first"]]) == (2, ["f.jsonl:2", "f.jsonl:3"])
    path.write_bytes(b"{\n")
    code, out, err = run_cli("data", "inspect", path)
    assert (code, out) == (2, "")
    assert err.startswith("error: f.jsonl:1: broken JSON")


def test_every_command_leaves_out_bad_rows_if_asked(run_cli: RunCli, tmp_path: Path, official: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(lines(*(GOOD | {"prompt": f"{i}", "responses": ["No", "I am glad"]} for i in range(4)), b"{"))
    model = ("--model", official / "arm_base", "--iters", 1, "--batch-size", 2)
    for arguments in (
        ("data", "prepare", path, "--out", tmp_path / "out"),
        ("data", "relabel", path, *REWARDS, "--out", tmp_path / "out.jsonl"),
        ("train", *model, "--data", path, "--out", tmp_path / "parm"),
    ):
        assert run_cli(*arguments)[0] == 2
        code, _, err = run_cli(*arguments, "--skip-bad")
        assert code == 0, err
        assert "1 rows are left out: they cannot be used\n  f.jsonl:5: broken JSON" in err


def test_bad_rows_of_every_folder_and_file_are_reported_together(run_cli: RunCli, tmp_path: Path) -> None:
    content = {
        "a/train.jsonl.gz": gzip.compress(lines(without(CHOSEN, "objective"), b"{")),
        "a/test.jsonl": lines(without(CHOSEN, "objective")),
        "b/train.jsonl": lines(HH, GOOD, HH | {"objective": 3}),
    }
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    prepared = ("data", "prepare", tmp_path, "--out", tmp_path / "out")
    for arguments in (prepared, ("train", "--model", "none", "--data", tmp_path, "--out", "x")):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, "")
        first, *rows = err.splitlines()
        assert first == f"error: {tmp_path}: 3 rows cannot be used"
        assert rows[0].startswith("  a/train.jsonl.gz:2: broken JSON")
        assert rows[1].startswith(
            "  b/train.jsonl:2: mixed formats: this row is responses and preferred, b/train.jsonl:1"
        )
        assert rows[2] == "  b/train.jsonl:3: 'objective' must be a text, not a number"


def test_rows_that_could_be_merged_are_checked_each(run_cli: RunCli, tmp_path: Path) -> None:
    """The bad label and the bad objective are on rows of a pair that is good elsewhere."""
    (tmp_path / "helpful.jsonl").write_bytes(lines(GOOD, GOOD | {"preferred": {"helpful": 2}}))
    (tmp_path / "kind.jsonl").write_bytes(lines(without(CHOSEN, "objective"), CHOSEN | {"objective": 3}))
    arguments = ("--objectives", "helpful,harmless,kind", "--out", tmp_path / "out")
    code, _, err = run_cli("data", "prepare", tmp_path, *arguments)
    assert code == 2
    assert [row.strip().partition(": ")[0] for row in err.splitlines()[1:]] == ["helpful.jsonl:2", "kind.jsonl:2"]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file(run_cli: RunCli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    assert run_cli("data", "inspect", path) == (2, "", "error: f.jsonl: the file is empty\n")


def test_a_folder_without_data_and_no_file_at_all(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    code, _, err = run_cli("data", "inspect", tmp_path)
    assert (code, err.startswith(f"error: data {tmp_path}: no .jsonl file")) == (2, True)
    assert run_cli("data", "inspect", tmp_path / "x")[2] == f"error: data {tmp_path / 'x'}: no such file or folder\n"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [GOOD, GOOD | {"preferred": {"helpful": 1, "harmless": 1}}, GOOD | {"responses": ["a", "a"]}]
    path.write_bytes(lines(*rows, *(GOOD | {"prompt": f"Question {i}"} for i in range(7))))
    return path


def test_inspect(run_cli: RunCli, pairs: Path) -> None:
    code, out, err = run_cli("data", "inspect", pairs)
    assert (code, err) == (0, "")
    assert out == (
        "pairs.jsonl: responses and preferred\n"
        "objectives: helpful, harmless\n"
        "helpful and harmless disagree in 7 of 7 pairs (100%)\n\n"
        "train: 10 rows\n"
        "  prompts          8 different; 2 rows repeat one\n"
        "  labels           helpful 10, harmless 10\n"
        "  equal responses  1\n"
        "  merged           1 rows are of the same pair as an earlier one\n"
        "  contradictions   helpful 1, harmless 0\n"
        "  pairs            helpful 7, harmless 8; 7 for several objectives\n"
        "  training         8 kept; 1 dropped: both responses are equal; "
        "1 dropped: merged with an earlier row of the same pair\n\n"
        "there is no valid split: training holds out a tenth of the prompts, at most 500\n"
    )


def test_inspect_with_a_model_as_json(run_cli: RunCli, pairs: Path, official: Path) -> None:
    arguments = ("data", "inspect", pairs, "--model", official / "arm_base", "--max-seq-length", "2", "--json")
    code, out, err = run_cli(*arguments)
    assert (code, err, out.count("\n")) == (0, "", 1)
    found = json.loads(out)
    (split,) = found["splits"]
    assert (split["kept"], split["dropped"]) == (
        0,
        {
            "both responses are equal": 1,
            "merged with an earlier row of the same pair": 1,
            "longer than the limit": 8,
        },
    )
    assert list(split["token_percentiles"]) == ["50", "90", "95", "99", "100"]
    longer = json.loads(run_cli(*arguments, "--chat-template", "alpaca")[1])["splits"][0]["token_percentiles"]
    assert all(longer[share] > tokens for share, tokens in split["token_percentiles"].items())


def test_inspect_shows_lengths_and_shared_prompts(run_cli: RunCli, tmp_path: Path, official: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(GOOD))
    code, out, _ = run_cli("data", "inspect", tmp_path, "--model", official / "arm_base")
    assert code == 0
    assert "(limit 1024)" in out
    assert "valid: 1 rows\n" in out
    assert "training         0 kept; 1 dropped: prompt is in train too" in out
    assert out.endswith("prompts shared: 1 by train and valid\n")


def test_prepare_and_train_on_it(run_cli: RunCli, pairs: Path, tmp_path: Path, official: Path) -> None:
    code, out, err = run_cli("data", "prepare", pairs, "--out", tmp_path / "out", "--skip-bad")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert "1 pairs are left out: both responses are equal" in err
    assert "labels of one pair that contradict each other are dropped: helpful (1)" in err
    code, _, err = run_cli("data", "prepare", pairs, "--out", tmp_path / "out")
    assert (code, "exists already" in err) == (2, True)
    model = ("--model", official / "arm_base", "--iters", 1, "--batch-size", 2)
    code, _, err = run_cli("train", *model, "--data", tmp_path / "out", "--out", tmp_path / "parm")
    assert code == 0, err


def test_prepare_says_which_rows_are_bad(run_cli: RunCli, pairs: Path, tmp_path: Path) -> None:
    with pairs.open("a") as file:
        file.write("{\n")
    code, _, err = run_cli("data", "prepare", pairs, "--out", tmp_path / "out", "--skip-bad")
    assert code == 0
    assert "1 rows are left out: they cannot be used\n  pairs.jsonl:11: broken JSON" in err


REWARDS = ("--reward", "brief=brevity", "--reward", "kind=warmth")


def test_relabel_and_train_on_it(run_cli: RunCli, tmp_path: Path, official: Path) -> None:
    """Words 1 and 3; warm expressions 0 and 1, in every fourth pair 0 and 0."""
    path, out = tmp_path / "f.jsonl", tmp_path / "out.jsonl"
    kind = ["I am glad", "I am glad", "I am glad", "I am here"]
    path.write_bytes(
        lines(
            *(GOOD | {"prompt": f"{i}", "responses": ["No", kind[i % 4]]} for i in range(8)),
            GOOD | {"responses": ["a", "a"]},
        )
    )
    code, stdout, err = run_cli("data", "relabel", path, *REWARDS, "--min-margin", "brief=2", "--out", out)
    assert (code, stdout) == (0, f"{out}\n"), err
    assert err == (
        "9 rows read, 8 pairs relabelled\n"
        "left out: 1 rows have two equal responses\n"
        "brief: 8 labels, 0 ties, 0 below the smallest margin\n"
        "kind: 6 labels, 2 ties, 0 below the smallest margin\n"
        "brief and kind disagree in 6 of 6 pairs (100%)\n"
    )
    assert json.loads(out.read_text().splitlines()[0]) == {
        "prompt": "0",
        "responses": ["No", "I am glad"],
        "preferred": {"brief": 0, "kind": 1},
        "margins": {"brief": 2.0, "kind": 1.0},
    }
    assert run_cli("data", "inspect", out)[0] == 0
    model = ("--model", official / "arm_base", "--iters", 1, "--batch-size", 2)
    assert run_cli("train", *model, "--data", out, "--out", tmp_path / "parm")[0] == 0


def test_relabel_counts_what_it_leaves_out(run_cli: RunCli, pairs: Path, tmp_path: Path) -> None:
    """Yes and No, all of one word: neither label nor margin."""
    code, stdout, err = run_cli("data", "relabel", pairs, *REWARDS, "--out", tmp_path / "out.jsonl")
    assert (code, stdout, err.count("\n")) == (2, "", 1)
    assert "no pair gets a label: of 10 rows 1 have equal responses, 8 are ties or below" in err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--min-margin", "x=1"), "min-margin x=1: no reward is called 'x'; there are brief, kind"),
        (("--min-margin", "much"), "a margin must be a finite number ≥ 0, got 'much'"),
        (("--reward", "bad"), "bad"),
        (("--out", "out.txt"), "must end with .jsonl"),
    ],
)
def test_relabel_refuses_wrong_usage_in_one_line(
    run_cli: RunCli, pairs: Path, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    code, stdout, err = run_cli("data", "relabel", pairs, *REWARDS, "--out", tmp_path / "out.jsonl", *arguments)
    assert (code, stdout) == (2, "")
    assert err.startswith("error: ")
    assert reason in err.splitlines()[0]
    assert "Traceback" not in err
    code, _, err = run_cli("data", "relabel", tmp_path / "none.jsonl", *REWARDS, "--out", tmp_path / "out.jsonl")
    assert (code, err) == (2, f"error: data {tmp_path / 'none.jsonl'}: no such file or folder\n")


def test_the_group_shows_its_help(run_cli: RunCli) -> None:
    assert run_cli("data") == run_cli("data", "--help")
    for command in ("inspect", "prepare", "relabel", "sample"):
        assert f"parm-mlx data {command}" in run_cli("data", command, "--help")[1]


def test_tokens_without_a_row_are_refused_before_training(run_cli: RunCli, tmp_path: Path, official: Path) -> None:
    """A token that was added to the tokenizer alone, which the chat template puts into one of two prompts."""
    model = Path(shutil.copytree(official / "arm_base", tmp_path / "model"))
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    added = {"id": 512, "content": "<gap>", "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append(added)
    (model / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (model / "chat_template.jinja").write_text("{{ '<gap>' if 'two' in messages[0].content }}{{ messages[0].content }}")
    rows = [{"prompt": prompt, "responses": ["yes", "<gap>"], "preferred": {"x": 0}} for prompt in ("one", "two")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    expected = "pairs.jsonl:2: token '<gap>' (id 512); the model has embeddings for ids below 512 only"
    inspected = run_cli("data", "inspect", tmp_path / "pairs.jsonl", "--model", model)
    trained = run_cli(
        *("train", "--model", model, "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "out", "--iters", 1),
        *("--val-batches", 0),
    )
    assert (inspected[0], expected in inspected[1]) == (0, True)
    assert (trained[0], trained[1], expected in trained[2]) == (2, "", True)
    assert not (tmp_path / "out").exists()


def test_sample_says_what_it_made(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a scorer in a file of the user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_scorer.py").write_text(
        "def commas(prompts, answers):\n    return [a.count(',') for a in answers]\n"
    )
    (tmp_path / "questions.txt").write_text("How can I sleep better?\nWhat is good for a cough?\n")
    rewards = ("--reward", "commas=own_scorer:commas", "--reward", "detail=detail")
    command = ("data", "sample", "--model", "bundled", "--prompts", "questions.txt", *rewards, "--out", "samples")
    settings = ("--num-samples", "4", "--max-tokens", "48", "--even-length", "1", "--pairs", "all")
    code, out, err = run_cli(*command, *settings)
    assert (code, out) == (0, "samples/pairs.jsonl\n")
    lines = err.splitlines()
    assert lines[0].startswith("8 answers to 2 prompts; ")
    assert [line.split()[0] for line in lines[1:5]] == ["mean", "commas", "detail", "length"]
    assert any(line.startswith("correlation within prompts of commas and detail: ") for line in lines)
    code, out, _ = run_cli(*command, *settings, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["pairs"] == len((tmp_path / "samples" / "pairs.jsonl").read_text().splitlines())
    assert found["correlation"][0]["of"] == ["commas", "detail"]
    code, _, err = run_cli(
        "train", "--model", "bundled", "--data", "samples/pairs.jsonl", "--iters", "1", "--out", "parm"
    )
    assert code == 0, err


def test_sample_refuses_wrong_usage_in_one_line(run_cli: RunCli, tmp_path: Path) -> None:
    base = ("data", "sample", "--model", "bundled", "--reward", "warmth=warmth", "--out", tmp_path / "out")
    for wrong, reason in (
        ((), "prompts are missing"),
        (("--magpie", "2", "--num-samples", "1"), "a pair needs two answers to a prompt"),
        (("--magpie", "2", "--temp", "0"), "temperature above 0"),
        (("--magpie", "2", "--min-margin", "xsd"), "a margin must be a finite number"),
    ):
        code, out, err = run_cli(*base, *wrong)
        assert (code, out) == (2, "")
        assert reason in err
    assert not (tmp_path / "out").exists()
