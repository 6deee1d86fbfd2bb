import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.kernels.logprob import target_logprobs
from parm_mlx.training.loss import preference_loss, smooth_tchebycheff, tchebycheff_weights
from parm_mlx.training.train_step import TrainStep


def test_target_logprobs_by_hand() -> None:
    """softmax(0, log 3) = (1/4, 3/4)."""
    logits = mx.array([[0.0, math.log(3)], [30.0, 30.0]])
    assert target_logprobs(logits, mx.array([1, 0])).tolist() == pytest.approx([math.log(0.75), math.log(0.5)])
    assert target_logprobs(logits.astype(mx.bfloat16), mx.array([1, 0])).dtype == mx.float32


LOGPROBS = mx.array([[-1.0, -5.0, -2.0], [-3.0, -4.0, -2.5]])  # differences 2, -1, 0.5
PREFERRED = mx.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])  # margins (2, -2), (-1, -1), (-0.5, 0.5)
LABELLED = mx.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_objective_by_hand() -> None:
    """β = (1, 2). Objective 1 judges all pairs, objective 2 the first and the last one.

    losses 1: softplus(-2), softplus(1), softplus(0.5); losses 2: softplus(4), -, softplus(-1).
    """
    loss = preference_loss(LOGPROBS, PREFERRED, LABELLED, mx.array([0.3, 0.7]), mx.array([1.0, 2.0]))
    first = (softplus(-2) + softplus(1) + softplus(0.5)) / 3
    second = (softplus(4) + softplus(-1)) / 2
    assert loss.per_objective.tolist() == pytest.approx([first, second])
    assert loss.total.item() == pytest.approx(0.3 * first + 0.7 * second)
    assert loss.correct.tolist() == [1, 1]
    assert loss.labelled.tolist() == [3, 2]


def test_one_alpha_per_pair_weighs_inside_the_mean() -> None:
    alpha = mx.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]])
    loss = preference_loss(LOGPROBS, PREFERRED, LABELLED, alpha, mx.array([1.0, 2.0]))
    first = (softplus(-2) + 0.5 * softplus(1) + 0.2 * softplus(0.5)) / 3
    second = (0 * softplus(4) + 0.8 * softplus(-1)) / 2
    assert loss.total.item() == pytest.approx(first + second)


def test_gamma_asks_for_a_margin() -> None:
    one = (LOGPROBS[:, :1], PREFERRED[:1], LABELLED[:1])
    loss = preference_loss(*one, mx.array([1.0, 0.0]), mx.array([1.0, 1.0]), gamma=0.5)
    assert loss.per_objective.tolist() == pytest.approx([softplus(0.5 - 2), softplus(0.5 + 2)])


def test_an_objective_without_labels_weighs_nothing() -> None:
    labelled = LABELLED * mx.array([1.0, 0.0])
    loss = preference_loss(LOGPROBS, PREFERRED, labelled, mx.array([0.5, 0.5]), mx.array([1.0, 1.0]))
    assert loss.per_objective[1].item() == 0
    assert loss.total.item() == pytest.approx(0.5 * loss.per_objective[0].item())


LENGTHS = mx.array([[2.0, 5.0, 4.0], [3.0, 1.0, 5.0]])  # per token 0.5, 1, 0.5 and 1, 4, 0.5


def test_the_anchor_by_hand() -> None:
    """λ = 0.2 times the negative log-likelihood per token of what an objective prefers.

    Objective 1 prefers 0, 0, 1: (0.5 + 1 + 0.5) / 3. Objective 2 prefers 1, -, 0: (1 + 0.5) / 2.
    """
    inputs = (LOGPROBS, PREFERRED, LABELLED, mx.array([0.3, 0.7]), mx.array([1.0, 2.0]))
    plain, anchored = preference_loss(*inputs), preference_loss(*inputs, nll_weight=0.2, lengths=LENGTHS)
    assert (anchored.per_objective - plain.per_objective).tolist() == pytest.approx([0.2 * 2 / 3, 0.2 * 0.75], abs=1e-6)
    assert (anchored.total - plain.total).item() == pytest.approx(0.3 * 0.2 * 2 / 3 + 0.7 * 0.2 * 0.75, abs=1e-6)
    assert (anchored.correct.tolist(), anchored.labelled.tolist()) == (plain.correct.tolist(), plain.labelled.tolist())


def test_the_gradient_of_the_anchor_by_hand() -> None:
    """With λ alone (β = 0 makes the rest constant) the slope is -λ Σ α_i / (n_i · length) over the objectives that
    prefer the response: 0.3 / (3 · 2) for response 0 of pair 1, 0.7 / (2 · 3) for response 1, and so on.
    """

    def total(logprobs: mx.array) -> mx.array:
        alpha, beta = mx.array([0.3, 0.7]), mx.array([0.0, 0.0])
        return preference_loss(logprobs, PREFERRED, LABELLED, alpha, beta, nll_weight=0.2, lengths=LENGTHS).total

    slopes = mx.grad(total)(LOGPROBS)
    expected = [[0.3 / 6, 0.3 / 15, 0.7 / 8], [0.7 / 6, 0, 0.3 / 15]]
    np.testing.assert_allclose(np.array(slopes), -0.2 * np.array(expected), rtol=1e-5)


