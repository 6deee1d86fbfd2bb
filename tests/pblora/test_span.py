"""Theorem 4.1 of PARM: the updates B · M · A of all cores M have r² dimensions, those of diagonal cores r.

The dimension of a span is the rank of the matrix whose rows are its updates, each flattened; the rank is read off the
singular values in float64.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from parm_mlx.pblora import PBLoRAConfig
from parm_mlx.pblora.layer import core_matrix, core_shapes

OUT, IN = 14, 11
Array = NDArray[np.float64]


def factors(rank: int, seed: int = 0) -> tuple[Array, Array]:
    """B (out, r) and A (r, in) of full rank."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(OUT, rank)), rng.normal(size=(rank, IN))


def singular_values(b: Array, cores: Iterable[Array], a: Array) -> Array:
    """Singular values, falling, of the matrix with a row vec(B · M · A) for every core M; the largest is 1."""
    values = np.linalg.svd(np.stack([(b @ core @ a).ravel() for core in cores]), compute_uv=False)
    return np.asarray(values / values[0])


def dimension(values: Array) -> int:
    """The number of singular values that are not zero, which must be a clear gap above those that are."""
    rank = int((values > 1e-12).sum())
    assert values[rank - 1] > 1e-5, "no gap: the rank is not clear"
    return rank


def units(rank: int) -> list[Array]:
    """A basis of the (r, r) matrices: E_ij, 1 in one place."""
    return [np.eye(rank**2)[i].reshape(rank, rank) for i in range(rank**2)]


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_all_cores_span_r_squared_dimensions_and_diagonal_ones_r(rank: int) -> None:
    b, a = factors(rank)
    every, diagonal = units(rank), [unit for unit in units(rank) if unit.trace() == 1]
    assert dimension(singular_values(b, every, a)) == rank**2
    assert dimension(singular_values(b, diagonal, a)) == rank
    rng = np.random.default_rng(1)
    more = [rng.normal(size=(rank, rank)) for _ in range(3 * rank**2)]
    values = singular_values(b, more, a)
    assert dimension(values) == rank**2, "no other core leaves the span"
    assert (values[rank**2 :] < 1e-14).all(), "zero to machine precision"
    values = singular_values(b, [np.diag(core.diagonal()) for core in more], a)
    assert dimension(values) == rank
    assert (values[rank:] < 1e-14).all()


def test_factors_that_lack_rank_span_less() -> None:
    """B of rank 2 and A of rank 3 allow 2 · 3 dimensions, whatever the cores are: the theorem needs full rank."""
    b, a = factors(4)
    b[:, 3], b[:, 2], a[3] = b[:, 0], b[:, 1], a[0]
    assert dimension(singular_values(b, units(4), a)) == 6


def cores(config: PBLoRAConfig, alphas: Sequence[Sequence[float]], seeds: int) -> list[Array]:
    """M(α) of the package, for random tensors and every α; products of the float32 numbers are taken in float64."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        tensors = {name: mx.array(rng.normal(size=shape)) for name, shape in core_shapes(config).items()}
        found += list(np.array(core_matrix(tensors, config, mx.array(alphas)), np.float64))
    return found


DIMENSIONS: list[tuple[dict[str, Any], int]] = [
    ({"kind": "pblora", "r1": 0, "r2": 4}, 16),
    ({"kind": "pblora", "r1": 2, "r2": 2}, 4 + 4),  # W1 and W2, each in its block
    ({"kind": "pblora", "r1": 3, "r2": 2}, 9 + 4),
    ({"kind": "moslora", "r1": 0, "r2": 4}, 16),
    ({"kind": "svd-lora", "r1": 2, "r2": 2}, 4),
    ({"kind": "svd-lora", "r1": 1, "r2": 2}, 3),
    ({"kind": "lora", "r1": 4, "r2": 0}, 1),
]


@pytest.mark.parametrize(("settings", "expected"), DIMENSIONS)
def test_the_cores_of_the_package_over_tensors_and_preferences(settings: dict[str, Any], expected: int) -> None:
    config = PBLoRAConfig(objectives=("a", "b"), **settings)
    b, a = factors(config.rank)
    alphas = np.random.default_rng(2).dirichlet([1, 1], 5).tolist()
    values = singular_values(b, cores(config, alphas, seeds=20), a)
    assert dimension(values) == expected
    assert (values[expected:] < 1e-14).all()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "pblora", "r1": 2, "r2": 3}, 5),
        ({"kind": "moslora", "r1": 0, "r2": 3}, 5),
        ({"kind": "svd-lora", "r1": 2, "r2": 5}, 5),
        ({"kind": "lora", "r1": 3, "r2": 0}, 1),
    ],
)
def test_one_trained_adapter_moves_in_k_dimensions(settings: dict[str, Any], expected: int) -> None:
    """With its tensors fixed, α alone reaches k dimensions of k objectives, by W2's k rows; a plain LoRA one."""
    config = PBLoRAConfig(objectives=tuple("abcde"), **settings)
    b, a = factors(config.rank)
    alphas = np.random.default_rng(2).dirichlet([1] * 5, 40).tolist()
    values = singular_values(b, cores(config, alphas, seeds=1), a)
    rank = int((values > 1e-5).sum())  # α is rounded to float32, and αᵀ W2 with it
    assert rank == expected
    assert (values[rank:] < 1e-6).all()
