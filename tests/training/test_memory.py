"""The estimate of memory by hand on a small model, and the largest batch that is tried out first."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import OBJECTIVES, random_pairs, tiny_model

from parm_mlx.errors import RunError
from parm_mlx.pblora import PBLoRAConfig, adapter_tensors, attach
from parm_mlx.training import memory
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.progress import Progress
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import TrainStep


class Listener(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def train_step() -> TrainStep:
    model: Any = tiny_model()
    attach(model, PBLoRAConfig(objectives=OBJECTIVES))
    model.train()
    optimizer = Optimizer(model, peak=1e-3, warmup=0, steps=3, weight_decay=0.0)
    return TrainStep(ResponseScorer(model, 2), mx.array([0.1, 0.1]), 0.0, optimizer, micro_batches=2)


def test_the_estimate_by_hand(tmp_path: Path) -> None:
    """Rank 4 + 4 on a query of 8 → 16 and a value of 8 → 4: 8 · (24 + 12) numbers, four times in float32.

    Logits of 128 tokens over a vocabulary of 10, with their gradient: 2 · 128 · 10 numbers."""
    block = "model.layers.0."
    shapes = {"self_attn.q_proj": (16, 8), "self_attn.v_proj": (4, 8), "input_layernorm": (8,), "mlp.up_proj": (32, 8)}
    weights = {f"{block}{name}.weight": mx.zeros(shape) for name, shape in shapes.items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))
    found = memory.estimate(TrainConfig(model=str(tmp_path), data="d", out="o"))
    assert found == ((tmp_path / "model.safetensors").stat().st_size, 16 * 8 * 36, 4 * 2 * 128 * 10)


def test_the_largest_batch_is_the_longest_pairs_of_a_micro_batch(
    train_step: TrainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 pairs in 2 micro-batches, 3 are computed together; nothing is learned."""
    computed: list[Any] = []
    compute = train_step.micro_batch_gradients

    def watched(batch: Any, alpha: mx.array) -> Any:
        computed.append(batch)
        return compute(batch, alpha)

    monkeypatch.setattr(train_step, "micro_batch_gradients", watched)
    before = {name: np.array(tensor) for name, tensor in adapter_tensors(train_step.scorer.model).items()}
    listener = Listener()
    memory.check_largest_batch(train_step, random_pairs(*[(4, n, n) for n in (3, 9, 5, 7)]), 5, listener)
    [batch] = computed
    assert [len(pair) for pair in batch.pairs] == [13, 11, 9]
    assert (len(listener.notes), listener.warnings) == (1, [])
    after = adapter_tensors(train_step.scorer.model)
    assert all(np.array_equal(tensor, np.array(after[name])) for name, tensor in before.items())


def test_few_pairs_are_repeated(train_step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(train_step, "micro_batch_gradients", lambda batch, alpha: sizes.append(len(batch.pairs)))
    memory.check_largest_batch(train_step, random_pairs((2, 3, 3)), 8, Listener())
    assert sizes == [4]


def test_a_peak_beyond_the_machine_is_a_warning_that_names_the_flags(
    train_step: TrainStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: 1)
    listener = Listener()
    memory.check_largest_batch(train_step, random_pairs((2, 3, 3)), 2, listener)
    [warning] = listener.warnings
    flags = ("--batch-size", "--grad-accumulation-steps", "--grad-checkpoint", "--max-seq-length")
    assert all(flag in warning for flag in flags)


def test_a_batch_that_cannot_be_allocated_ends_the_run(train_step: TrainStep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batch: Any, alpha: Any) -> None:
        raise RuntimeError("[metal::malloc] Attempting to allocate 10 bytes")

    monkeypatch.setattr(train_step, "micro_batch_gradients", refuse)
    with pytest.raises(RunError, match="the largest batch does not fit") as caught:
        memory.check_largest_batch(train_step, random_pairs((2, 3, 3)), 2, Listener())
    assert "--grad-checkpoint" in str(caught.value.hint)
