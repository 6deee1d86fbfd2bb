from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.errors import AdapterError, ConfigError, DataError, ModelError
from parm_mlx.pblora import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.progress import Progress
from parm_mlx.training.run import TrainResult, train

Run = Callable[..., TrainResult]


class KilledError(BaseException):
    """Ends a run on the spot, as nothing in it expects."""


class Listener(Progress):
    """Remembers notes, and kills the run after a step."""

    def __init__(self, last: int | None = None) -> None:
        self.notes: list[str] = []
        self.last = last

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, step: int) -> None:
        if step == self.last:
            raise KilledError


@pytest.fixture
def run(official: Path, tmp_path: Path, write_rows: Callable[..., Path], rows: list[dict[str, Any]]) -> Run:
    """Trains on ``short``, ``long`` and, in wide.jsonl, also ``odd``; the order there is odd, short, long."""
    narrow = write_rows(rows)
    for i, row in enumerate(rows):
        row["preferred"] = {"odd": i % 2, "short": row["preferred"]["short"], "long": row["preferred"]["long"]}
    wide = write_rows(rows, "wide.jsonl")

    def run_train(
        out: str, progress: Progress | None = None, resume: bool = False, more: bool = True, **settings: Any
    ) -> TrainResult:
        defaults: dict[str, Any] = {
            "model": str(official / "arm_base"),
            "data": str(wide if more else narrow),
            "out": str(tmp_path / out),
            "iters": 2,
            "batch_size": 4,
            "warmup": 0,
            "val_batches": 0,
            "steps_per_save": 1,
        }
        return train(TrainConfig(**(defaults | settings)), progress=progress, resume=resume)

    return run_train


@pytest.fixture
def first(run: Run) -> str:
    """An adapter for long and short."""
    return str(run("first", more=False, learning_rate=0.02).out)


def tensors_of(path: Path | str) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in read_adapter(Path(path))[1].items()}


def test_training_begins_from_the_tensors(run: Run, first: str) -> None:
    """A learning rate of next to nothing leaves them what they were."""
    listener = Listener()
    second = run("second", listener, start_from=first, more=False, learning_rate=1e-12, seed=5).out
    assert f"training begins from {first}" in listener.notes
    config, _ = read_adapter(second)
    assert config.objectives == ("long", "short")
    assert config.training["settings"]["start_from"] == first
    for name, tensor in tensors_of(first).items():
        np.testing.assert_allclose(tensors_of(second)[name], tensor, atol=1e-9, err_msg=name)


def test_new_objectives_come_last_and_begin_as_the_mean_and_a_fresh_row(run: Run, first: str) -> None:
    listener = Listener()
    second = run("second", listener, start_from=first, learning_rate=1e-12).out
    assert f"training begins from {first}, with odd added" in listener.notes
    assert read_adapter(second)[0].objectives == ("long", "short", "odd")
    before, after = tensors_of(first), tensors_of(second)
    for name in (name for name in before if name.endswith("w2")):
        np.testing.assert_allclose(after[name][:2], before[name], atol=1e-7)
        fresh = after[name][2] - before[name].mean(axis=0)
        assert 0.1 < np.abs(fresh).max() <= 0.25 + 1e-6, name  # uniform in ± 1 / r2, of rank 4
    given = run("third", start_from=first, learning_rate=1e-12, objectives="long,short,odd").out
    assert all(np.array_equal(tensor, after[name]) for name, tensor in tensors_of(given).items())


def test_a_run_that_was_killed_goes_on_without_the_first_adapter(run: Run, first: str, tmp_path: Path) -> None:
    settings = {"start_from": first, "dropout": 0.3, "iters": 3}
    whole = tensors_of(run("whole", **settings).out)
    with pytest.raises(KilledError):
        run("second", Listener(2), **settings)
    Path(first).rename(tmp_path / "elsewhere")
    second = run("second", resume=True, **settings).out
    assert read_adapter(second)[0].objectives == ("long", "short", "odd")
    assert all(np.array_equal(whole[name], tensor) for name, tensor in tensors_of(second).items())
    listener = Listener()
    run("second", listener, resume=True, **settings)
    assert f"{second} is finished already" in listener.notes


def test_an_adapter_in_half_precision_is_trained_in_float32(run: Run, first: str) -> None:
    file = Path(first) / "adapters.safetensors"
    halves = {name: tensor.astype(mx.float16) for name, tensor in read_adapter(Path(first))[1].items()}
    mx.save_safetensors(str(file), halves)
    second = read_adapter(run("second", start_from=first, more=False).out)[1]
    assert {tensor.dtype for tensor in second.values()} == {mx.float32}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"r1": 2}, "does not fit this run: r1 is 4, not 2"),
        ({"lora_alpha": 4}, "does not fit this run: scale is 2.0, not 1.0"),
        ({"adapter": "svd-lora", "more": False}, "does not fit this run: kind is pblora, not svd-lora; r1 is 4, not "),
        ({"chat_template": "beaver"}, "does not fit this run: chat_template is None, not beaver"),
        ({"target_modules": "q_proj"}, "layers.0.self_attn.k_proj.a is (8, 64) in the adapter, missing in the run"),
        ({"start_from": "nowhere"}, "adapter nowhere: no such directory"),
        ({"objectives": "short,long"}, "objectives short, long must begin with those of "),
        ({"objectives": "odd"}, "objectives odd must begin with those of "),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(run: Run, first: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises((AdapterError, ConfigError, ModelError)) as caught:
        run("second", **{"start_from": first, **settings})
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_objective_of_the_adapter_that_the_data_lack_is_refused(run: Run, first: str, tmp_path: Path) -> None:
    wide = run("wide", start_from=first).out
    with pytest.raises(DataError, match="no training pair is left for odd"):
        run("second", start_from=str(wide), more=False)
