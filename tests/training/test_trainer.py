import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import parm_mlx
from parm_mlx import load_guide
from parm_mlx.errors import AdapterError, ConfigError, DataError, ModelError, OutputError, RunError
from parm_mlx.pblora import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.curves import can_draw
from parm_mlx.training.logging import TrainRecord, ValidRecord
from parm_mlx.training.progress import Progress
from parm_mlx.training.run import TrainResult, train

Write = Callable[..., Path]
Rows = list[dict[str, Any]]


class Listener(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended = 0

    def note(self, message: str) -> None:
        self.notes.append(message)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture
def run(official: Path, tmp_path: Path, write_rows: Write, rows: Rows) -> Callable[..., TrainResult]:
    """Trains on the official backbone and the small data; settings may be changed."""
    data = write_rows(rows)

    def run_train(force: bool = False, progress: Progress | None = None, **settings: Any) -> TrainResult:
        defaults: dict[str, Any] = {
            "model": str(official / "arm_base"),
            "data": str(data),
            "out": str(tmp_path / "out"),
            "iters": 3,
            "batch_size": 4,
            "warmup": 1,
            "val_batches": 1,
        }
        return train(TrainConfig(**(defaults | settings)), force=force, progress=progress)

    return run_train


@pytest.mark.usefixtures("pictures")
def test_an_adapter_that_can_be_used_and_repeated(run: Callable[..., TrainResult], official: Path) -> None:
    listener = Listener()
    result = run(progress=listener, beta_objective=(0.1, 0.2), iters=5, steps_per_report=2, steps_per_eval=2)
    assert (result.steps, result.interrupted, listener.ended) == (5, False, 1)
    assert sorted(path.name for path in result.out.iterdir()) == [
        ".parm-mlx",
        "README.md",
        "adapter_config.json",
        "adapters.safetensors",
        *(["curves.png"] if can_draw() else []),
        "metrics.jsonl",
    ]
    assert [path.name for path in result.out.parent.iterdir() if path.name.startswith(".")] == []
    config, tensors = read_adapter(result.out)
    assert (config.objectives, config.objective_betas) == (("long", "short"), (0.1, 0.2))
    assert (config.r1, config.r2, config.scale, config.dropout) == (4, 4, 2.0, 0.05)
    assert len(tensors) == 24
    assert all(tensor.dtype == mx.float32 for tensor in tensors.values())
    assert mx.abs(tensors["layers.1.self_attn.v_proj.b"]).max().item() > 0
    training = config.training
    assert (training["settings"]["learning_rate"], training["peak_learning_rate"]) == (None, 0.014)
    assert training["settings"]["beta_objective"] == [0.1, 0.2]
    assert training["data"][0]["file"] == "pairs.jsonl"
    assert len(training["data"][0]["sha256"]) == 64
    assert (training["train_pairs"], training["valid_pairs"], training["steps_done"]) == (22, 2, 5)
    assert {"parm-mlx", "mlx", "mlx-lm", "python"} <= training["versions"].keys()
    guide, _ = load_guide(result.out)  # it records its backbone, relative to itself
    assert guide.objectives == ("long", "short")


def test_training_from_python(official: Path, tmp_path: Path, write_rows: Write, rows: Rows) -> None:
    settings: dict[str, Any] = {"iters": 2, "batch_size": 4, "warmup": 0, "val_batches": 1}
    data, out = write_rows(rows), tmp_path / "out"
    result = parm_mlx.train(model=str(official / "arm_base"), data=str(data), out=str(out), **settings)
    assert (result.out, result.steps, result.interrupted) == (out, 2, False)
    assert {kind: line["step"] for kind, line in result.metrics.items()} == {"valid": 2, "train": 2}
    assert json.loads(json.dumps(result.metrics["valid"])) == json.loads(
        (out / "metrics.jsonl").read_text().splitlines()[-1]
    )
    with pytest.raises(ConfigError, match="both given: iters"):
        parm_mlx.train(TrainConfig(model="m", data="d", out="o"), iters=1)


def test_the_largest_batch_comes_first_and_changes_nothing(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = Listener()
    measured = run(progress=listener)
    assert any("estimated" in note for note in listener.notes)
    assert any("of the largest batch" in note for note in listener.notes)
    monkeypatch.setattr("parm_mlx.training.memory.check_largest_batch", lambda *_: None)
    assert same(tensors_of(measured), tensors_of(run(out=str(tmp_path / "other"))))


def test_freed_buffers_are_returned_only_where_they_pile_up(
    run: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After each of the 3 steps where MLX keeps more than this machine has, after none where it keeps nothing."""
    cleared: list[int] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(1))
    counts = []
    for kept in (0, 2**60):
        monkeypatch.setattr(mx, "get_cache_memory", lambda kept=kept: kept)
        cleared.clear()
        run(out=str(tmp_path / f"out{kept}"))
        counts.append(len(cleared))
    assert counts[1] - counts[0] == 3


def test_metrics(run: Callable[..., TrainResult]) -> None:
    result = run(iters=5, steps_per_report=2, steps_per_eval=4)
    records = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("valid", 0),
        ("train", 2),
        ("train", 4),
        ("valid", 4),
        ("train", 5),
        ("valid", 5),
    ]
    report = records[1]
    assert report["objective_loss"].keys() == report["accuracy"].keys() == {"long", "short"}
    assert min(report[key] for key in ("tokens_per_second", "pairs_per_second", "peak_memory_gb", "grad_norm")) > 0
    assert [point["alpha"] for point in records[0]["grid"]] == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]
    point = records[0]["grid"][1]
    losses = point["objective_loss"]
    assert point["loss"] == pytest.approx(0.75 * losses["long"] + 0.25 * losses["short"])
    assert len(result.records) == len(records)
    assert isinstance(result.records[0], ValidRecord)
    assert isinstance(result.records[1], TrainRecord)


def tensors_of(result: TrainResult) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in read_adapter(result.out)[1].items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_seed_decides_everything(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    """The same settings give the same bytes, however often one validates; another seed does not."""
    first = tensors_of(run(out=str(tmp_path / "a")))
    assert same(first, tensors_of(run(out=str(tmp_path / "b"), steps_per_eval=1)))
    assert not same(first, tensors_of(run(out=str(tmp_path / "c"), seed=1)))
    assert not same(first, tensors_of(run(out=str(tmp_path / "d"), alpha_per="batch")))
    assert not same(first, tensors_of(run(out=str(tmp_path / "e"), dropout=0.5)))


def test_it_learns_to_follow_alpha(run: Callable[..., TrainResult]) -> None:
    """The objectives contradict each other on every pair, so only the corner of α can decide."""
    result = run(iters=60, learning_rate=0.04, beta_objective=0.5, batch_size=8, val_batches=-1)
    assert isinstance(result.records[-1], ValidRecord)
    long, *_, short = result.records[-1].grid
    assert long.accuracy == {"long": 1.0, "short": 0.0}
    assert short.accuracy == {"long": 0.0, "short": 1.0}


def test_one_and_three_objectives_and_missing_labels(run: Callable[..., TrainResult], write_rows: Write) -> None:
    single = write_rows(
        [{"prompt": f"Q{i}", "chosen": "good", "rejected": "bad"} for i in range(9)], "single/helpful.jsonl"
    )
    result = run(data=str(single), out=str(single.parent / "out"))
    assert read_adapter(result.out)[0].objectives == ("helpful",)
    names = ("a", "b", "c")
    row = {"chosen": "x", "rejected": "y"}
    partly = write_rows([row | {"prompt": f"Q{i}", "objective": names[i % 3]} for i in range(9)], "three.jsonl")
    result = run(data=str(partly), out=str(partly.parent / "out3"), objectives="c,b,a", batch_size=1)
    assert read_adapter(result.out)[0].objectives == ("c", "b", "a")


def test_ranks_and_targets(run: Callable[..., TrainResult]) -> None:
    config, tensors = read_adapter(run(r1=0, r2=2, lora_alpha=3, target_modules="o_proj,mlp.up_proj").out)
    assert (config.r1, config.r2, config.scale) == (0, 2, 1.5)
    assert {name.rsplit(".", 1)[0].split(".", 2)[2] for name in tensors} == {"self_attn.o_proj", "mlp.up_proj"}


def test_without_validation(run: Callable[..., TrainResult]) -> None:
    result = run(val_batches=0)
    assert not any(isinstance(record, ValidRecord) for record in result.records)
    assert read_adapter(result.out)[0].training["train_pairs"] == 24


def test_long_pairs_are_left_out_and_counted(run: Callable[..., TrainResult], write_rows: Write, rows: Rows) -> None:
    for row in rows[:6]:
        row["responses"] = ["word " * 300, "short"]
    listener = Listener()
    result = run(data=str(write_rows(rows)), max_seq_length=100, progress=listener, val_batches=0)
    assert read_adapter(result.out)[0].training["train_pairs"] == 18
    assert any("training: 6 of 24 pairs are left out" in note for note in listener.notes)


def test_a_warm_up_that_never_ends_is_noted(run: Callable[..., TrainResult]) -> None:
    listener = Listener()
    run(progress=listener, iters=1, warmup=20)
    assert any("warm-up of 20 steps covers the whole run" in note for note in listener.notes)


def test_an_existing_output_is_refused_before_anything_is_read(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        run(model="nowhere", data="nothing")


def test_force_replaces_an_adapter(run: Callable[..., TrainResult]) -> None:
    before = tensors_of(run())
    after = tensors_of(run(seed=1, force=True))
    assert not same(before, after)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"model": "no/such/model/here"}, ModelError, "no such directory"),
        ({"data": "nothing.jsonl"}, DataError, "no such file or folder"),
        ({"objectives": ("long", "short", "fun")}, DataError, "unknown objective 'fun'; the data has long, short"),
        ({"max_seq_length": 5}, DataError, "no training pair is left for long, short"),
        ({"target_modules": ("qkv",)}, AdapterError, "no layer of the model is named qkv"),
        ({"beta_objective": (1, 2, 3)}, ConfigError, "beta_objective has 3 numbers"),
    ],
)
def test_bad_input_is_found_before_training(
    run: Callable[..., TrainResult], tmp_path: Path, settings: dict[str, Any], error: type[Exception], reason: str
) -> None:
    class NeverBegins(Listener):
        def begin(self, steps: int, done: int = 0) -> None:
            raise AssertionError("training began")

    with pytest.raises(error, match=reason):
        run(progress=NeverBegins(), **settings)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_stops_the_run(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(learning_rate=1e3, warmup=0, iters=20, val_batches=0)
    message = str(caught.value)
    assert message.startswith("step ")
    assert "loss nan" in message
    assert message.count("pairs.jsonl:") == 4
    assert message.endswith("There is no checkpoint yet")
    assert not (tmp_path / "out").exists()


def interrupting(at: int) -> Listener:
    class Interrupts(Listener):
        def advance(self, step: int) -> None:
            if step == at:
                signal.raise_signal(signal.SIGINT)

        def begin(self, steps: int, done: int = 0) -> None:
            if at == 0:
                signal.raise_signal(signal.SIGINT)

    return Interrupts()


def test_ctrl_c_keeps_what_has_been_learned(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    """The steps before Ctrl-C are those of the run that was not interrupted."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    whole = run(out=str(tmp_path / "whole"), iters=12, steps_per_report=2, steps_per_eval=100)
    result = run(iters=12, steps_per_report=2, progress=interrupting(at=2), steps_per_eval=100)
    assert (result.steps, result.interrupted, result.signal) == (2, True, signal.SIGINT)
    assert result.out == tmp_path / "out.checkpoints" / "step-00000002"
    assert not (tmp_path / "out").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    training = read_adapter(result.out)[0].training
    assert (training["steps"], training["steps_done"]) == (12, 2)
    last, first = result.records[-1], whole.records[1]
    assert isinstance(last, TrainRecord)
    assert isinstance(first, TrainRecord)
    assert (last.step, last.loss) == (2, first.loss)
    guide, _ = load_guide(result.out)  # a checkpoint is an adapter, and knows its backbone
    assert guide.objectives == ("long", "short")


def test_ctrl_c_before_the_first_step_leaves_nothing(run: Callable[..., TrainResult], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupting(at=0))
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
