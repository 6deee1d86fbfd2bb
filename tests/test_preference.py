import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parm_mlx.errors import PreferenceError
from parm_mlx.preference import (
    check_beta,
    default_objectives,
    format_alpha,
    parse_alpha,
    parse_betas,
    parse_objectives,
    sample_dirichlet,
    simplex_grid,
)

NAMES = ("helpful", "harmless")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0.7,0.3", (0.7, 0.3)),
        (" 0.7 , 0.3 ", (0.7, 0.3)),
        ("1,0", (1.0, 0.0)),
        ("1,1", (0.5, 0.5)),
        ("3,1", (0.75, 0.25)),
        ("1e308,1e308", (0.5, 0.5)),
        ("1e-320,0", (1.0, 0.0)),
        ("helpful=0.7,harmless=0.3", (0.7, 0.3)),
        ("harmless=1", (0.0, 1.0)),
        ("helpful=0.7 harmless=0.3", (0.7, 0.3)),
        ("harmless = 1 ,  helpful= 3", (0.75, 0.25)),
        ([0.7, 0.3], (0.7, 0.3)),
        ((2, 2), (0.5, 0.5)),
        (np.array([1, 3]), (0.25, 0.75)),
        (mx.array([1.0, 3.0]), (0.25, 0.75)),
        ({"harmless": 0.3, "helpful": 0.7}, (0.7, 0.3)),
    ],
)
def test_alpha_is_read_and_normalised(spec: object, expected: tuple[float, ...]) -> None:
    assert parse_alpha(spec, NAMES) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("0.5", "alpha has 1 weight"),
        ("0.2,0.3,0.5", "alpha has 3 weight"),
        ("-0.1,1.1", "the weight of helpful must be a finite number ≥ 0, got -0.1"),
        ("nan,1", "the weight of helpful must be"),
        ("inf,1", "the weight of helpful must be"),
        ("0,0", "all zero"),
        ("", "alpha is empty"),
        ("a,b", "'a' in alpha is not a number"),
        ("0.5,,0.5", "'' in alpha is not a number"),
        ("kind=1", "unknown objective 'kind'"),
        ("helpful=1,helpful=0", "objective 'helpful' is given twice"),
        ("helpful=1,0.3", "mixes names and bare numbers"),
        ("helpful=x", "'x' in alpha is not a number"),
        ("helpful=1 kind=0", "'1 kind=0' in alpha is not a number"),
        ("base", "'base' is the base model without its guide"),
        ([], "alpha has 0 weight"),
        (0.5, "alpha must be a list of weights"),
        ([None, 1], "None in alpha is not a number"),
        ({"kind": 1.0}, "unknown objective 'kind'"),
    ],
)
def test_wrong_alpha_is_refused_with_the_objectives(spec: object, reason: str) -> None:
    with pytest.raises(PreferenceError) as caught:
        parse_alpha(spec, NAMES)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "helpful, harmless (k=2)" in str(caught.value)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6))
def test_any_weights_end_on_the_simplex(weights: list[float]) -> None:
    alpha = parse_alpha(weights, default_objectives(len(weights)))
    assert all(weight >= 0 for weight in alpha)
    assert math.fsum(alpha) == pytest.approx(1)


def test_alpha_is_shown_with_its_names() -> None:
    assert format_alpha((0.7, 0.3), NAMES) == "helpful=0.7 harmless=0.3"


def test_objectives_are_named() -> None:
    assert default_objectives(2) == ("objective_1", "objective_2")
    assert parse_objectives(" a , b ") == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "k", "reason"),
    [
        ("a,a", None, "named twice"),
        ("a,", None, "empty"),
        ("", None, "empty"),
        ("a,b", 3, "2 objective"),
        (["a=b"], None, "'='"),
        (["\x1b[31mwarm"], None, "control characters"),
    ],
)
def test_wrong_objective_names_are_refused(spec: str, k: int | None, reason: str) -> None:
    with pytest.raises(PreferenceError, match=reason):
        parse_objectives(spec, k)


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf, "x", None, 1e-300, 1e300, 10**400])
def test_wrong_beta_is_refused(beta: object) -> None:
    with pytest.raises(PreferenceError, match="beta must be a number from"):
        check_beta(beta)


def test_one_beta_or_one_for_each_guide() -> None:
    assert parse_betas("0.5", 2) == parse_betas(0.5, 2) == (0.5,)
    assert parse_betas("0.5, 2", 2) == parse_betas([0.5, 2], 2) == (0.5, 2.0)
    for spec, guides, reason in (
        ("1,2", 1, "give one$"),
        ("1,2", 3, "each of the 3"),
        ("1,", 2, "got ''$"),
        ([], 1, "0 num"),
    ):
        with pytest.raises(PreferenceError, match=reason):
            parse_betas(spec, guides)


def test_the_grid_of_two_objectives_has_eleven_points_at_a_tenth() -> None:
    grid = simplex_grid(2, 0.1)
    assert np.array(grid) == pytest.approx(np.array([(1 - i / 10, i / 10) for i in range(11)]))
    assert grid[0] == (1.0, 0.0)
    assert grid[-1] == (0.0, 1.0)


@given(st.integers(1, 5), st.integers(1, 8))
def test_the_grid_has_every_point_once(k: int, n: int) -> None:
    grid = simplex_grid(k, 1 / n)
    assert len(set(grid)) == len(grid) == math.comb(n + k - 1, k - 1)
    assert all(math.fsum(point) == pytest.approx(1) for point in grid)


@pytest.mark.parametrize(
    ("k", "step"), [(2, 0.3), (2, 0), (2, -0.5), (2, math.nan), (2, 1.5), (0, 0.5), (2, 1e-9), (1, 1e-320), (5, 1 / 64)]
)
def test_a_wrong_grid_is_refused(k: int, step: float) -> None:
    with pytest.raises(PreferenceError):
        simplex_grid(k, step)


def test_a_grid_that_is_too_large_says_its_size() -> None:
    """C(64 + 4, 4) = 814,385."""
    with pytest.raises(PreferenceError, match="for 5 objectives has 814,385 preferences, more than 10,000"):
        simplex_grid(5, 1 / 64)


def test_dirichlet_samples_have_the_moments_of_the_distribution() -> None:
    """Dirichlet(p, …, p) with k = 3, p = 0.5: mean 1/3, variance (1/3)(2/3)/(3·0.5 + 1) = 0.0889."""
    samples = sample_dirichlet(np.random.default_rng(0), 0.5, 3, 20000)
    assert samples.dtype == np.float32
    assert samples.sum(1) == pytest.approx(1, abs=1e-6)
    assert samples.mean(0) == pytest.approx(1 / 3, abs=0.01)
    assert samples.var(0) == pytest.approx(0.0889, abs=0.003)


@pytest.mark.parametrize("concentration", [0, -1, math.nan, 1e-300, 1e300])
def test_a_wrong_dirichlet_is_refused(concentration: float) -> None:
    with pytest.raises(PreferenceError, match="Dirichlet"):
        sample_dirichlet(np.random.default_rng(0), concentration, 2, 1)
