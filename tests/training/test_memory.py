"""The estimate of peak memory: by hand on round sizes, and against what MLX measures."""

import gc
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from tiny import OBJECTIVES, random_pairs, tiny_model

from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training import footprint
from parm_mlx.training.batching import make_batch
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.footprint import Footprint, model_size
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.memory import AdapterSize, Load, ModelSize, estimate, plain_weights, ways_to_fit
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.report import Progress
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import Learner

MODEL = ModelSize(
    hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=128, vocabulary=1000, itemsize=4, weights=10**6
)
ADAPTER = AdapterSize(numbers=1000, inputs=192, distinct=64, dropout=False)
LOAD = Load(pairs=4, prefix=0, rest=32, targets=128)


class Listener(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_what_layers_keep_by_hand() -> None:
    """Two layers, 4 bytes a number, 256 positions; each keeps the residual twice (128), q (64), k and v (64), 4 · 128
    of the feed-forward part and the adapters' input (64): 832 numbers. Attention keeps 4 heads · 8 rows · 32²."""
    result = estimate(MODEL, ADAPTER, LOAD, checkpoint=False)
    assert result.kept == 2 * 4 * (256 * 832 + 4 * 8 * 32**2)
    assert result.weights == 10**6
    assert result.adapter == 16 * 1000
    assert result.total == result.weights + result.adapter + result.kept + result.working


def test_logits_grow_with_the_chunk_and_not_with_the_tokens() -> None:
    large = replace(MODEL, vocabulary=10**6)
    few, many, more = (
        estimate(large, ADAPTER, replace(LOAD, targets=n), checkpoint=False).working for n in (1024, 2048, 4096)
    )
    hidden = 2 * 4 * MODEL.hidden
    assert many - few == 1024 * hidden
    assert more - many == 2048 * hidden


def test_weights_of_a_known_model() -> None:
    """Llama 2 7B has 6,738,415,616 numbers, of which the norms, 65 · 4096, are not counted."""
    llama = ModelSize(4096, 32, 32, 32, 128, 11008, 32000, 2, 0)
    numbers = 6_738_415_616 - 65 * 4096
    assert plain_weights(llama, tied=False) == 2 * numbers
    assert plain_weights(llama, tied=False, bits=4) == numbers // 2 + numbers // 64 * 4


def test_ways_to_fit_begin_with_smaller_batches() -> None:
    ways = list(ways_to_fit(MODEL, ADAPTER, LOAD, checkpoint=False, accumulation=2, length=256))
    assert [way.flags for way in ways] == [
        "--batch-size 2 --grad-accumulation-steps 4",
        "--batch-size 1 --grad-accumulation-steps 8",
        "--grad-checkpoint",
        "--batch-size 2 --grad-accumulation-steps 4 --grad-checkpoint",
        "--batch-size 1 --grad-accumulation-steps 8 --grad-checkpoint",
        "--batch-size 1 --grad-accumulation-steps 8 --grad-checkpoint --max-seq-length 128",
        "--batch-size 1 --grad-accumulation-steps 8 --grad-checkpoint --max-seq-length 64",
    ]
    whole = estimate(MODEL, ADAPTER, LOAD, checkpoint=False).total
    assert all(way.bytes < whole for way in ways)
    assert ways[0].bytes == estimate(MODEL, ADAPTER, Load(2, 0, 32, 64), checkpoint=False).total


def learner_of(config: TrainConfig, bits: int | None, dtype: mx.Dtype, **changes: Any) -> Learner:
    model: nn.Module = tiny_model(tie_word_embeddings=False, hidden_size=128, intermediate_size=256, **changes)
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    attach(model, PBLoRAConfig(objectives=OBJECTIVES, dropout=config.dropout))
    model.train()
    mx.eval(model.parameters())
    if config.grad_checkpoint:
        checkpoint_blocks(model)
    optimizer = Optimizer(model, peak=1e-3, warmup=0, steps=3, weight_decay=0.0)
    return Learner(ResponseScorer(model, 2), mx.array([0.1, 0.1]), 0.0, optimizer)


@pytest.mark.parametrize(
    ("settings", "size", "bits", "dtype", "changes"),
    [
        ({"dropout": 0.0}, (1, 64), None, mx.float32, {}),
        ({}, (64, 32), 4, mx.float32, {"num_hidden_layers": 4}),
        ({"grad_checkpoint": True}, (1, 64), None, mx.float32, {"num_hidden_layers": 8}),
        ({}, (1, 80), None, mx.float32, {"vocab_size": 8192}),
        ({}, (1, 64), None, mx.float16, {"num_hidden_layers": 4}),
    ],
    ids=["plain", "shared prompts in 4 bits", "checkpointed", "large vocabulary", "float16"],
)
def test_the_estimate_is_near_the_measured_peak(
    settings: dict[str, Any], size: tuple[int, int], bits: int | None, dtype: mx.Dtype, changes: dict[str, Any]
) -> None:
    config = TrainConfig(model="m", data="d", out="o", batch_size=4, **settings)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    learner = learner_of(config, bits, dtype, **changes)
    pairs = random_pairs(*[(size[0], size[1], size[1])] * 4)
    sizes = Footprint(learner.scorer, config, pairs, 4)
    assert sizes.estimate is not None
    alpha = mx.array(np.full((4, 2), 0.5, np.float32))
    learner.step(0, make_batch(pairs), alpha)
    mx.reset_peak_memory()
    learner.step(1, make_batch(pairs), alpha)
    assert 0.85 <= sizes.estimate.total / (mx.get_peak_memory() - before) <= 1.25


def test_announcements() -> None:
    config = TrainConfig(model="m", data="d", out="o", batch_size=4, max_seq_length=128)
    sizes = Footprint(
        learner_of(config, None, mx.float32).scorer, config, random_pairs(*[(8, 40, 40)] * 6, (2, 4, 4)), 4
    )
    assert sizes.estimate is not None
    assert (sizes.load.pairs, sizes.load.rest) == (4, 48), "the batch of the longest pairs"
    total = sizes.estimate.total
    told = Listener()
    sizes.announce(told, total)
    assert (len(told.notes), told.warnings) == (1, [])
    assert told.notes[0].startswith("memory: about 0.0")
    told = Listener()
    sizes.announce(told, total - 1)
    assert "try --batch-size 2 --grad-accumulation-steps 2: about 0.0" in told.warnings[0]
    told = Listener()
    sizes.announce(told, 1)
    assert "--max-seq-length 64" in told.warnings[0]
    assert "a smaller backbone, or one in fewer bits" in told.warnings[0]
    assert "at the peak, estimated 0.0" in sizes.measured()


def test_sizes_that_a_family_does_not_name_give_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_size(tiny_model("gpt2")) is not None
    monkeypatch.setitem(footprint.NAMES, "hidden", ("unheard_of",))
    assert model_size(tiny_model()) is None
