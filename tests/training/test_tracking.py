"""Trackers, with a stub in the place of wandb."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tuner import callbacks

from parm_mlx.errors import ConfigError, RunError
from parm_mlx.training import tracking
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.report import Progress, TrainRecord, ValidRecord
from parm_mlx.training.run import train
from parm_mlx.training.validation import GridPoint

TRAIN = TrainRecord(10, 0.7, {"a": 0.6, "b": 0.8}, {"a": 0.5, "b": 0.25}, 1.5, 1e-4, 100.0, 0.1, 4.0, 1.25)
VALID = ValidRecord(10, ("a", "b"), [GridPoint((0.7, 0.3), 0.5, (0.4, 0.6), (0.9, 0.25))])


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


def test_numbers_go_to_the_tracker_and_on_to_the_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub(monkeypatch)
    seen: list[Any] = []

    class Shown(Progress):
        def report(self, record: TrainRecord) -> None:
            seen.append(record)

        def validated(self, record: ValidRecord) -> None:
            seen.append(record)

    progress = tracking.TrackedProgress(Shown(), config(tmp_path, project_name="steering"))
    progress.begin(20)
    progress.report(TRAIN)
    progress.validated(VALID)
    progress.end()
    assert seen == [TRAIN, VALID]
    (started, settings), (trained, numbers), (validated, accuracies) = calls
    assert (started, trained, validated) == ("init", "log 10", "log 10")
    assert (settings["project"], settings["name"]) == ("steering", "mine")
    assert settings["config"]["learning_rate"] == 5e-4
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
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--report-to wandb: wandb not installed") as caught:
        train(config(tmp_path))
    assert caught.value.hint == "pip install wandb"
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "swanlab.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    tracking.check_trackers(["swanlab"])
    assert "swanlab" not in sys.modules, "it is found, and not imported"


def test_a_tracker_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key\nlong story")

    stub(monkeypatch, refuse)
    with pytest.raises(RunError, match=r"--report-to wandb: no API key$"):
        tracking.TrackedProgress(Progress(), config(tmp_path)).begin(20)


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report_to must be among wandb, swanlab, got 'mlflow'"):
        TrainConfig(model="m", data="d", out="o", report_to="mlflow")
