import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from parm_mlx.pblora import adapter_tensors
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.training.loss import preference_loss
from parm_mlx.training.train_step import TrainStep

MakeTrainStep = Callable[..., TrainStep]
PATHS: dict[str, dict[str, Any]] = {
    "rows": {"share": False},
    "chunks": {"share": False, "training": True},
    "shared": {"training": True},
    "checkpointed": {"training": True, "checkpoint": True},
    "accumulated": {"training": True, "micro_batches": 3},
}


def gradients(train_step: TrainStep, batch: Any, alpha: mx.array) -> dict[str, np.ndarray]:
    _, grads = train_step.batch_gradients(batch, alpha)
    return {name.removeprefix("model."): np.array(grad) for name, grad in tree_flatten(grads)}


@pytest.mark.parametrize(("prefix", "case"), [("grad_b0::", 0), ("grad_b1::", 3)])
@pytest.mark.parametrize("per_pair", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_the_official_gradients(
    loss_fixture: Any, train_step: MakeTrainStep, prefix: str, case: int, per_pair: bool, path: str
) -> None:
    """Relative to the largest number of each tensor: the official float32 gradients themselves are 6e-6 off float64."""
    content = loss_fixture.content["cases"][case]
    alpha = mx.array([content["alpha"]] * 4) if per_pair else mx.array(content["alpha"])
    ours = gradients(train_step(content["beta_obj"], **PATHS[path]), loss_fixture.batch, alpha)
    expected = loss_fixture.gradients(prefix)
    assert ours.keys() == expected.keys()
    for name, grad in expected.items():
        np.testing.assert_allclose(ours[name], grad, rtol=0, atol=1e-5 * np.abs(grad).max(), err_msg=name)


def test_only_the_adapter_gets_gradients(loss_fixture: Any, train_step: MakeTrainStep) -> None:
    names = gradients(train_step(), loss_fixture.batch, mx.array([0.5, 0.5])).keys()
    assert names == adapter_tensors(train_step().scorer.model).keys()


SMOOTH_ALPHA, SMOOTHING = [0.7, 0.3], 0.3


def assert_same(ours: Any, total: mx.array, grads: Any) -> None:
    """Compares loss and gradients of a batch with a total and its gradient."""
    (found_total, *_), found_grads = ours
    assert found_total.item() == pytest.approx(total.item(), rel=1e-5)
    found = dict(tree_flatten(found_grads))
    for name, grad in tree_flatten(grads):
        largest = np.abs(np.array(grad)).max()
        np.testing.assert_allclose(np.array(found[name]), np.array(grad), rtol=0, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("path", PATHS)
def test_the_smooth_tchebycheff_gradients(loss_fixture: Any, train_step: MakeTrainStep, path: str) -> None:
    """Against autodiff through the formula, written out here, on the whole batch at once."""
    batch, alpha, beta = loss_fixture.batch, mx.array(SMOOTH_ALPHA), mx.array([0.01, 0.02])
    plain = train_step(beta.tolist(), share=False)

    def formula(batch: Any) -> mx.array:
        logprobs = plain.scorer(batch, alpha)
        losses = preference_loss(logprobs, batch.preferred, batch.labelled, alpha, beta).per_objective
        return SMOOTHING * mx.log(mx.exp(alpha * losses / SMOOTHING).sum())

    expected, grads = nn.value_and_grad(plain.scorer.model, formula)(batch)
    ours = train_step(beta.tolist(), smoothing=SMOOTHING, **PATHS[path])
    assert_same(ours.batch_gradients(batch, alpha), expected, grads)
    assert ours(0, batch, alpha).loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("smoothing", [None, SMOOTHING])
def test_the_gradients_with_an_anchor(
    loss_fixture: Any, train_step: MakeTrainStep, path: str, smoothing: float | None
) -> None:
    """Against autodiff through the formula, written out here, on the whole batch at once and on whole rows."""
    batch, alpha, beta, weight = loss_fixture.batch, mx.array(SMOOTH_ALPHA), mx.array([0.01, 0.02]), 0.3
    plain = train_step(beta.tolist(), share=False)
    lengths = mx.array([[len(pair.rows[side]) - pair.rows[side].start for pair in batch.pairs] for side in (0, 1)])

    def formula(batch: Any) -> mx.array:
        logprobs = plain.scorer(batch, alpha)
        losses = preference_loss(logprobs, batch.preferred, batch.labelled, alpha, beta).per_objective
        nll = mx.where(batch.preferred > 0, (-logprobs / lengths)[1][:, None], (-logprobs / lengths)[0][:, None])
        losses = losses + weight * (nll * batch.labelled).sum(axis=0) / batch.labelled.sum(axis=0)
        if smoothing is None:
            return (alpha * losses).sum()
        return smoothing * mx.log(mx.exp(alpha * losses / smoothing).sum())

    expected, grads = nn.value_and_grad(plain.scorer.model, formula)(batch)
    ours = train_step(beta.tolist(), smoothing=smoothing, nll_weight=weight, **PATHS[path])
    assert_same(ours.batch_gradients(batch, alpha), expected, grads)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_both_passes_over_micro_batches_have_the_same_dropout(
    loss_fixture: Any, train_step: MakeTrainStep, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    """The weights of the second pass follow from losses that the second pass reports itself."""
    ours = train_step([0.01, 0.02], micro_batches=2, training=True, checkpoint=checkpoint, smoothing=SMOOTHING)
    for layer in adapted_layers(ours.scorer.model).values():
        layer.dropout = nn.Dropout(0.5)
    ours.scorer.model.train()
    weights: list[mx.array] = []
    compute = ours.micro_batch_gradients

    def watched(*arguments: Any) -> Any:
        weights.append(arguments[-1])
        return compute(*arguments)

    monkeypatch.setattr(ours, "micro_batch_gradients", watched)
    mx.random.seed(3)
    alpha = mx.array(SMOOTH_ALPHA)
    (_, sums, _), _ = ours.batch_gradients(loss_fixture.batch, alpha)
    mx.random.seed(4)
    (_, others, _), _ = ours.batch_gradients(loss_fixture.batch, alpha)
    assert not np.allclose(np.array(sums[0]), np.array(others[0]), rtol=1e-4)
    scaled = np.exp(np.array(SMOOTH_ALPHA) * np.array(sums[0] / sums[2]) / SMOOTHING)
    expected = np.array(SMOOTH_ALPHA) * scaled / scaled.sum()
    np.testing.assert_allclose(np.array(weights[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_three_official_optimiser_steps(
    loss_fixture: Any,
    train_step: MakeTrainStep,
    official: Path,
    adapter_after_training: dict[str, np.ndarray],
    path: str,
) -> None:
    run = json.loads((official / "train3" / "train3.json").read_text())
    ours = train_step(run["beta_obj"], **PATHS[path])
    for step, alpha in enumerate(run["alphas_per_step"]):
        result = ours(step, loss_fixture.batch, mx.array(alpha))
        logged = run["logged"][step]
        assert result.learning_rate == pytest.approx(run["lr_used_per_step"][step], abs=1e-12)
        assert result.loss == pytest.approx(logged["loss"], abs=6e-5)  # logged with four decimals
        assert result.grad_norm == pytest.approx(logged["grad_norm"], rel=1e-5)
        losses, correct, labelled = result.sums
        np.testing.assert_allclose(losses / labelled, [logged["loss_safe"], logged["loss_help"]], rtol=1e-5)
        assert (correct / labelled).tolist() == [logged[f"rewards_{name}/accuracies"] for name in ("safe", "help")]
    tensors = adapter_tensors(ours.scorer.model)
    assert tensors.keys() == adapter_after_training.keys()
    for name, expected in adapter_after_training.items():
        np.testing.assert_allclose(np.array(tensors[name]), expected, rtol=0, atol=1e-6, err_msg=name)
