from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.data.dataset import load_data
from parm_mlx.data.inspect import (
    CONTRADICTED,
    EQUAL,
    MERGED,
    SHARED,
    TOO_LONG,
    UNJUDGED,
    UNUSED,
    inspect_data,
    percentiles,
)
from parm_mlx.data.tokenize import tokenize_pairs
from parm_mlx.errors import DataError
from parm_mlx.guidance.loading import load_base

Write = Callable[..., Path]


def row(prompt: Any, first: str, second: str, **preferred: int) -> dict[str, Any]:
    return {"prompt": prompt, "responses": [first, second], "preferred": preferred}


@pytest.fixture
def folder(write_rows: Write) -> Path:
    train = [
        row("Q1", "a long answer", "no", long=0, short=1),
        row([{"role": "user", "content": "Q1 "}], "longer", "no", long=0, short=0),
        row("Q2", "same", "same", long=0),
        row("Q3", "word " * 50, "no", long=0, short=1),
        row("Q4", "yes!", "no", short=0),
    ]
    write_rows(train, "d/train.jsonl")
    write_rows([row("Q1", "x", "y", long=1), row("Q5", "x", "y", long=1)], "d/valid.jsonl")
    return write_rows([row("Q5", "x", "y", other=1), row("Q3", "x", "y", long=1)], "d/test.jsonl").parent


def test_what_is_in_the_data_and_what_training_keeps(folder: Path, official: Path) -> None:
    found = inspect_data(folder, tokenizer=load_base(official / "arm_base")[1], max_length=64)
    train, valid, test = found["splits"]
    assert found["objectives"] == ["long", "short"]
    assert found["files"] == {f"{name}.jsonl": "responses and preferred" for name in ("train", "valid", "test")}
    assert (train["rows"], train["prompts"], train["equal_responses"]) == (5, 4, 1)
    assert train["labels"] == {"long": 4, "short": 4}
    assert found["disagreement"] == [{"objectives": ["long", "short"], "judged_by_both": 3, "differ": 2}]
    assert (train["kept"], train["dropped"]) == (3, {EQUAL: 1, TOO_LONG: 1})
    assert (valid["kept"], valid["dropped"]) == (1, {SHARED: 1})
    assert (test["kept"], test["dropped"]) == (0, {UNUSED: 2})
    both = (["train", "valid"], ["train", "test"], ["valid", "test"])
    assert found["shared_prompts"] == [{"splits": splits, "prompts": 1} for splits in both]


@pytest.mark.parametrize("template", [None, "alpaca"])
def test_it_keeps_what_training_keeps(folder: Path, official: Path, template: str | None) -> None:
    tokenizer = load_base(official / "arm_base")[1]
    found = inspect_data(folder, tokenizer=tokenizer, max_length=100, chat_template=template)
    data = load_data(folder)
    for split, pairs in zip(found["splits"], (data.train, data.valid), strict=False):
        kept, _ = tokenize_pairs(tokenizer, pairs, data.objectives, 100, template)
        assert split["kept"] == len(kept)
        assert max(len(pair) for pair in kept) <= split["token_percentiles"]["100"]


def test_one_objective_of_several(folder: Path) -> None:
    """Q4 is not judged for long, nor is a row of test; labels of short and other do not count."""
    found, data = inspect_data(folder, objectives=["long"]), load_data(folder, objectives=["long"])
    train, _, test = found["splits"]
    assert (found["objectives"], train["labels"], found["disagreement"]) == (["long"], {"long": 4}, [])
    assert train["dropped"] == {UNJUDGED: 1, EQUAL: 1}
    assert train["kept"] == len(data.train)
    assert test["dropped"] == {UNUSED: 2}


def test_percentiles_are_lengths_that_occur(write_rows: Write) -> None:
    """Of 20 rows with 1 … 20 tokens, half have at most 10, nine tenths at most 18, and so on."""
    assert percentiles(range(20, 0, -1)) == {"50": 10, "90": 18, "95": 19, "99": 20, "100": 20}
    found = inspect_data(write_rows([row("Q", "a", "b", x=0)]))
    assert found["splits"][0]["token_percentiles"] == {}


def test_one_file_per_objective(write_rows: Write) -> None:
    write_rows([{"prompt": "Q", "chosen": "a", "rejected": "b"}], "d/helpful.jsonl")
    path = write_rows([{"prompt": "Q", "chosen": "b", "rejected": "a"}], "d/harmless.jsonl")
    found = inspect_data(path.parent)
    (split,) = found["splits"]
    assert found["objectives"] == ["harmless", "helpful"]
    assert (split["name"], split["rows"], split["dropped"]) == ("train", 2, {MERGED: 1})
    assert found["disagreement"] == [{"objectives": ["harmless", "helpful"], "judged_by_both": 1, "differ": 1}]
    assert (split["pairs"], split["pairs_of_several_objectives"]) == ({"harmless": 1, "helpful": 1}, 1)
    assert inspect_data(path.parent, objectives=["helpful", "harmless"])["objectives"] == ["helpful", "harmless"]


def test_bad_rows_are_counted_and_the_others_inspected(write_rows: Write, official: Path) -> None:
    path = write_rows(["{", row("Q", "a", "b", x=0), row([{"role": "system", "content": "S"}], "a", "b", x=0)])
    tokenizer = load_base(official / "arm_base")[1]
    found = inspect_data(path, tokenizer=tokenizer, max_length=64, chat_template="beaver")
    assert (found["splits"][0]["rows"], found["bad_rows"]["count"]) == (1, 2)
    assert [line.partition(": ")[0] for line in found["bad_rows"]["first"]] == ["pairs.jsonl:1", "pairs.jsonl:3"]
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: broken"):
        inspect_data(write_rows(["{"]))
    with pytest.raises(DataError, match="unknown objective 'y'; the data has x"):
        inspect_data(write_rows([row("Q", "a", "b", x=0)]), objectives=["y"])


def test_contradictions_and_merged_rows(write_rows: Write) -> None:
    rows = [row("1", "a", "b", x=0, y=0), row("1", "b", "a", x=0), row("2", "a", "b", x=0), row("2", "a", "b", x=1)]
    found = inspect_data(write_rows(rows))["splits"][0]
    assert found["labels"] == {"x": 4, "y": 1}
    assert (found["merged_rows"], found["contradictions"]) == (2, {"x": 2, "y": 0})
    assert (found["pairs"], found["pairs_of_several_objectives"]) == ({"x": 0, "y": 1}, 0)
    assert (found["kept"], found["dropped"]) == (1, {MERGED: 2, CONTRADICTED: 1})
