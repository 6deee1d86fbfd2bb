"""Answers at the corners during training; tiny random models answer, so only what is made of the answers matters."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from parm_mlx.data.dataset import PreferenceData
from parm_mlx.data.pairs import Pair
from parm_mlx.errors import ConfigError
from parm_mlx.guidance.generate import Answer
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.sampling import Request
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.judge import CornerRecord, Judge, held_out_questions
from parm_mlx.training.logging import read_metrics
from parm_mlx.training.progress import ConsoleProgress, Progress
from parm_mlx.training.run import train

Write = Callable[..., Path]
Rows = list[dict[str, Any]]


def number(prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
    return list(map(float, answers))


@pytest.fixture
def judge(official: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Judge]:
    """A judge of two questions, to which the base answers 1 and 3, the first corner 5 and 9, the second 2 and 2."""
    model, tokenizer = load_base(official / "arm_base")
    attach(model, PBLoRAConfig(objectives=("a", "b")))
    model.train()
    alphas = [None, None, (1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]

    def answered(_: Any, __: Any, requests: Sequence[Request], ___: int) -> Iterator[Answer]:
        assert [request.alpha for request in requests] == alphas
        for index in (3, 0, 1, 5, 4, 2):
            yield Answer(index, "139522"[(0, 1, 3, 2, 4, 5)[index]], [], "stop")

    monkeypatch.setattr("parm_mlx.training.judge.generate_batch", answered)

    def make(rewards: Any, objectives: tuple[str, ...] = ("a", "b")) -> Judge:
        config = PBLoRAConfig(objectives=objectives, chat_template="beaver")
        return Judge(rewards, model, config, tokenizer, ["Why?", "How?"])

    return make


def test_distances_are_by_hand(judge: Callable[..., Judge]) -> None:
    """For a the own corner is the first; the base's scores 1 and 3 have the standard deviation 1."""
    record = judge({"a": number, "b": number})(7)
    assert record == CornerRecord(7, {"a": 2, "b": 2}, {"a": 7, "b": 2}, {"a": 2, "b": 7}, {"a": 5, "b": -5})


def test_the_model_goes_on_training(judge: Callable[..., Judge]) -> None:
    made = judge({"a": number})
    made(0)
    assert made._shared.guide.model.training


def test_only_objectives_are_judged(judge: Callable[..., Judge]) -> None:
    with pytest.raises(ConfigError, match="--reward warmth: the objectives are a, b"):
        judge(["warmth=warmth"])
    with pytest.raises(ConfigError, match="there is only one"):
        judge(["a=warmth"], ("a",))


def test_questions_are_the_first_that_differ() -> None:
    pairs = [Pair(f"question {i // 2}", (f"{i}", "b"), {"a": 0}, "here") for i in range(40)]
    data = PreferenceData(("a",), pairs[20:], pairs[:10], (), ())
    assert held_out_questions(data) == [f"question {i}" for i in range(5)]
    assert len(held_out_questions(PreferenceData(("a",), pairs, [], (), ()))) == 12


def test_a_judged_training_is_the_same_training(
    official: Path, tmp_path: Path, write_rows: Write, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parm_mlx.training.judge.TOKENS", 4)
    settings: dict[str, Any] = {
        "model": str(official / "arm_base"),
        "data": str(write_rows(rows)),
        "chat_template": "beaver",
        "iters": 4,
        "batch_size": 2,
        "warmup": 1,
        "steps_per_eval": 2,
        "val_batches": 0,
    }
    console = Console(record=True, width=200, force_terminal=False)
    adapters = []
    judged = ",".join(f"{name}=brevity" for name in ("long", "short"))
    for name, reward, progress in (("plain", None, Progress()), ("judged", judged, ConsoleProgress(console))):
        result = train(TrainConfig(**settings, out=str(tmp_path / name), reward=reward), progress=progress)
        adapters.append({key: np.array(value) for key, value in read_adapter(result.out)[1].items()})
    assert adapters[0].keys() == adapters[1].keys()
    assert all(np.array_equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    records = [r for r in read_metrics(tmp_path / "judged" / "metrics.jsonl") if isinstance(r, CornerRecord)]
    assert [record.step for record in records] == [0, 2, 4]
    assert {*records[0].distance} == {"long", "short"}
    said = console.export_text()
    assert said.count("mean score at its own corner, at the others, base") == 3
    assert "standard deviations of the base apart" in said
