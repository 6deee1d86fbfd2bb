"""Metrics on disk and the meter; trackers, with a stub in the place of wandb."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlx_lm.tuner import callbacks

from parm_mlx.errors import ConfigError, RunError
from parm_mlx.outputs import mark
from parm_mlx.training import logging
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.logging import (
    Meter,
    MetricsLog,
    ResumeRecord,
    TrainRecord,
    ValidRecord,
    read_metrics,
    write_metrics,
)
from parm_mlx.training.run import train
from parm_mlx.training.train_step import GridPoint, StepResult

TRAIN = TrainRecord(10, 0.7, {"a": 0.6, "b": 0.8}, {"a": 0.5, "b": 0.25}, 1.5, 1e-4, 100.0, 0.1, 4.0, 1.25)
VALID = ValidRecord(10, 0.5, (GridPoint((0.7, 0.3), 0.5, {"a": 0.4, "b": 0.6}, {"a": 0.9, "b": 0.25}),))


def step(loss: float, norm: float, sums: list[list[float]], tokens: int, pairs: int) -> StepResult:
    return StepResult(loss, np.array(sums, np.float32), norm, 1e-3, pairs, tokens, inputs=tokens, cells=tokens + 10)


def test_a_meter_adds_up_steps() -> None:
    meter = Meter(("a", "b"))
    meter.add(step(loss=1.0, norm=2.0, sums=[[4.0, 1.0], [3, 0], [4, 2]], tokens=10, pairs=4))
    meter.add(step(loss=3.0, norm=4.0, sums=[[2.0, 0.0], [1, 0], [4, 0]], tokens=30, pairs=4))
    record = meter.record(2, 1e-3)
    assert (record.step, record.loss, record.grad_norm, record.learning_rate) == (2, 2.0, 3.0, 1e-3)
    assert record.objective_loss == pytest.approx({"a": 0.75, "b": 0.5})
    assert record.accuracy == pytest.approx({"a": 0.5, "b": 0.0})
    assert record.padding == pytest.approx(20 / 60)
    assert record.tokens_per_second == pytest.approx(5 * record.pairs_per_second)
    meter.reset()
    meter.add(step(loss=1.0, norm=1.0, sums=[[1, 1], [1, 1], [1, 1]], tokens=1, pairs=1))
    assert meter.record(3, 0.0).loss == 1.0


def test_a_restored_meter_goes_on() -> None:
    """Half of the steps before, half after: the same means as in one piece, and both stretches of time."""
    first = Meter(("a", "b"))
    first.add(step(loss=1.0, norm=2.0, sums=[[4.0, 1.0], [3, 0], [4, 2]], tokens=10, pairs=4))
    state = first.state()
    second = Meter(("a", "b"))
    second.restore(json.loads(json.dumps(state)))
    second.add(step(loss=3.0, norm=4.0, sums=[[2.0, 0.0], [1, 0], [4, 0]], tokens=30, pairs=4))
    record = second.record(2, 1e-3)
    assert (record.loss, record.grad_norm, record.objective_loss) == (2.0, 3.0, {"a": 0.75, "b": 0.5})
    assert second.seconds > state["seconds"]


def test_metrics_are_read_as_they_were_written(tmp_path: Path) -> None:
    mark(tmp_path / "run", "checkpoints")
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.begin(TrainConfig(model="m", data="d", out="o"))
    start, later = replace(VALID, step=0, loss=0.125), replace(VALID, step=20, loss=0.25)
    for record in (start, VALID, TRAIN, later, TRAIN):
        log.add(record)
    log.records.append(ResumeRecord(20, ("model: weights",)))
    write_metrics(tmp_path / "again.jsonl", log.records)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == log.records[:-1]
    assert read_metrics(tmp_path / "again.jsonl") == log.records
    assert (log.last_step(ValidRecord), log.best_step) == (20, 20), "the adapter before the first step is no result"


def config(tmp_path: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(model="nowhere", data="nothing", out=str(tmp_path / "mine"), report_to="wandb", **settings)


def stub(monkeypatch: pytest.MonkeyPatch, init: Any = None) -> list[tuple[str, Any]]:
    """Puts a wandb in place that writes down what it is called with."""
    calls: list[tuple[str, Any]] = []
    wandb = SimpleNamespace(
        init=init or (lambda **settings: calls.append(("init", settings))),
        log=lambda numbers, step: calls.append((f"log {step}", numbers)),
    )
    monkeypatch.setattr(callbacks, "wandb", wandb)
    return calls


def log_of(tmp_path: Path) -> MetricsLog:
    mark(tmp_path / "run", "checkpoints")
    return MetricsLog(tmp_path / "run" / "metrics.jsonl")


def test_numbers_go_to_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub(monkeypatch)
    log = log_of(tmp_path)
    log.begin(config(tmp_path, project_name="steering"))
    log.add(TRAIN)
    log.add(VALID)
    (started, settings), (trained, numbers), (validated, accuracies) = calls
    assert (started, trained, validated) == ("init", "log 10", "log 10")
    assert (settings["project"], settings["name"]) == ("steering", "mine")
    assert settings["config"]["learning_rate"] is None
    assert Path(settings["dir"]).is_dir()
    assert not (tmp_path / "mine").exists()
    assert (numbers["train_loss"], numbers["train_loss/b"], numbers["train_accuracy/b"]) == (0.7, 0.8, 0.25)
    assert (numbers["peak_memory"], numbers["tokens_per_second"]) == (1.25, 100.0)
    assert accuracies == {
        "iteration": 10,
        "val_loss": 0.5,
        "val_accuracy/a at a=0.7 b=0.3": 0.9,
        "val_accuracy/b at a=0.7 b=0.3": 0.25,
    }


def test_a_missing_package_is_found_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--report-to wandb: wandb not installed") as caught:
        train(config(tmp_path))
    assert caught.value.hint == "pip install wandb"
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "swanlab.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    logging.check_trackers(["swanlab"])
    assert "swanlab" not in sys.modules, "it is found, and not imported"


def test_a_tracker_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key\nlong story")

    stub(monkeypatch, refuse)
    with pytest.raises(RunError, match=r"--report-to wandb: no API key$"):
        log_of(tmp_path).begin(config(tmp_path))


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report_to must be 'wandb' or 'swanlab', got 'mlflow'"):
        TrainConfig(model="m", data="d", out="o", report_to="mlflow")
