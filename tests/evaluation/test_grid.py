import numpy as np
import pytest

from parm_mlx.evaluation.metrics import clusters, indistinguishable, jumps, neighbours, steps
from parm_mlx.preference import simplex_grid


def pairs(mask: np.ndarray) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(mask))]


def test_neighbours_on_a_line_are_consecutive() -> None:
    assert pairs(neighbours([(1, 0), (0.9, 0.1), (0.4, 0.6), (0, 1)])) == [(0, 1), (1, 2), (2, 3)]
    assert pairs(neighbours([(1, 0), (0, 1), (0.3, 0.7)])) == [(0, 2), (1, 2)]
    assert pairs(neighbours([(1.0,)])) == []


def test_neighbours_on_a_triangle_by_hand() -> None:
    """k = 3, step ½: three corners and three middles. Each corner has two middles beside it, and the middles touch."""
    near = neighbours(simplex_grid(3, 0.5))
    assert near.sum() / 2 == 9
    assert sorted(near.sum(axis=0)) == [2, 2, 2, 4, 4, 4]


@pytest.mark.parametrize(("k", "step"), [(2, 0.1), (3, 0.1), (4, 0.25), (6, 0.5)])
def test_neighbours_on_a_grid_differ_by_one_step(k: int, step: float) -> None:
    grid = np.array(simplex_grid(k, step))
    moved = np.abs(grid[:, None] - grid[None]).sum(axis=-1)
    assert (neighbours(grid) == np.isclose(moved, 2 * step)).all()


def differences(*columns: list[float]) -> np.ndarray:
    """Scores of two preferences that differ by a column for each objective."""
    apart = np.array(columns).T
    return np.stack([np.full(apart.shape, 7.0), 7.0 + apart], axis=1)


def test_indistinguishable_by_hand() -> None:
    """4 prompts. Mean 1 and deviation 1: ± 1.96 / 2 = 0.98, which leaves 0 out. With 1.1 it is ± 1.08."""
    assert not indistinguishable(differences([2, 0, 2, 0]))[0, 1]
    assert indistinguishable(differences([2.1, -0.1, 2.1, -0.1]))[0, 1]
    assert indistinguishable(differences([0, 0, 0, 0]))[0, 1]
    assert not indistinguishable(differences([1, 1, 1, 1]))[0, 1]
    assert not indistinguishable(differences([0, 0, 0, 0], [2, 0, 2, 0]))[0, 1], "one objective is enough to tell"
    assert indistinguishable(differences([2, 0, 2, 0])).diagonal().all()


def test_one_prompt_tells_all_that_differ_apart() -> None:
    assert indistinguishable([[[1.0], [1.0], [2.0]]]).tolist() == [
        [True, True, False],
        [True, True, False],
        [False, False, True],
    ]


def same(n: int, *groups: tuple[int, int]) -> np.ndarray:
    mask = np.eye(n, dtype=bool)
    for i, j in groups:
        mask[i, j] = mask[j, i] = True
    return mask


LINE = neighbours([(1 - i / 4, i / 4) for i in range(5)])


def test_clusters_by_hand() -> None:
    """A chain of small steps is not a cluster: 0 is like 1 and 1 like 2, but 0 is not like 2."""
    assert clusters(LINE, same(5)) == []
    assert clusters(LINE, same(5, (0, 1), (1, 2), (2, 3))) == [[0, 1], [2, 3]]
    assert clusters(LINE, same(5, (1, 2), (2, 3), (1, 3))) == [[1, 2, 3]]
    assert clusters(LINE, same(5, (0, 4))) == [], "not beside each other"
    assert clusters(LINE, np.ones((5, 5), bool)) == [[0, 1, 2, 3, 4]]


def test_clusters_on_a_triangle() -> None:
    """Grid order: (1 0 0) (½ ½ 0) (½ 0 ½) (0 1 0) (0 ½ ½) (0 0 1). The three middles are one cluster."""
    near = neighbours(simplex_grid(3, 0.5))
    assert clusters(near, same(6, (1, 2), (1, 4), (2, 4))) == [[1, 2, 4]]


def test_jumps_by_hand() -> None:
    """Steps 1, 1, 4 and 1 on a line of step ¼, so 4, 4, 16 and 4 for a unit of ‖Δα‖ = √2/4; the median is the first."""
    points = np.array([[0.0], [1], [2], [6], [7]])
    alphas = [(1 - i / 4, i / 4) for i in range(5)]
    walk = steps(alphas, points, LINE)
    unit = 4 / 2**0.5
    assert [(i, j) for i, j, _ in walk] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [step for *_, step in walk] == pytest.approx([unit, unit, 4 * unit, unit])
    assert jumps(walk, same(5)) == [walk[2]]
    assert jumps(walk, same(5, (2, 3))) == [], "a step that may be noise is none"


def test_three_times_the_median_is_not_yet_a_jump() -> None:
    points = np.array([[0.0], [1], [2], [5], [6]])
    assert jumps(steps([(1 - i / 4, i / 4) for i in range(5)], points, LINE), same(5)) == []


def test_a_wide_step_of_alpha_is_no_jump() -> None:
    """From 0.2 to 1 α moves four times as far as before, and so does the point."""
    alphas = [(0.0, 1.0), (0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (1.0, 0.0)]
    points = np.array([[10 * first] for first, _ in alphas])
    assert jumps(steps(alphas, points, neighbours(alphas)), same(5)) == []


def test_where_nothing_else_moves_any_step_is_a_jump() -> None:
    points = np.array([[0.0], [0], [0], [1], [1]])
    walk = jumps(steps([(1 - i / 4, i / 4) for i in range(5)], points, LINE), same(5))
    assert [(i, j) for i, j, _ in walk] == [(2, 3)]
    assert jumps([], same(1)) == []
