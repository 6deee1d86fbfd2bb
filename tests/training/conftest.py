"""The official loss fixture as batches, and small preference data that tests can write to disk."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.data.tokenize import TokenPair, tokenize
from parm_mlx.distributed import Group, join
from parm_mlx.guidance.loading import load_base
from parm_mlx.pblora import load_into, read_adapter
from parm_mlx.training.batching import Batch, make_batch
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import TrainStep


@pytest.fixture
def pictures() -> None:
    """Lets the runs of a test draw their curves."""


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the short runs of most tests."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("parm_mlx.training.run.add_picture", lambda *_: None)


@dataclass(frozen=True)
class LossFixture:
    """``expected_loss_k2``: its rows as one batch, its cases, and its gradients under our names."""

    batch: Batch
    pairs: list[TokenPair]
    content: dict[str, Any]
    gradients: Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def loss_fixture(official: Path) -> LossFixture:
    _, tokenizer = load_base(official / "arm_base")
    content = json.loads((official / "expected_loss_k2.json").read_text())
    pairs = []
    for row in content["rows"]:
        rows = (tokenize(tokenizer, row["prompt"], row["chosen"]), tokenize(tokenizer, row["prompt"], row["rejected"]))
        preferred = np.array([row["labels"][name] for name in content["obj_key"]], np.int8)
        pairs.append(TokenPair(rows, preferred, "fixture"))

    def gradients(prefix: str) -> dict[str, np.ndarray]:
        arrays = np.load(official / "expected_loss_k2.npz")
        return {our_name(name.removeprefix(prefix)): arrays[name] for name in arrays if name.startswith(prefix)}

    return LossFixture(make_batch(pairs), pairs, content, gradients)


@pytest.fixture(scope="session")
def adapter_after_training(official: Path) -> dict[str, np.ndarray]:
    """``train3``: the adapter after three optimiser steps of the official code."""
    tensors = mx.load(str(official / "train3" / "adapter_model.safetensors"))
    assert isinstance(tensors, dict)
    return {our_name(name): np.array(tensor) for name, tensor in tensors.items()}


def our_name(official_name: str) -> str:
    """``base_model.model.model.layers.0.self_attn.q_proj.pblora_A`` → ``layers.0.self_attn.q_proj.a``."""
    name, _, kind = official_name.removeprefix("base_model.model.model.").rpartition(".pblora_")
    return f"{name}.{kind.lower()}"


@cache
def processes() -> Group:
    """The processes that run this test together: one, unless another test has started it in several."""
    group = join()
    assert group.size == int(os.environ.get("EXPECTED_SIZE", "1"))
    return group


@pytest.fixture
def train_step(official: Path, official_parm: Path) -> Callable[..., TrainStep]:
    """Makes a training step on the official backbone and adapter; the optimiser's settings are those of train3."""

    def make(
        beta: Iterable[float] = (0.01, 0.01),
        gamma: float = 0.0,
        micro_batches: int = 1,
        share: bool = True,
        checkpoint: bool = False,
        training: bool = False,
        smoothing: float | None = None,
        nll_weight: float = 0.0,
    ) -> TrainStep:
        model, _ = load_base(official / "arm_base")
        load_into(model, *read_adapter(official_parm))
        model.train(training)
        if checkpoint:
            checkpoint_blocks(model)
        optimizer = Optimizer(model, peak=5e-4, warmup=1, steps=3, weight_decay=0.05)
        scorer = ResponseScorer(model, 2, share)
        betas = mx.array(list(beta))
        return TrainStep(scorer, betas, gamma, optimizer, micro_batches, processes(), smoothing, nll_weight)

    return make
