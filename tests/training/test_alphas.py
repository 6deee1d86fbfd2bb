from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parm_mlx.errors import ConfigError
from parm_mlx.pblora import read_adapter
from parm_mlx.training.alphas import among_agreeing
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.run import TrainResult, train

Run = Callable[..., TrainResult]


def test_weight_goes_to_those_that_agree() -> None:
    """Objectives 0 and 1 prefer the first response, 2 the second, 3 did not judge: 3 : 1, or all on objective 2."""
    alpha = np.tile(np.array([0.3, 0.1, 0.4, 0.2], "float32"), (4000, 1))
    preferred = np.tile([0, 0, 1, 1], (4000, 1))
    labelled = np.tile([1, 1, 0.5, 0], (4000, 1))
    found = among_agreeing(np.random.default_rng(0), alpha, preferred, labelled)
    assert found.dtype == np.float32
    first = found[:, 0] > 0
    np.testing.assert_allclose(found[first], np.tile([0.75, 0.25, 0, 0], (first.sum(), 1)), atol=1e-6)
    np.testing.assert_allclose(found[~first], np.tile([0.0, 0, 1, 0], ((~first).sum(), 1)))
    assert first.mean() == pytest.approx(0.5, abs=0.03)  # each side has weight 0.4


def test_sides_are_drawn_by_their_weight() -> None:
    alpha = np.tile(np.array([0.2, 0.8]), (4000, 1))
    found = among_agreeing(np.random.default_rng(0), alpha, np.tile([0, 1], (4000, 1)), np.ones((4000, 2)))
    assert set(map(tuple, found.tolist())) == {(1.0, 0.0), (0.0, 1.0)}
    assert found[:, 1].mean() == pytest.approx(0.8, abs=0.03)


def test_without_weight_on_a_label_alpha_stays() -> None:
    alpha = np.array([[1.0, 0.0], [0.5, 0.5]])
    found = among_agreeing(np.random.default_rng(0), alpha, np.zeros((2, 2)), np.array([[0, 1], [0, 1]]))
    assert found.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_one_alpha_per_step_cannot_be_among_those_that_agree() -> None:
    given: dict[str, Any] = {"model": "bundled", "data": "d", "out": "o", "alpha_among": "agreeing"}
    assert TrainConfig(**given).alpha_among == "agreeing"
    with pytest.raises(ConfigError, match="alpha_among is 'agreeing', which needs one alpha per pair"):
        TrainConfig(**given, alpha_per="batch")


def test_training_among_those_that_agree(
    official: Path, tmp_path: Path, write_rows: Callable[..., Path], rows: list[dict[str, Any]]
) -> None:
    """It changes what is learned, is decided by the seed, and is recorded."""
    for i, row in enumerate(rows):
        row["preferred"] |= {"odd": i % 2}
    data = str(write_rows(rows))

    def run(out: str, **settings: Any) -> TrainResult:
        given = {"model": str(official / "arm_base"), "data": data, "out": str(tmp_path / out), "val_batches": 0}
        given |= {"iters": 4, "batch_size": 4, "warmup": 0, "steps_per_save": 2, "seed": 3}
        return train(TrainConfig(**(given | settings)))

    def tensors(result: TrainResult) -> dict[str, list[Any]]:
        return {name: tensor.tolist() for name, tensor in read_adapter(result.out)[1].items()}

    agreeing = run("agreeing", alpha_among="agreeing")
    assert read_adapter(agreeing.out)[0].training["settings"]["alpha_among"] == "agreeing"
    assert tensors(run("again", alpha_among="agreeing")) == tensors(agreeing)
    assert tensors(run("all")) == tensors(run("named", alpha_among="all")) != tensors(agreeing)
