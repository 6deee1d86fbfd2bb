import math
from collections.abc import Callable
from typing import Any

import pytest

from parm_mlx.training.train_step import TrainStep, validate, validation_grid

NAMES = ("safe", "help")


def test_the_grid() -> None:
    assert validation_grid(1) == [(1.0,)]
    assert validation_grid(2) == [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]
    assert len(validation_grid(3)) == 6
    assert validation_grid(4) == [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]


def test_grid_points_hold_the_official_losses(loss_fixture: Any, train_step: Callable[..., TrainStep]) -> None:
    """Cases 1 and 2 of the fixture are α = (1, 0) and (0.5, 0.5), on the grid; two equal batches change nothing."""
    ours = train_step()
    grid = validate(ours, [loss_fixture.batch] * 2, NAMES)
    assert grid is not None
    points = {point.alpha: point for point in grid}
    for case in loss_fixture.content["cases"][1:3]:
        point, metrics = points[tuple(case["alpha"])], case["metrics"]
        assert point.loss == pytest.approx(case["total_loss"], rel=1e-5)
        assert point.objective_loss == pytest.approx({name: metrics[f"loss_{name}"] for name in NAMES}, rel=1e-5)
        assert point.accuracy == {name: metrics[f"rewards_{name}/accuracies"] for name in NAMES}


def test_the_smooth_tchebycheff_loss_of_a_grid_point(loss_fixture: Any, train_step: Callable[..., TrainStep]) -> None:
    """At (0.5, 0.5) with μ = 0.1; at (1, 0) the other objective leaves exp(0) = 1 in the sum."""
    grid = validate(train_step(smoothing=0.1), [loss_fixture.batch] * 2, NAMES)
    assert grid is not None
    points = {point.alpha: point for point in grid}
    first, second = points[0.5, 0.5].objective_loss.values()
    assert points[0.5, 0.5].loss == pytest.approx(0.1 * math.log(math.exp(5 * first) + math.exp(5 * second)))
    corner = points[1.0, 0.0]
    assert corner.loss == pytest.approx(0.1 * math.log(math.exp(10 * corner.objective_loss["safe"]) + 1))


def test_there_is_no_dropout_and_training_goes_on(loss_fixture: Any, train_step: Callable[..., TrainStep]) -> None:
    ours = train_step()
    model = ours.scorer.model
    for _, module in model.named_modules():
        if hasattr(module, "_p_1"):
            module._p_1 = 0.5
    model.train()
    assert validate(ours, [loss_fixture.batch], NAMES) == validate(ours, [loss_fixture.batch], NAMES)
    assert model.training
    assert all(module.training for _, module in model.named_modules())


def test_it_can_be_stopped(loss_fixture: Any, train_step: Callable[..., TrainStep]) -> None:
    answers = iter([False, False, True])
    assert validate(train_step(), [loss_fixture.batch], NAMES, stopped=lambda: next(answers)) is None
