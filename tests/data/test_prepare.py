import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.data import prepare as prepare_module
from parm_mlx.data.dataset import load_data
from parm_mlx.data.prepare import prepare
from parm_mlx.data.sources import RECORD_FILE
from parm_mlx.errors import DataError, OutputError, RunError

Write = Callable[..., Path]


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl"))}
    return {name: [json.loads(line) for line in text.split("\n") if line] for name, text in texts.items()}


def read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    return record


def test_the_split_is_by_prompt_and_complete(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """24 rows on 12 prompts, each prompt twice: shares of 0.25 and 0.1 are 3 prompts and 1 prompt."""
    path = write_rows(rows)
    notes = prepare(path, tmp_path / "out", valid_share=0.25, test_share=0.1)
    assert notes[1] == "valid.jsonl: 6 rows, 3 prompts"
    splits, record = read(tmp_path / "out"), read_record(tmp_path / "out")
    assert record["prompts"] == {"train": 8, "valid": 3, "test": 1}
    assert record["rows"] == {name: len(split) for name, split in splits.items()}
    assert record["rows"] == {"train": 16, "valid": 6, "test": 2}
    prompts = [{row["prompt"] for row in split} for split in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 12
    written = [json.dumps(row) for split in splits.values() for row in split]
    assert sorted(written) == sorted(json.dumps(row) for row in rows)
    assert record["source"] == [{"file": "pairs.jsonl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    data = load_data(tmp_path / "out")
    assert (len(data.train), len(data.valid), data.objectives) == (16, 6, ("long", "short"))


def test_the_seed_decides(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write_rows(rows)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(path, tmp_path / name, seed=seed)
    assert read(tmp_path / "a") == read(tmp_path / "b") != read(tmp_path / "c")


def test_a_share_of_nothing_has_no_file(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    prepare(write_rows(rows), tmp_path / "out", test_share=0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".parm-mlx",
        RECORD_FILE,
        "train.jsonl",
        "valid.jsonl",
    ]


SAFE = {"response_0": "a", "response_1": "é\u2028", "better_response_id": 1, "safer_response_id": 0}
FORMATS = [
    ({"prompt": "Q{}", "chosen": "a", "rejected": "b"}, "Q{}", ["a", "b"], {"kind": 0}),
    (
        {"chosen": "\n\nHuman: Q{}\n\nAssistant: a", "rejected": "\n\nHuman: Q{}\n\nAssistant: b"},
        [{"role": "user", "content": "Q{}"}],
        ["a", "b"],
        {"kind": 0},
    ),
    ({"prompt": "Q{}", **SAFE}, "Q{}", ["a", "é\u2028"], {"helpful": 1, "harmless": 0}),
]


@pytest.mark.parametrize(("row", "prompt", "responses", "preferred"), FORMATS, ids=["chosen", "hh", "safe-rlhf"])
def test_every_format_becomes_ours(
    write_rows: Write, tmp_path: Path, row: Any, prompt: Any, responses: list[str], preferred: dict[str, int]
) -> None:
    lines = [json.dumps(row).replace("Q{}", f"Q{i}") for i in range(3)]
    prepare(write_rows(lines, "kind.jsonl"), tmp_path / "out")
    found = [row for split in read(tmp_path / "out").values() for row in split]
    for i, each in enumerate(sorted(found, key=lambda row: json.dumps(row["prompt"]))):
        assert json.dumps(each["prompt"]) == json.dumps(prompt).replace("Q{}", f"Q{i}")
        assert (each["responses"], each["preferred"]) == (responses, preferred)


def test_what_is_left_out_is_counted(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    rows[0]["responses"] = ["same", "same"]
    path = write_rows([*rows, "{", rows[1] | {"preferred": {"long": 2}}, rows[1] | {"preferred": {"fun": 1}}])
    with pytest.raises(DataError, match=r"2 rows cannot be used"):
        prepare(path, tmp_path / "out", objectives=["long", "short"])
    assert not (tmp_path / "out").exists()
    notes = prepare(path, tmp_path / "out", objectives=["long", "short"], skip_bad=True)
    assert notes[-1].startswith("2 rows are left out")
    record = read_record(tmp_path / "out")
    assert (sum(record["rows"].values()), record["equal"], record["bad"]) == (23, 1, 2)
    assert [line.partition(": ")[0] for line in record["first_bad"]] == ["pairs.jsonl:25", "pairs.jsonl:26"]


def test_nothing_but_bad_rows_is_refused(write_rows: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: broken JSON"):
        prepare(write_rows(["{"]), tmp_path / "out", skip_bad=True)


def test_too_few_prompts(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 prompts are too few for 1 to validate and 1 to test"):
        prepare(write_rows(rows[:2]), tmp_path / "out")


def test_it_is_written_whole_or_not_at_all(
    write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_rows(rows), tmp_path / "out"
    prepare(path, out)
    before = read(out)
    with pytest.raises(OutputError, match="exists already"):
        prepare(path, out, seed=1)
    count = 0

    def failing(pair: Any) -> str:
        nonlocal count
        count += 1
        if count == 20:
            raise OSError(28, "No space left on device")
        return "{}\n"

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "as_row", failing)
        with pytest.raises(RunError, match="disk is full"):
            prepare(path, out, seed=1, force=True)
    assert read(out) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "pairs.jsonl"]
    prepare(path, out, seed=1, force=True)
    assert read(out) != before


def test_force_replaces_nothing_that_is_not_ours(write_rows: Write, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    path = write_rows(rows, "mine/train.jsonl")
    with pytest.raises(OutputError, match=r"would replace .*, which is read"):
        prepare(path, path.parent, force=True)
