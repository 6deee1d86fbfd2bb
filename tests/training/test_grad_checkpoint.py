from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny import random_pairs, randomise, tiny_model

from parm_mlx.pblora import PBLoRAConfig, adapter_tensors, attach
from parm_mlx.training.batching import make_batch
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import TrainStep

BATCH = make_batch(random_pairs((24, 3, 6), (9, 5, 1), (17, 2, 2)))
ALPHA = mx.array([[1, 0], [0.5, 0.5], [0.1, 0.9]], mx.float32)


def train_step(checkpoint: bool, share: bool = True, dropout: float = 0.0, layers: int = 2) -> TrainStep:
    model: Any = tiny_model("llama", num_hidden_layers=layers)
    attach(model, PBLoRAConfig(objectives=("a", "b"), dropout=dropout))
    randomise(model, size=0.1)
    scorer = ResponseScorer(model, 2, share=share)
    model.train()
    if checkpoint:
        checkpoint_blocks(model)
    optimizer = Optimizer(model, peak=1e-2, warmup=0, steps=2, weight_decay=0.0)
    return TrainStep(scorer, mx.array([0.1, 0.1]), 0.0, optimizer)


def gradients(train_step: TrainStep) -> dict[str, np.ndarray]:
    mx.random.seed(7)
    (loss, *_), grads = train_step.batch_gradients(BATCH, ALPHA)
    state = mx.random.state[0]
    return {"loss": np.array(loss), "random state": np.array(state)} | {k: np.array(g) for k, g in tree_flatten(grads)}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_gradients_and_random_numbers_stay_the_same(share: bool, dropout: float) -> None:
    plain, again = (gradients(train_step(checkpoint, share, dropout)) for checkpoint in (False, True))
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        np.testing.assert_allclose(again[name], grad, rtol=0, atol=1e-6 * np.abs(grad).max(), err_msg=name)


def test_steps_and_names_stay_the_same() -> None:
    tensors = []
    for checkpoint in (False, True):
        ours = train_step(checkpoint)
        for step in range(2):
            ours(step, BATCH, ALPHA)
        tensors.append({name: np.array(tensor) for name, tensor in adapter_tensors(ours.scorer.model).items()})
    plain, again = tensors
    assert plain.keys() == again.keys()
    for name, tensor in plain.items():
        np.testing.assert_allclose(again[name], tensor, rtol=0, atol=1e-6, err_msg=name)


def test_memory_is_that_of_one_layer() -> None:
    """Of 12 layers, the activations of one are held at a time, with the inputs of all."""

    def peak(checkpoint: bool) -> int:
        ours = train_step(checkpoint, layers=12)
        mx.eval(ours.scorer.model.parameters())
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(ours.batch_gradients(BATCH, ALPHA))
        return mx.get_peak_memory() - before

    assert peak(True) < 0.6 * peak(False)
