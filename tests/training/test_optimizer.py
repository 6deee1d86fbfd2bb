import mlx.core as mx
import mlx.nn as nn
import pytest

from parm_mlx.training.optimizer import Optimizer, learning_rate


def test_learning_rates_by_hand() -> None:
    """Warm-up 2 of 6: 0, 1/2, then (1 + cos(π i / 4)) / 2 for i = 0 … 3."""
    rates = [learning_rate(step, peak=1.0, warmup=2, steps=6) for step in range(6)]
    assert rates == pytest.approx([0, 0.5, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_the_official_rates() -> None:
    rates = [learning_rate(step, peak=5e-4, warmup=1, steps=3) for step in range(3)]
    assert rates == pytest.approx([0, 5e-4, 2.5e-4])


def test_a_warm_up_longer_than_the_run() -> None:
    assert [learning_rate(step, peak=1.0, warmup=20, steps=4) for step in range(4)] == [0, 0.05, 0.1, 0.15]


def model(value: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = mx.array([[value]])
    return layer


def test_the_first_update_by_hand() -> None:
    """Bias correction makes the first step lr · sign(g); decay takes lr · wd · w: 2 - 0.1 · 0.5 · 2 - 0.1 = 1.8."""
    layer = model(2.0)
    optimizer = Optimizer(layer, peak=0.1, warmup=0, steps=10, weight_decay=0.5)
    rate, norm = optimizer.update(0, {"weight": mx.array([[0.25]])})
    assert (rate, norm.item()) == (0.1, 0.25)
    assert layer.weight.item() == pytest.approx(1.8, abs=1e-6)


def test_w2_may_learn_faster() -> None:
    """Ten times the rate is ten times the step, decay included: 2 - 1 · 0.5 · 2 - 1 = 0, and 1.8 for the others."""
    layer = nn.Module()
    layer.w1, layer.inner = mx.array([2.0]), nn.Module()
    layer.inner.w2 = mx.array([2.0])
    optimizer = Optimizer(layer, peak=0.1, warmup=0, steps=10, weight_decay=0.5, w2_peak=1.0)
    optimizer.update(0, {"w1": mx.array([0.25]), "inner": {"w2": mx.array([0.25])}})
    assert layer.w1.item() == pytest.approx(1.8, abs=1e-6)
    assert layer.inner.w2.item() == pytest.approx(0, abs=1e-5)


def test_rows_of_added_objectives_learn_faster() -> None:
    """Old rows as ever, 1.8; the last one five times that step: 2 - 5 · 0.2 = 1. With w2_peak twice as far: 1.6, 0."""
    for w2_peak, expected in ((None, [1.8, 1.8, 1.0]), (0.2, [1.6, 1.6, 0.0])):
        layer = nn.Module()
        layer.inner = nn.Module()
        layer.inner.w2 = mx.full((3, 2), 2.0)
        optimizer = Optimizer(layer, peak=0.1, warmup=0, steps=10, weight_decay=0.5, w2_peak=w2_peak, added=1)
        optimizer.update(0, {"inner": {"w2": mx.full((3, 2), 0.25)}})
        assert layer.inner.w2[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_large_gradients_are_clipped_to_norm_one() -> None:
    """Adam forgets a constant scale, so the clipped norm is read off its first moment: (1 - 0.9) · 1."""
    layer = model(0.0)
    optimizer = Optimizer(layer, peak=0.1, warmup=0, steps=10, weight_decay=0.0)
    _, norm = optimizer.update(0, {"weight": mx.array([[-50.0]])})
    assert norm.item() == 50
    assert optimizer.adamw.state["weight"]["m"].item() == pytest.approx(-0.1, abs=1e-6)
