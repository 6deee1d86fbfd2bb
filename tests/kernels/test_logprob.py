import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.kernels import exp, logprob
from parm_mlx.kernels.logprob import (
    logprobs_and_residual,
    logprobs_and_residual_ops,
    target_logprobs,
    target_logprobs_ops,
    weighted_slope_ops,
)

N, V = 6, 37


def arguments(dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array]:
    mx.random.seed(0)
    return (4 * mx.random.normal((N, V))).astype(dtype), mx.random.randint(0, V, (N,))


def softmax(logits: mx.array) -> np.ndarray:
    """(N, V) float64."""
    weights = np.exp(np.array(logits.astype(mx.float32)).astype(np.float64))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture
def twins_for_kernels(gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels are on, and their launches are replaced by their twins. Gives the launches, as they come."""
    launches: list[str] = []

    def launch(logits: mx.array, targets: mx.array) -> list[mx.array]:
        launches.append("logprob")
        z = logits.astype(mx.float32)
        largest = z.max(axis=-1)
        return [target_logprobs_ops(logits, targets), largest, mx.exp(z - largest[:, None]).sum(axis=-1)]

    monkeypatch.setenv("PARM_MLX_KERNELS", "on")
    monkeypatch.setattr(logprob, "launch", launch)
    monkeypatch.setattr(logprob, "launch_slope", lambda *args: launches.append("slope") or weighted_slope_ops(*args))
    return launches


def test_a_row_by_hand() -> None:
    """Logits 0 and ln 3: probabilities 1/4 and 3/4; softmax − 1_y is (1/4, −1/4) for the second."""
    logits, targets = mx.log(mx.array([[1.0, 3.0]])), mx.array([1])
    logprobs, residual = logprobs_and_residual(logits, targets)
    assert target_logprobs(logits, targets).item() == pytest.approx(np.log(3 / 4))
    assert logprobs.item() == pytest.approx(np.log(3 / 4))
    assert residual.tolist()[0] == pytest.approx([1 / 4, -1 / 4])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_values_are_those_of_float64(dtype: mx.Dtype) -> None:
    logits, targets = arguments(dtype)
    p, rows = softmax(logits), np.arange(N)
    expected = np.log(p[rows, np.array(targets)])
    logprobs, residual = logprobs_and_residual(logits, targets)
    for found in (target_logprobs(logits, targets), logprobs):
        assert found.dtype == mx.float32
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-5)
    p[rows, np.array(targets)] -= 1
    assert residual.dtype == dtype
    rounding = {mx.float32: 1e-5, mx.float16: 2**-11, mx.bfloat16: 2**-8}[dtype]
    np.testing.assert_allclose(np.array(residual.astype(mx.float32)), p, rtol=rounding, atol=1e-5)


def test_large_and_masked_logits() -> None:
    logits = mx.array([[1e4, 1e4, -float("inf")], [-1e4, -1e4, -1e4]])
    targets = mx.array([0, 2])
    logprobs, residual = logprobs_and_residual(logits, targets)
    expected = [np.log(1 / 2), np.log(1 / 3)]
    np.testing.assert_allclose(np.array(logprobs), expected, rtol=1e-5)
    np.testing.assert_allclose(np.array(residual), [[-1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, -2 / 3]], rtol=1e-5)


def test_the_gradient_is_the_one_that_mlx_derives() -> None:
    logits, targets = arguments()
    weight = mx.random.normal((N,))
    _, (slope,) = mx.vjp(lambda z: target_logprobs_ops(z, targets), [logits], [weight])
    largest = logits.max(axis=-1)
    total = mx.exp(logits - largest[:, None]).sum(axis=-1)
    found = weighted_slope_ops(logits, targets, largest, total, weight)
    np.testing.assert_allclose(np.array(found), np.array(slope), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_gradients_around_the_kernel_are_those_of_the_twin(dtype: mx.Dtype, twins_for_kernels: list[str]) -> None:
    logits, targets = arguments(dtype)
    weight = mx.random.normal((N,))
    totals = [lambda z, f=f: (weight * f(z, targets)).sum() for f in (target_logprobs, target_logprobs_ops)]
    (value, slope), (expected_value, expected) = (mx.value_and_grad(total)(logits) for total in totals)
    assert twins_for_kernels == ["logprob", "slope"]
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert slope.dtype == dtype
    np.testing.assert_allclose(
        np.array(slope.astype(mx.float32)),
        np.array(expected.astype(mx.float32)),
        rtol=1e-5 if dtype == mx.float32 else 2**-7,
        atol=1e-6 if dtype == mx.float32 else 2**-8,
    )


def test_the_residual_around_the_kernel_is_that_of_the_twin(twins_for_kernels: list[str]) -> None:
    logits, targets = arguments()
    logprobs, residual = logprobs_and_residual(logits, targets)
    expected, expected_residual = logprobs_and_residual_ops(logits, targets)
    assert twins_for_kernels == ["logprob", "slope"]
    np.testing.assert_allclose(np.array(logprobs), np.array(expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.array(residual), np.array(expected_residual), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_the_exponential_is_right_to_a_rounding_error(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against double precision; MLX's own, which runs elsewhere than on a Linux CPU, is held to the same."""
    monkeypatch.setattr("parm_mlx.kernels.uses_linux_cpu", lambda: not plain)
    x = np.concatenate([np.linspace(-87, 0, 20011), -np.logspace(-9, 0, 500), [0.0]]).astype(np.float32)
    found, right = np.array(exp(mx.array(x)), np.float64), np.exp(x.astype(np.float64))
    assert np.all(np.abs(found / right - 1) <= 3e-7 + 1.2e-7 * np.abs(x))
    assert found[-1] == 1
    assert exp(mx.array([-np.inf, -1e30, -200.0])).max().item() < 2e-38
    assert np.isnan(exp(mx.array([np.nan])).item())
