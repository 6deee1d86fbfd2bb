import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.data import relabel as relabel_module
from parm_mlx.data.dataset import load_data
from parm_mlx.data.pairs import Problems
from parm_mlx.data.prepare import prepare
from parm_mlx.data.relabel import Relabelled, parse_min_margins, relabel
from parm_mlx.errors import ConfigError, DataError, OutputError, PreferenceError, RunError
from parm_mlx.rewards.builtin import SCORERS

Write = Callable[..., Path]


def length(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [float(len(answer)) for answer in answers]


def vowels(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return [float(sum(answer.count(vowel) for vowel in "aeiou")) for answer in answers]


REWARDS = {"long": length, "vowels": vowels}


def pair(prompt: Any, first: str, second: str) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [first, second], "preferred": {"old": 0}}


ROWS = [
    pair("1", "aa", "bbbb"),  # long by 2, vowels by 2 the other way
    pair("2", "a", "bbbb"),  # long by 3, vowels by 1 the other way
    pair("3", "aab", "bbb"),  # a tie of long; vowels by 2
    pair("4", "a", "e"),  # a tie of both
    pair("5", "same", "same"),
    pair("1", "bbbb", "aa"),  # the first pair again
    pair("6", "aaa", "a"),  # both prefer the first, by 2
]


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_labels_margins_and_counts_by_hand(write_rows: Write, tmp_path: Path) -> None:
    done = relabel(write_rows(ROWS), REWARDS, tmp_path / "out.jsonl")
    rows = written(tmp_path / "out.jsonl")
    assert rows[0] == {
        "prompt": "1",
        "responses": ["aa", "bbbb"],
        "preferred": {"long": 1, "vowels": 0},
        "margins": {"long": 2.0, "vowels": 2.0},
    }
    assert [(row["prompt"], row["preferred"], row["margins"]) for row in rows[1:]] == [
        ("2", {"long": 1, "vowels": 0}, {"long": 3.0, "vowels": 1.0}),
        ("3", {"vowels": 0}, {"vowels": 2.0}),
        ("6", {"long": 0, "vowels": 0}, {"long": 2.0, "vowels": 2.0}),
    ]
    assert done == Relabelled(
        rows=7,
        equal=1,
        repeated=1,
        written=4,
        dropped=1,
        labels={"long": 3, "vowels": 4},
        ties={"long": 2, "vowels": 1},
        near_ties={"long": 0, "vowels": 0},
        disagreement={("long", "vowels"): (3, 2)},
        bad=Problems(),
    )


def test_pairs_below_the_smallest_margin_are_not_labelled(write_rows: Write, tmp_path: Path) -> None:
    done = relabel(write_rows(ROWS), REWARDS, tmp_path / "out.jsonl", min_margin={"long": 2.5, "vowels": 2})
    labels = [(row["prompt"], row["preferred"]) for row in written(tmp_path / "out.jsonl")]
    assert labels == [("1", {"vowels": 0}), ("2", {"long": 1}), ("3", {"vowels": 0}), ("6", {"vowels": 0})]
    assert (done.labels, done.ties) == ({"long": 1, "vowels": 3}, {"long": 2, "vowels": 1})
    assert (done.near_ties, done.disagreement) == ({"long": 2, "vowels": 1}, {("long", "vowels"): (0, 0)})


def test_the_smallest_margins_of_some_or_all() -> None:
    assert parse_min_margins([], ["a", "b"]) == {"a": 0, "b": 0}
    assert parse_min_margins(["a=2", "0.5"], ["a", "b", "c"]) == {"a": 2, "b": 0.5, "c": 0.5}


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        (["much"], "min-margin much: a margin must be a finite number ≥ 0, got 'much'"),
        (["a=-1"], "got '-1'"),
        (["nan"], "got 'nan'"),
        (["c=1"], "min-margin c=1: no reward is called 'c'; there are a, b"),
        (["a=1", "a=2"], "min-margin a=2: a margin of a is given already"),
        (["1", "2"], "min-margin 2: a margin for all is given already"),
    ],
)
def test_margins_that_cannot_be(specs: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_min_margins(specs, ["a", "b"])
    assert reason in str(caught.value)


def test_chunks_make_no_difference(write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        sizes.append(len(answers))
        return length(prompts, answers)

    source = write_rows(ROWS)
    whole = relabel(source, REWARDS, tmp_path / "whole.jsonl")
    monkeypatch.setattr(relabel_module, "CHUNK", 2)
    assert relabel(source, REWARDS | {"long": counted}, tmp_path / "parts.jsonl") == whole
    assert sizes == [4, 4, 2]
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_progress_counts_the_pairs_to_score(write_rows: Write, tmp_path: Path) -> None:
    seen = []

    def progress(items: Any, total: int | None, label: str) -> Any:
        seen.append((total, label))
        return items

    relabel(write_rows(ROWS), REWARDS, tmp_path / "out.jsonl", progress=progress)
    assert seen == [(None, "rows"), (5, "pairs scored")]


HH = {"chosen": "\n\nHuman: Q\n\nAssistant: aa", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
SAFE = {"prompt": "Q", "response_0": "b", "response_1": "aa", "better_response_id": 0, "safer_response_id": 1}


@pytest.mark.parametrize(
    ("row", "prompt", "preferred"),
    [
        ({"prompt": "Q", "chosen": "b", "rejected": "aa"}, "Q", 1),
        (HH, [{"role": "user", "content": "Q"}], 0),
        (SAFE, "Q", 1),
    ],
    ids=["chosen", "hh", "safe-rlhf"],
)
def test_every_format_without_a_word_on_what_it_judges(
    write_rows: Write, tmp_path: Path, row: Any, prompt: Any, preferred: int
) -> None:
    """The name train.jsonl tells no objective, and none is needed; the reward gets the prompt as it is."""
    seen = []

    def reward(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        seen.extend(prompts)
        return length(prompts, answers)

    relabel(write_rows([row], "data/train.jsonl").parent, {"long": reward}, tmp_path / "out.jsonl")
    (found,) = written(tmp_path / "out.jsonl")
    assert (found["prompt"], found["preferred"], found["margins"]) == (prompt, {"long": preferred}, {"long": 1})
    assert seen == [prompt, prompt]


def test_splits_and_files_per_objective_are_put_together(write_rows: Write, tmp_path: Path) -> None:
    write_rows(ROWS[:2], "data/train.jsonl")
    folder = write_rows(ROWS[2:], "data/valid.jsonl").parent
    done = relabel(folder, REWARDS, tmp_path / "out.jsonl")
    assert (done.rows, done.repeated, done.written) == (7, 1, 4)


def test_the_result_is_training_data_whose_margins_prepare_keeps(
    write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out.jsonl"
    relabel(write_rows(rows), {"brief": lambda _, a: [SCORERS["brevity"](text) / 7 for text in a]}, out)
    relabelled = {(row["prompt"], *row["responses"]): row for row in written(out)}
    assert len(relabelled) == 24
    assert load_data(out).objectives == ("brief",)
    prepare(out, tmp_path / "prepared")
    again = [row for file in (tmp_path / "prepared").glob("*.jsonl") for row in written(file)]
    assert {(row["prompt"], *row["responses"]): row for row in again} == relabelled


def test_bad_rows_are_reported_together_or_left_out(write_rows: Write, tmp_path: Path) -> None:
    path, out = write_rows([ROWS[0], "{", ROWS[1] | {"responses": ["a"]}]), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"2 rows cannot be used\n  pairs.jsonl:2: broken JSON.*\n  pairs.jsonl:3: "):
        relabel(path, REWARDS, out)
    done = relabel(path, REWARDS, out, skip_bad=True)
    assert (done.rows, done.written, done.bad.count) == (1, 1, 2)


def test_no_label_at_all_is_an_error_and_leaves_no_file(write_rows: Write, tmp_path: Path) -> None:
    source = write_rows(ROWS[3:5])
    with pytest.raises(DataError, match="no pair gets a label: of 2 rows 1 have equal responses, 1 are ties"):
        relabel(source, REWARDS, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_it_is_written_whole_or_not_at_all(write_rows: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        calls.append(answers)
        if len(calls) == 2:
            raise RunError("the reward has failed")
        return length(prompts, answers)

    source, out = write_rows(ROWS), tmp_path / "out.jsonl"
    relabel(source, {"long": length}, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        relabel(source, REWARDS, out)
    monkeypatch.setattr(relabel_module, "CHUNK", 2)
    with pytest.raises(RunError, match="the reward has failed"):
        relabel(source, {"long": failing}, tmp_path / "other.jsonl")
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


@pytest.mark.parametrize(
    ("out", "error", "reason"),
    [
        ("pairs.txt", OutputError, "pairs.txt: the name of the file must end with .jsonl"),
        ("folder.jsonl", OutputError, "folder.jsonl exists already"),
        ("pairs.jsonl/out.jsonl", OutputError, "is not a writable directory"),
    ],
)
def test_outputs_that_cannot_be(
    write_rows: Write, tmp_path: Path, out: str, error: type[Exception], reason: str
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(error) as caught:
        relabel(write_rows(ROWS), REWARDS, tmp_path / out)
    assert reason in str(caught.value)


def test_a_reward_needs_the_name_of_an_objective(write_rows: Write, tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match="must not hold '=' or ','"):
        relabel(write_rows(ROWS), {"a,b": length}, tmp_path / "out.jsonl")
