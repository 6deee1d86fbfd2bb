import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parm_mlx.data.dataset import count_labels, disagreement, held_out, load_data, merge
from parm_mlx.data.pairs import Pair
from parm_mlx.errors import DataError

Write = Callable[..., Path]


def single(i: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Question {i}", "chosen": "good", "rejected": "bad", **fields}


def test_a_file_is_split_by_prompt(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    path = write_rows(rows)
    data = load_data(path)
    assert data.objectives == ("long", "short")
    assert len(data.train) == 22
    assert len(data.valid) == 2  # one of twelve prompts, with both its pairs
    assert not {p.prompt for p in data.train} & {p.prompt for p in data.valid}
    assert data.files[0].name == "pairs.jsonl"
    assert data.files[0].identity == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert data.files[0].pairs == 24
    assert "long (22), short (22)" in data.notes[0]


@given(prompts=st.lists(st.integers(0, 30), min_size=1, max_size=80), seed=st.integers(0, 5))
def test_no_prompt_is_ever_on_both_sides(prompts: list[int], seed: int) -> None:
    held = held_out(prompts, seed)
    assert not {*compress(prompts, held)} & {*compress(prompts, map(not_, held))}
    assert not all(held)
    assert any(held) == (len(set(prompts)) > 1)


@pytest.mark.parametrize(("seed", "expected"), [*enumerate([[9, 21], [8, 20], [2, 14], [11, 23]])])
def test_the_split_of_a_seed_never_changes(seed: int, expected: list[int]) -> None:
    """Twelve prompts, named against the order in which they first appear."""
    held = held_out([99 - i % 12 for i in range(24)], seed)
    assert [i for i, out in enumerate(held) if out] == expected


def test_the_seed_decides_the_split(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    path = write_rows(rows)
    splits = {tuple(p.where for p in load_data(path, seed=seed).valid) for seed in range(8)}
    assert len(splits) > 1
    assert list(load_data(path, seed=3).valid) == list(load_data(path, seed=3).valid)


def test_without_hold_out_everything_trains(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    data = load_data(write_rows(rows), hold_out=False)
    assert (len(data.train), len(data.valid), len(data.notes)) == (24, 0, 1)


def test_one_prompt_cannot_be_held_out(write_rows: Write) -> None:
    data = load_data(write_rows([single(1, objective="x"), single(1, objective="y", chosen="fine")]))
    assert (len(data.train), len(data.valid)) == (2, 0)
    assert "too few prompts" in data.notes[-1]


def test_given_objectives_fix_the_order(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    assert load_data(write_rows(rows), objectives=["short", "long"]).objectives == ("short", "long")


def test_objectives_that_are_not_named_are_left_out_and_counted(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    for i in (0, 6, 7):
        del rows[i]["preferred"]["long"]
    data = load_data(write_rows(rows), objectives=["long"])
    assert data.objectives == ("long",)
    assert len(data.train) + len(data.valid) == 21
    assert all(pair.preferred.keys() == {"long"} for pair in [*data.train, *data.valid])
    assert data.notes[1:] == ("labels of short are not used", "3 pairs are left out: they have no label for long")
    assert data.files[0].pairs == 24


def test_an_objective_that_is_not_in_the_data_is_unknown(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    path = write_rows(rows)
    with pytest.raises(DataError) as caught:
        load_data(path, objectives=["lnog", "short"])
    meant = "did you mean 'long'?"
    assert str(caught.value) == f"data {path}: unknown objective 'lnog' ({meant}); the data has long, short"


def test_every_bad_row_is_counted_in_one_error(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    for i in range(0, 24, 2):
        lines[i] = lines[i][:-1]
    path = write_rows(lines)
    with pytest.raises(DataError) as caught:
        load_data(path)
    message = str(caught.value).splitlines()
    assert message[0] == f"{path}: 12 rows cannot be used"
    assert [line.split(":")[1] for line in message[1:]] == [str(i) for i in range(1, 25, 2)]


def test_pairs_of_equal_responses_are_left_out_and_counted(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    rows[3]["responses"] = ["same", "same"]
    data = load_data(write_rows(rows))
    assert (len(data.train) + len(data.valid), data.files[0].pairs) == (23, 24)
    assert data.notes[1] == "1 pairs are left out: both responses are equal"


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"pairs\.jsonl: the file is empty"):
        load_data(path)


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no \.jsonl file"):
        load_data(tmp_path)


def test_train_and_valid_files(write_rows: Write) -> None:
    write_rows([single(i, objective="x") for i in range(5)], "d/train.jsonl")
    path = write_rows([single(i, objective="x") for i in range(3, 9)], "d/valid.jsonl")
    write_rows(["not read"], "d/test.jsonl")
    data = load_data(path.parent)
    assert [p.where for p in data.train] == [f"train.jsonl:{i}" for i in range(1, 6)]
    assert [p.prompt for p in data.valid] == ["Question 5", "Question 6", "Question 7", "Question 8"]
    assert "2 pairs to validate are left out" in data.notes[1]
    assert [file.name for file in data.files] == ["train.jsonl", "valid.jsonl"]


def test_a_valid_file_of_trained_prompts_only(write_rows: Write) -> None:
    write_rows([single(1, objective="x")], "d/train.jsonl")
    path = write_rows([single(1, objective="x")], "d/valid.jsonl")
    with pytest.raises(DataError, match="every prompt"):
        load_data(path.parent)


def test_an_objective_that_only_validates_is_unknown(write_rows: Write) -> None:
    write_rows([single(1, objective="x")], "d/train.jsonl")
    path = write_rows([single(2, objective="y")], "d/valid.jsonl")
    with pytest.raises(DataError, match=r"valid\.jsonl:1: unknown objective 'y'"):
        load_data(path.parent)


def test_one_file_per_objective(write_rows: Write) -> None:
    write_rows([single(i) for i in range(20)], "d/helpful.jsonl")
    path = write_rows([single(i) for i in range(10, 30)], "d/harmless.jsonl")
    data = load_data(path.parent)
    assert data.objectives == ("harmless", "helpful")
    assert len(data.train) + len(data.valid) == 30
    assert {p.where.split(":")[0] for p in data.train} == {"harmless.jsonl", "helpful.jsonl"}
    assert data.notes[1] == "10 rows are of the same pair as an earlier row and merged with it"
    assert not {p.prompt for p in data.train} & {p.prompt for p in data.valid}
    assert load_data(path.parent, objectives=["helpful", "harmless"]).objectives == ("helpful", "harmless")
    alone = load_data(path.parent, objectives=["helpful"], hold_out=False)
    assert [pair.preferred for pair in alone.train] == [{"helpful": 0}] * 20
    for wrong in (["helpfull"], ["helpfull", "harmles"]):  # a name of neither file labels none of them
        with pytest.raises(DataError, match="unknown objective 'helpfull'"):
            load_data(path.parent, objectives=wrong)


def test_what_is_said_twice_in_a_row_is_refused(tmp_path: Path) -> None:
    row = '{"prompt": "Q", "responses": ["a", "b"], "preferred": %s}'
    for labels, reason in (
        ('{"helpful": 0, "helpful": 1}', "'helpful' is there twice"),
        ('{"helpful": 0, "helpful ": 1}', "'preferred' names an objective twice"),
    ):
        for name, text in (("rows.jsonl", row % labels), ("rows.json", f"[{row % labels}]")):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match=reason):
                load_data(tmp_path / name)


def test_splits_and_objectives_do_not_mix(write_rows: Write) -> None:
    write_rows([single(1)], "d/helpful.jsonl")
    path = write_rows([single(2, objective="helpful")], "d/train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl beside helpful\.jsonl"):
        load_data(path.parent)


def test_compressed_files_and_lists_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "helpful.jsonl.gz").write_bytes(gzip.compress(json.dumps(single(1)).encode()))
    (tmp_path / "harmless.json").write_text(json.dumps([single(2), single(3)]))
    (tmp_path / "._harmless.json").write_text("not data")
    assert load_data(tmp_path, hold_out=False).objectives == ("harmless", "helpful")
    (tmp_path / "helpful.json").write_text("[]")
    with pytest.raises(DataError, match=r"both helpful\.json and helpful\.jsonl\.gz; keep one of them"):
        load_data(tmp_path)


def test_valid_without_train(write_rows: Write) -> None:
    path = write_rows([single(1)], "d/valid.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl is missing"):
        load_data(path.parent)


def test_what_a_chosen_rejected_row_judges(write_rows: Write) -> None:
    """The field decides, then the file's name, or the only objective that was asked for."""
    path = write_rows([single(1), single(2, objective="kind")], "helpful.jsonl")
    assert load_data(path).objectives == ("helpful", "kind")
    assert load_data(write_rows([single(1)]), objectives=["kind"]).objectives == ("kind",)
    with pytest.raises(DataError, match="'objective' is missing, and the file name does not tell it"):
        load_data(write_rows([single(1)]), objectives=["kind", "helpful"])


def test_a_pair_of_several_files_is_one_pair_with_all_labels(write_rows: Write) -> None:
    """helpful prefers "a", harmless "b": whichever order the rows have them in, one pair says so."""
    write_rows([{"prompt": "Q", "chosen": "a", "rejected": "b"}], "d/helpful.jsonl")
    write_rows([{"prompt": "Q", "chosen": "b", "rejected": "a"}], "d/harmless.jsonl")
    rows = [{"prompt": [{"role": "user", "content": "Q"}], "chosen": "a", "rejected": "b", "objective": "helpful"}]
    path = write_rows([*rows, single(1, objective="kind")], "d/more.jsonl")
    data = load_data(path.parent, hold_out=False)
    merged, other = data.train
    assert (merged.where, merged.responses) == ("harmless.jsonl:1", ("b", "a"))
    assert merged.preferred == {"harmless": 0, "helpful": 1}
    assert other.preferred == {"kind": 0}
    assert count_labels(data.train, data.objectives) == {"harmless": 1, "helpful": 1, "kind": 1}
    assert data.notes[1] == "2 rows are of the same pair as an earlier row and merged with it"


def test_labels_that_contradict_each_other_are_dropped(write_rows: Write) -> None:
    """Pair 1: x against x, y stays. Pair 2: nothing is left. Pair 3: said twice."""
    both = {"responses": ["a", "b"]}
    rows = [
        {"prompt": "1", **both, "preferred": {"x": 0, "y": 1}},
        {"prompt": "1", "responses": ["b", "a"], "preferred": {"x": 0}},
        {"prompt": "2", **both, "preferred": {"x": 0}},
        {"prompt": "2", **both, "preferred": {"x": 1}},
        {"prompt": "2", **both, "preferred": {"x": 1}},
        {"prompt": "3", **both, "preferred": {"x": 1}},
        {"prompt": "3", **both, "preferred": {"x": 1}},
    ]
    data = load_data(write_rows(rows), hold_out=False)
    assert [(p.where, p.preferred) for p in data.train] == [("pairs.jsonl:1", {"y": 1}), ("pairs.jsonl:6", {"x": 1})]
    assert data.notes[1:] == (
        "4 rows are of the same pair as an earlier row and merged with it",
        "labels of one pair that contradict each other are dropped: x (2)",
    )


def test_bad_rows_are_left_out_if_asked_and_counted(write_rows: Write, rows: list[dict[str, Any]]) -> None:
    path = write_rows([*rows, "{"])
    data = load_data(path, skip_bad=True)
    assert (len(data.train), len(data.valid), data.files[0].pairs) == (22, 2, 24)
    assert data.notes[-1].startswith("1 rows are left out: they cannot be used\n  pairs.jsonl:25: broken JSON")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: broken JSON"):
        load_data(write_rows(["{"]), skip_bad=True)


def pair(prompt: str, first: str, second: str, **preferred: int) -> Pair:
    return Pair(prompt, (first, second), preferred, "f:1")


def test_the_order_of_the_responses_does_not_matter() -> None:
    merged = merge([pair("1", "a", "b", x=0), pair("2", "a", "b", x=1), pair("1", "b", "a", y=0)], ["x", "y"])
    assert (merged.first, merged.counts.merged) == ([0, 1], 1)
    assert [each.preferred for each in merged.labelled] == [{"x": 0, "y": 1}, {"x": 1}]


def test_labels_that_contradict_each_other_and_labels_that_agree() -> None:
    rows = [pair("1", "a", "b", x=0), pair("1", "b", "a", x=1), pair("2", "a", "b", x=0), pair("2", "a", "b", x=1)]
    merged = merge(rows, ["x"])
    assert [each.prompt for each in merged.labelled] == ["1"]
    assert (merged.counts.contradictions, merged.counts.contradicted, merged.counts.unjudged) == ({"x": 1}, 1, 0)
    assert (merge(rows, ["y"]).counts.contradicted, merge(rows, ["y"]).counts.unjudged) == (0, 2)


def test_margins_follow_the_labels_of_a_merged_pair() -> None:
    """The first margin of a label counts, in either order of the responses; contradicted labels have none."""
    rows = [
        replace(pair("1", "a", "b", x=0, y=1), margins={"y": 0.5}),
        replace(pair("1", "b", "a", x=1), margins={"x": 2.0}),
        replace(pair("1", "a", "b", x=0), margins={"x": 3.0}),
        replace(pair("2", "a", "b", x=0, y=0), margins={"x": 1.0, "y": 4.0}),
        replace(pair("2", "a", "b", x=1), margins={"x": 1.0}),
    ]
    assert [each.margins for each in merge(rows, ["y", "x"]).labelled] == [{"y": 0.5, "x": 2.0}, {"y": 4.0}]
    assert merge(rows, ["x"]).labelled[0].margins == {"x": 2.0}


def test_equal_responses_are_no_pair() -> None:
    merged = merge([pair("1", "a", "a", x=0), pair("1", "a", "a", x=1)], ["x"])
    assert (merged.counts.equal, merged.counts.merged, merged.different) == (2, 0, [])
    assert merge([], ["x"]).labelled == []


def test_notes_are_about_what_happened() -> None:
    counts = merge([pair("1", "a", "b", x=0)], ["x"]).counts
    assert counts.notes() == []
    both = counts + merge([pair("1", "a", "a"), pair("2", "a", "b", x=0), pair("2", "b", "a", x=0)], ["x"]).counts
    assert (both.equal, both.merged, both.contradictions) == (1, 1, {"x": 1})
    assert len(both.notes()) == 3


def test_how_often_objectives_disagree() -> None:
    pairs = [pair("1", "a", "b", x=0, y=1), pair("2", "a", "b", x=0, y=0), pair("3", "a", "b", x=0, z=1)]
    assert disagreement(pairs, ["x", "y", "z"]) == {("x", "y"): (2, 1), ("x", "z"): (1, 1), ("y", "z"): (0, 0)}


def test_folders_per_objective_with_splits(write_rows: Write) -> None:
    for name, first in (("helpful-base", 0), ("harmless-base", 4)):
        write_rows([single(i) for i in range(first, first + 6)], f"d/{name}/train.jsonl")
        path = write_rows([single(99)], f"d/{name}/test.jsonl")
    data = load_data(path.parent.parent)
    assert data.objectives == ("harmless-base", "helpful-base")
    assert [file.name for file in data.files] == ["harmless-base/train.jsonl", "helpful-base/train.jsonl"]
    assert len(data.train) + len(data.valid) == 10
    assert {p.prompt for p in data.train if len(p.preferred) == 2} <= {"Question 4", "Question 5"}
    write_rows([single(1), single(50)], "d/helpful-base/valid.jsonl")
    data = load_data(path.parent.parent)
    assert [(p.where, p.preferred) for p in data.valid] == [("helpful-base/valid.jsonl:2", {"helpful-base": 0})]
    assert data.notes[-1] == "no pair to validate is labelled for harmless-base"


def test_a_text_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("How do I bake bread?\n" * 30)
    with pytest.raises(DataError, match="is a text, and pairs are JSON lines") as caught:
        load_data(str(tmp_path / "questions.txt"))
    assert "\n" not in str(caught.value)
