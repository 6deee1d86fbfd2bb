"""How tokens are chosen: the ranges of the settings, and filters at their ends."""

from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.errors import ConfigError
from parm_mlx.guidance.sampling import Sampling

LOGITS = mx.array([[0.5, 2.0, -1.0, 1.5, 0.0]])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temp": -1}, "temp must be 0 or a number from 1e-06 to 100, got -1"),
        ({"temp": float("nan")}, "temp must be"),
        ({"temp": float("inf")}, "temp must be"),
        ({"temp": 1e-300}, "temp must be"),
        ({"top_p": 1.5}, "top_p must be a number from 0 to 1, got 1.5"),
        ({"min_p": float("nan")}, "min_p must be a number from 0 to 1, got nan"),
        ({"top_k": -1}, "top_k must be a whole number from 0 to 2147483647, got -1"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_k": 10**30}, "top_k must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"temp": -1, "seed": -1}, "; seed must be"),
    ],
)
def test_numbers_out_of_their_range_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**settings)
    assert reason in str(caught.value)


@pytest.mark.parametrize("seed", [0, 2**53 + 1, 2**64 - 1])
def test_every_seed_of_the_range_draws(seed: int) -> None:
    assert Sampling(temp=1.0, seed=seed).sampler()(LOGITS).item() in range(5)


@pytest.mark.parametrize("top_k", [5, 6, 2**31 - 1])
def test_as_many_as_there_are_filters_nothing(top_k: int) -> None:
    free, kept = Sampling(temp=1.0), Sampling(temp=1.0, top_k=top_k)
    assert mx.array_equal(free.distribution(LOGITS), kept.distribution(LOGITS))


def test_one_fewer_drops_the_least_likely() -> None:
    dropped = mx.isinf(Sampling(temp=1.0, top_k=4).distribution(LOGITS))
    assert dropped.tolist() == [[False, False, True, False, False]]


@pytest.mark.parametrize(
    "settings", [{"temp": 1e-6}, {"temp": 100}, {"temp": 1, "top_p": 1e-300}, {"temp": 1, "min_p": 1}]
)
def test_distributions_at_the_ends_have_no_nan(settings: dict[str, Any]) -> None:
    distribution = Sampling(**settings).distribution(LOGITS)
    assert not mx.isnan(distribution).any()
    assert mx.exp(distribution).sum().item() == pytest.approx(1, abs=1e-5)


def test_kept_sharpness_is_that_of_the_base_where_base_and_guide_agree() -> None:
    """Twice the log-probabilities at twice the temperature: β = 1 and a guide that is the base."""
    asked = Sampling(temp=0.7, keep_sharpness=True)
    guided = asked.guided(2.0)
    assert guided == Sampling(temp=1.4)
    alone = asked.distribution(LOGITS)
    assert mx.allclose(guided.distribution(2 * LOGITS), alone, atol=1e-6)
    assert Sampling(temp=0.7).guided(2.0) == Sampling(temp=0.7)