def test_the_slope_of_the_whole_objective_is_that_of_finite_differences() -> None:
    """Central differences in float32: a step of 0.05 leaves about 1e-4."""

    def total(logprobs: mx.array) -> mx.array:
        alpha, beta = mx.array([0.3, 0.7]), mx.array([1.0, 2.0])
        return preference_loss(logprobs, PREFERRED, LABELLED, alpha, beta, nll_weight=0.5, lengths=LENGTHS).total

    slopes = np.array(mx.grad(total)(LOGPROBS))
    for place in np.ndindex(2, 3):
        step = np.zeros((2, 3), np.float32)
        step[place] = 0.05
        up, down = (total(LOGPROBS + sign * mx.array(step)).item() for sign in (1, -1))
        assert slopes[place] == pytest.approx((up - down) / 0.1, abs=5e-4)


def test_huge_margins_stay_finite() -> None:
    loss = preference_loss(1e6 * LOGPROBS, PREFERRED, LABELLED, mx.array([0.5, 0.5]), mx.array([1.0, 1.0]))
    assert math.isfinite(loss.total.item())


LOSSES, ALPHA, ALL = mx.array([0.2, 0.9]), mx.array([0.75, 0.25]), mx.array([True, True])


def test_smooth_tchebycheff_by_hand() -> None:
    """α L = (0.15, 0.225); with μ = 0.075 these are 2 and 3, and softmax(2, 3) = (1, e) / (1 + e)."""
    total = smooth_tchebycheff(LOSSES, ALPHA, 0.075, ALL).item()
    assert total == pytest.approx(0.075 * math.log(math.exp(2) + math.exp(3)))
    expected = [0.75 / (1 + math.e), 0.25 * math.e / (1 + math.e)]
    assert tchebycheff_weights(LOSSES, ALPHA, 0.075, ALL).tolist() == pytest.approx(expected)


def test_smooth_tchebycheff_nears_the_largest_weighted_loss() -> None:
    assert smooth_tchebycheff(LOSSES, ALPHA, 1e-4, ALL).item() == pytest.approx(0.225)
    assert tchebycheff_weights(LOSSES, ALPHA, 1e-4, ALL).tolist() == pytest.approx([0, 0.25])
    assert smooth_tchebycheff(LOSSES, ALPHA, 10, ALL).item() <= 0.225 + 10 * math.log(2)


def test_smooth_tchebycheff_leaves_out_an_objective_without_labels() -> None:
    judged = mx.array([True, False])
    assert smooth_tchebycheff(LOSSES, ALPHA, 0.1, judged).item() == pytest.approx(0.15)
    assert tchebycheff_weights(LOSSES, ALPHA, 0.1, judged).tolist() == pytest.approx([0.75, 0])


def test_the_weights_are_the_derivative() -> None:
    """Central differences in float32: a step of 0.01 leaves about 1e-4 of rounding and curvature."""
    weights = tchebycheff_weights(LOSSES, ALPHA, 0.1, ALL).tolist()
    for i, step in enumerate(mx.eye(2) * 0.01):
        up, down = (smooth_tchebycheff(LOSSES + s, ALPHA, 0.1, ALL).item() for s in (step, -step))
        assert weights[i] == pytest.approx((up - down) / 0.02, abs=2e-4)


def cases(fixture: Any) -> list[dict[str, Any]]:
    with_gamma = [case for case in fixture.content["variants"] if set(case["set"]) == {"gamma"}]
    assert len(with_gamma) == 1
    return [*fixture.content["cases"], *with_gamma]


def test_the_official_losses(loss_fixture: Any, train_step: Callable[..., TrainStep]) -> None:
    """Totals, losses and accuracies per objective, for every α and β of the fixture; α shared or repeated per pair."""
    scorer, batch = train_step().scorer, loss_fixture.batch
    for case in cases(loss_fixture):
        alpha, beta = mx.array(case["alpha"]), mx.array(case["beta_obj"])
        gamma = case.get("set", {}).get("gamma", 0.0)
        metrics = case["metrics"]
        for weights in (alpha, mx.stack([alpha] * 4)):
            logprobs = scorer(batch, weights)
            loss = preference_loss(logprobs, batch.preferred, batch.labelled, weights, beta, gamma)
            np.testing.assert_allclose(loss.total.item(), case["total_loss"], rtol=1e-5)
            expected = [metrics["loss_safe"], metrics["loss_help"]]
            np.testing.assert_allclose(np.array(loss.per_objective), expected, rtol=1e-5)
            accuracy = (loss.correct / loss.labelled).tolist()
            assert accuracy == [metrics["rewards_safe/accuracies"], metrics["rewards_help/accuracies"]]
            if "logps_response0" in case:
                expected = [case["logps_response0"], case["logps_response1"]]
                np.testing.assert_allclose(np.array(logprobs), expected, rtol=1e-5)
