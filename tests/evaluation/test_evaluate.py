"""``parm_mlx.evaluate`` from Python, on the bundled model. The command line is tested in tests/cli/test_evaluate.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import parm_mlx
from parm_mlx.errors import InputError, OutputError
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM

PROMPTS = ["How do I bake bread?", "How do I plant a tree?"]


def length(prompts: Sequence[object], answers: Sequence[str]) -> list[int]:
    return [len(answer) for answer in answers]


def evaluate(out: Path, **changes: Any) -> Any:
    settings = {
        "model": "bundled",
        "prompts": PROMPTS,
        "alphas": ["1,0", {"focus": 1}],
        "max_tokens": 12,
        "bootstrap": 10,
    }
    return parm_mlx.evaluate(out=out, **(settings | changes))


def test_a_run_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    rewards = {"warmth": "warmth", "focus": "builtin:focus", "length": length}
    summary = evaluate(tmp_path / "run", rewards=rewards, note=notes.append)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == summary
    assert [point["alpha"] for point in summary["points"]] == [[1.0, 0.0], [0.0, 1.0]]
    assert list(summary["rewards"]) == ["warmth", "focus", "length"]
    results = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in results} == set(PROMPTS)
    unguided = [len(row["text"]) for row in results if row["alpha"] is None]
    assert summary["unguided"]["raw"]["length"] == sum(unguided) / 2
    assert (tmp_path / "run" / "report.html").exists()
    assert notes == []
    assert capsys.readouterr() == ("", "")

    again = evaluate(tmp_path / "run", rewards=rewards, note=notes.append)
    assert notes == ["6 of 6 answers were there already"]
    assert again == summary
    with pytest.raises(OutputError, match=r"holds another run \(temp: 0\.0, now 1\.0\)"):
        evaluate(tmp_path / "run", rewards=rewards, sampling=Sampling(temp=1.0))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"alphas": None, "grid": 0.3}, "the grid step must divide 1"),
        ({"grid": 0.5}, "exclude each other"),
        ({"grid": "even"}, "exclude each other"),
        ({"alphas": None, "grid": "odd"}, "grid must be a step or 'even', got 'odd'"),
        ({"alphas": []}, "preferences are missing"),
        ({"prompts": []}, "prompts are missing"),
        ({"prompts": "missing.txt"}, "missing.txt: no such file"),
        ({"prompts": None, "model": BUNDLED_BASE, "parm": BUNDLED_PARM}, "prompts are missing"),
        ({"model": BUNDLED_BASE}, "needs a PARM"),
        ({"rewards": {"warmth": length}}, "no --reward for focus"),
        ({"num_samples": 2}, "temperature above 0"),
        ({"reference": [0.0]}, "has 1 numbers for 2 objectives"),
        ({"draft_model": BUNDLED_BASE, "speculation": "base"}, "exclude each other"),
        ({"num_draft_tokens": 2, "speculation": "off"}, "exclude each other"),
    ],
)
def test_wrong_input_leaves_no_folder(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        evaluate(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
