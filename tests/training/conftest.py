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

from parm_mlx.group import Group, join
from parm_mlx.guidance.loading import load_base
from parm_mlx.pblora import load_into, read_adapter
from parm_mlx.training.batches import Batch, make_batch
from parm_mlx.training.checkpointing import checkpoint_blocks
from parm_mlx.training.learner import Learner
from parm_mlx.training.logprobs import ResponseScorer
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.tokenize import TokenPair, tokenize

LONG = ["Thank you for asking, it is a pleasure.", "Of course! Here is a long and polite answer.", "Let me explain it."]
SHORT = ["No.", "Yes.", "Maybe."]


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
def learner(official: Path, official_parm: Path) -> Callable[..., Learner]:
    """Makes a learner on the official backbone and adapter; the optimiser's settings are those of train3."""

    def make(
        beta: Iterable[float] = (0.01, 0.01),
        gamma: float = 0.0,
        parts: int = 1,
        share: bool = True,
        checkpoint: bool = False,
        training: bool = False,
        smoothing: float | None = None,
    ) -> Learner:
        model, _ = load_base(official / "arm_base")
        load_into(model, *read_adapter(official_parm))
        model.train(training)
        if checkpoint:
            checkpoint_blocks(model)
        optimizer = Optimizer(model, peak=5e-4, warmup=1, steps=3, weight_decay=0.05)
        scorer = ResponseScorer(model, 2, share)
        return Learner(scorer, mx.array(list(beta)), gamma, optimizer, parts, processes(), smoothing)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (objects, or lines as they are) to a file in the test's folder."""

    def write(rows: Iterable[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 pairs on 12 prompts: ``long`` prefers one response, ``short`` the other."""
    pairs = []
    for i in range(24):
        responses = [LONG[i % 3], SHORT[(i // 3) % 3]]
        long = i % 2
        pairs.append(
            {
                "prompt": f"Question number {i % 12}?",
                "responses": responses[::-1] if long else responses,
                "preferred": {"long": long, "short": 1 - long},
            }
        )
    return pairs
