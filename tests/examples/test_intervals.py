"""Intervals over questions and seeds, against what is known by hand and by simulation."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parm_mlx.answers.store import Result
from parm_mlx.evaluation.summary import Run

NAMES = ("warmth", "focus")
ALPHAS = (None, (1.0, 0.0), (0.0, 1.0))


def made(name: str, values: Any) -> Run:
    """A run with these scores, (questions, preferences, objectives), the base's first."""
    results = [Result(f"q{i:02}", "?", alpha, 0, "", 5, "stop") for i in range(len(values)) for alpha in ALPHAS]
    rows = np.asarray(values, float).reshape(len(results), 2).tolist()
    scores = {result.key: dict(zip(NAMES, row, strict=True)) for result, row in zip(results, rows, strict=True)}
    return Run(name, NAMES, {each: f"builtin:{each}" for each in NAMES}, results, scores)


def warm(name: str, raw: list[float]) -> Run:
    """A run whose answers at warmth = 1 have these raw scores of warmth, one for each question."""
    values = np.zeros((len(raw), 3, 2))
    values[:, :, :] = np.random.default_rng(0).normal(size=values.shape)
    values[:, 1, 0] = raw
    return made(name, values)


def raw(*names: str) -> Any:
    """The mean raw score of :func:`warm`, of each run."""
    return lambda found: [found[name]["points"][0]["raw"]["warmth"] for name in names]


def test_over_seeds_by_hand(scripts: SimpleNamespace) -> None:
    """Mean 2, standard deviation 1: half the interval is t(2 degrees of freedom, 97.5 %) / √3 = 4.303 / 1.7321."""
    found = scripts.intervals.over_seeds([1.0, 2.0, 3.0])
    assert found["value"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(2.4843, abs=1e-4)
    assert found["low"] == pytest.approx(4.0 - found["high"])
    assert scripts.intervals.shown(found) == "2.00 ± 2.48"
    assert scripts.intervals.over_seeds([5.0]) == {"value": 5.0, "low": 5.0, "high": 5.0}


def test_student_t_is_that_of_the_tables(scripts: SimpleNamespace) -> None:
    """P(|T| ≤ t) of Student's t with n − 1 degrees of freedom, integrated."""
    from math import gamma, pi, sqrt

    for count, t in scripts.intervals.T_95.items():
        if (df := count - 1) == 0:
            continue
        x = np.linspace(-t, t, 200_001)
        density = gamma((df + 1) / 2) / (sqrt(df * pi) * gamma(df / 2)) * (1 + x**2 / df) ** (-(df + 1) / 2)
        assert float(np.trapezoid(density, x)) == pytest.approx(0.95, abs=1e-4), count


def test_of_a_mean_over_questions_it_is_that_of_the_mean(scripts: SimpleNamespace) -> None:
    """The jackknife of a mean of n values is s / √n: here s = √(10 / 3) of 1, 2, 4, 5 and n = 4, with t = 3.182."""
    sweeps = scripts.intervals.Sweeps([warm("one", [1.0, 2.0, 4.0, 5.0])], 10)
    found = sweeps.interval(raw("one"))
    assert found["value"] == 3.0
    assert found["high"] - 3.0 == pytest.approx(3.182 * math.sqrt(10 / 3) / 2)


def test_seeds_and_questions_add_up_in_squares(scripts: SimpleNamespace) -> None:
    """Two seeds with the same scores but for a step of 1: s / √2 = 0.5 over the seeds, with t = 12.706."""
    first, second = [1.0, 2.0, 4.0, 5.0], [2.0, 3.0, 5.0, 6.0]
    sweeps = scripts.intervals.Sweeps([warm("a", first), warm("b", second)], 10)
    found = sweeps.interval(raw("a", "b"))
    assert found["value"] == 3.5
    assert found["high"] - 3.5 == pytest.approx(math.hypot(12.706 * 0.5, 3.182 * math.sqrt(10 / 3) / 2))
    less = sweeps.interval(lambda found: [raw("b")(found)[0] - raw("a")(found)[0]])
    assert list(less.values()) == pytest.approx([1.0] * 3), "the same questions: their difficulty falls out"


def test_groups_of_questions_leave_each_out_once(scripts: SimpleNamespace) -> None:
    """50 questions in 20 groups: near s / √n, as groups are not quite equal."""
    values = np.random.default_rng(1).normal(size=50)
    sweeps = scripts.intervals.Sweeps([warm("one", values.tolist())], 10)
    found = sweeps.interval(raw("one"))
    assert found["high"] - found["value"] == pytest.approx(2.093 * values.std(ddof=1) / math.sqrt(50), rel=0.35)


def test_one_question_says_nothing_of_others(scripts: SimpleNamespace) -> None:
    found = scripts.intervals.Sweeps([warm("one", [1.0])], 10).interval(raw("one"))
    assert found == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_interval_of_a_hypervolume_holds_the_true_one(scripts: SimpleNamespace) -> None:
    """120 draws of 40 questions: the interval of one seed's mean inner product holds the true one in about 95 %."""
    rng, held = np.random.default_rng(2), 0
    truth = np.array([[0.0, 0.0], [2.0, -1.0], [-1.0, 2.0]])
    for _ in range(120):
        difficulty = rng.normal(size=(40, 1, 2))
        run = made("one", truth + difficulty + 0.5 * rng.normal(size=(40, 3, 2)))
        found = scripts.intervals.Sweeps([run], 1).spread([run], "corner_difference", "warmth")
        held += found["low"] <= 3 / math.sqrt(1.25) <= found["high"]
    assert held / 120 > 0.88
