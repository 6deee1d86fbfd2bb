"""Every expected number is derived by hand, or by the second implementation of the hypervolume below."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from parm_mlx.evaluation import metrics
from parm_mlx.evaluation.metrics import (
    bootstrap,
    corner_difference,
    front,
    hypervolume,
    hypervolumes,
    interval,
    mip,
    mip_gain,
    ranks,
    spacing,
    spearman,
)

ALPHAS = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


def inclusion_exclusion(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """|∪ box_i| = Σ over non-empty sets T of (−1)^(|T| + 1) · |∩ of T|; boxes reach from the reference to a point.

    The intersection of boxes ends at the smallest coordinate. A box that does not rise above the reference is empty.
    """
    ends, signs = np.full((1, len(reference)), np.inf), np.array([-1.0])
    for point in np.maximum(points, reference):
        ends, signs = np.concatenate([ends, np.minimum(ends, point)]), np.concatenate([signs, -signs])
    return float((signs[1:] * (ends[1:] - reference).prod(axis=1)).sum())


def sphere(rng: np.random.Generator, n: int, k: int) -> NDArray[np.float64]:
    """A front of n points: none dominates another."""
    points = np.abs(rng.standard_normal((n, k)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("k", range(2, 7))
def test_the_hypervolume_equals_that_of_a_second_implementation(k: int) -> None:
    """120 fronts for each k: convex ones, clouds that reach below the reference, and integers with ties and twins."""
    rng = np.random.default_rng(k)
    for number in range(120):
        n = int(rng.integers(1, 15))
        kinds = (sphere(rng, n, k), rng.standard_normal((n, k)), rng.integers(-2, 3, (n, k)).astype(float))
        points, reference = kinds[number % 3], rng.uniform(-3, 0, k)
        expected = inclusion_exclusion(points, reference)
        assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_hypervolume_of_large_fronts_equals_that_of_a_second_implementation() -> None:
    """18 points: the library takes another way than for few."""
    rng = np.random.default_rng(0)
    for k in (5, 6):
        points, reference = sphere(rng, 18, k), np.full(k, -1.0)
        assert hypervolume(points, reference) == pytest.approx(inclusion_exclusion(points, reference), rel=1e-8)


def test_hypervolumes_by_hand() -> None:
    assert hypervolume([[2.0], [5.0]], [1.0]) == 4
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [0, 0]) == 6, "3 + 2 + 1: columns of width 1"
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [1, 1]) == 1, "the corners touch the reference and add nothing"
    assert hypervolume([[1, 3], [2, 2], [3, 1], [1, 1], [2, 2]], [0, 0]) == 6, "dominated points and twins add nothing"
    assert hypervolume([[1, 1, 2], [2, 1, 1]], [0, 0, 0]) == 3, "2 + 2, less the unit cube they share"
    assert hypervolume([[-1, 9]], [0, 0]) == 0
    assert hypervolume([[1] * 12], [-1] * 12) == 2**12


def test_twelve_objectives_by_hand() -> None:
    """Point i is 2 in objective i and 1 elsewhere: the unit cube, and a unit more for each of the 12."""
    assert hypervolume(np.ones((12, 12)) + np.eye(12), np.zeros(12)) == pytest.approx(13)


def test_many_objectives_are_approximated_for_the_bootstrap() -> None:
    points = sphere(np.random.default_rng(1), 18, 12)
    reference = np.full(12, -2.0)
    values, exact = hypervolumes(np.stack([points, points]), reference)
    assert not exact
    assert hypervolumes(points[None], reference, metrics.VALUE)[1]
    assert values == pytest.approx(hypervolume(points, reference), rel=2e-2)


def test_what_lies_below_the_reference_does_not_make_a_front_large() -> None:
    points = np.concatenate([sphere(np.random.default_rng(2), 5, 12), np.full((500, 12), -3.0)])
    values, exact = hypervolumes(points[None], np.full(12, -2.0))
    assert exact
    assert values[0] == pytest.approx(inclusion_exclusion(points[:5], np.full(12, -2.0)))


def test_values_beyond_their_limit_are_approximated(monkeypatch: pytest.MonkeyPatch) -> None:
    points, reference = sphere(np.random.default_rng(3), 12, 6), np.full(6, -2.0)
    exact = hypervolume(points, reference)
    monkeypatch.setattr(metrics, "VALUE", metrics.VALUE._replace(work=10.0))
    assert not hypervolumes(points[None], reference, metrics.VALUE)[1]
    assert hypervolume(points, reference) == pytest.approx(exact, rel=2e-3)
    assert hypervolume(points, reference) != exact


def test_few_objectives_are_always_exact() -> None:
    points = sphere(np.random.default_rng(4), 1001, 5)
    assert hypervolumes(points[None], np.full(5, -2.0))[1]


def test_front_by_hand() -> None:
    """(2, 1) is dominated by (2, 2); of the twins (0, 5) the first counts."""
    assert front([[0, 5], [2, 1], [2, 2], [0, 5], [3, 0]]).tolist() == [0, 2, 4]
    assert front([[1.0], [3.0], [2.0]]).tolist() == [1]
    assert front(np.zeros((0, 2))).tolist() == []


def test_mip_by_hand() -> None:
    """1·2 + (½·1 + ½·1) + 1·3 = 6, over 3 preferences. The mean point is (1, 1), whose MIP is 1."""
    points = np.array([[2.0, -1], [1, 1], [0, 3]])
    assert mip(ALPHAS, points) == pytest.approx(2)
    assert mip_gain(ALPHAS, points) == pytest.approx(1)
    assert mip(ALPHAS, np.stack([points, 2 * points, points[::-1]])) == pytest.approx([2, 4, 0])
    assert mip_gain(ALPHAS, points[::-1]) == pytest.approx(-1)
    assert mip_gain(ALPHAS, np.ones((3, 2))) == 0


def test_ranks_by_hand() -> None:
    assert ranks([3, 1, 1, 2]).tolist() == [4, 1.5, 1.5, 3]
    assert ranks([5, 5, 5]).tolist() == [2, 2, 2]
    assert ranks([[2, 1], [1, 2]]).tolist() == [[2, 1], [1, 2]]
    assert ranks([0.1 + 0.2, 0.3, 0.0]).tolist() == [2.5, 2.5, 1], "rounding is not an order"


def test_spearman_by_hand() -> None:
    """Ranks 1 2 3 4 and 1 2.5 2.5 4. Centred: (−1.5 −.5 .5 1.5)·(−1.5 0 0 1.5) = 4.5, over √(5 · 4.5)."""
    weights = [0.0, 0.1, 0.5, 1.0]
    assert spearman(weights, [1, 2, 2, 5]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert spearman(weights, [-8, 0, 100, 101]) == pytest.approx(1)
    assert spearman(weights, [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman(weights, [7, 7, 7, 7]) == 0
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) == 0
    assert spearman(weights, [[1, 2, 3, 4], [1, 1, 1, 1]]) == pytest.approx([1, 0])


def test_spearman_without_ties_is_the_formula_of_rank_differences() -> None:
    """ρ = 1 − 6 Σd² / (n(n² − 1))."""
    rng = np.random.default_rng(0)
    for n in (2, 5, 11):
        first, second = rng.permutation(n), rng.permutation(n)
        expected = 1 - 6 * float(((first - second) ** 2).sum()) / (n * (n * n - 1))
        assert spearman(first, second) == pytest.approx(expected)


def test_spacing_by_hand() -> None:
    """City-block distances 2, 4 and 6: nearest ones 2, 2 and 4, mean 8/3. √((4/9 + 4/9 + 16/9) / 2) = √(4/3)."""
    assert spacing([[0, 3], [1, 2], [3, 0]]) == pytest.approx(math.sqrt(4 / 3))
    assert spacing([[0, 2], [1, 1], [2, 0]]) == 0
    assert spacing([[0, 2]]) == 0
    assert spacing(np.zeros((0, 2))) == 0


def test_corner_differences_by_hand() -> None:
    """k = 2: 5 − 1 and 7 − 3. k = 3: r_1 is 6 at its corner, 1 and 3 at the others: 6 − 2; then 5 − ½, and 0 − 1."""
    assert corner_difference(ALPHAS, [[5, 3], [9, 9], [1, 7]]).tolist() == [4, 4]
    nearly = [(0.2, 0.8), (0.9, 0.1), (0.5, 0.5)]
    assert corner_difference(nearly, [[1, 7], [5, 3], [9, 9]]).tolist() == [4, 4], "not a full grid: the nearest ones"
    three = [[6, 1, 1], [1, 5, 1], [3, 0, 0]]
    assert corner_difference(np.eye(3), three).tolist() == [4, 4.5, -1]
    assert corner_difference(np.eye(3), [three, three]).shape == (2, 3)


def test_bootstrap_draws_prompts() -> None:
    """The standard deviation of a mean is that of the prompts over √P; what a prompt has in common cancels."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((25, 3, 2))
    scores[:, 1] = scores[:, 0] + 2
    samples = bootstrap(scores, 4000, seed=1)
    assert samples.shape == (4000, 3, 2)
    assert samples.std(axis=0) == pytest.approx(scores.std(axis=0) / 5, rel=0.06)
    assert samples.mean(axis=0) == pytest.approx(scores.mean(axis=0), abs=0.02)
    assert samples[:, 1] - samples[:, 0] == pytest.approx(2)
    assert (samples == bootstrap(scores, 4000, seed=1)).all()
    assert (samples != bootstrap(scores, 4000, seed=2)).any()


def test_bootstrap_samples_are_means_of_as_many_prompts() -> None:
    """Prompts score 1, 10, 100 and 1000: the digits of a sum count which of them were drawn, and add up to 4."""
    sums = np.rint(bootstrap([1.0, 10.0, 100.0, 1000.0], 50, seed=0) * 4).astype(int)
    assert {sum(map(int, str(total))) for total in sums} == {4}
    assert len(set(sums)) > 5


def test_bootstrap_of_one_prompt_is_that_prompt() -> None:
    assert bootstrap([[1.5, -2.0]], 5, seed=0).tolist() == [[1.5, -2.0]] * 5


def test_intervals_by_hand() -> None:
    """Of 0, 1, …, 1000 the percentiles 2.5 and 97.5 are 25 and 975."""
    assert interval(500, np.arange(1001)) == pytest.approx({"value": 500, "low": 25, "high": 975})
    assert interval(10, np.arange(1001)) == pytest.approx({"value": 10, "low": 10, "high": 975})
    assert interval(990, np.arange(1001)) == pytest.approx({"value": 990, "low": 25, "high": 990})
