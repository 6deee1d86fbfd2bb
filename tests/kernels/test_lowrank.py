import mlx.core as mx
import numpy as np
import pytest

from parm_mlx.kernels import lowrank
from parm_mlx.kernels.lowrank import lowrank_slope_ops, lowrank_update, lowrank_update_ops

B, L, IN, OUT, R = 3, 2, 5, 7, 4


def arguments(dtype: mx.Dtype = mx.float32, cores: int = B) -> list[mx.array]:
    """y, x, a, core, b."""
    mx.random.seed(0)
    shapes = [(B, L, OUT), (B, L, IN), (R, IN), (cores, R, R), (OUT, R)]
    return [mx.random.normal(shape).astype(dtype) for shape in shapes]


@pytest.fixture
def launches(gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels are on, and their launches are replaced by their twins. Gives the launches, as they come."""
    found: list[str] = []
    monkeypatch.setenv("PARM_MLX_KERNELS", "on")
    monkeypatch.setattr(lowrank, "launch", lambda *args: found.append("update") or lowrank_update_ops(*args))
    monkeypatch.setattr(lowrank, "launch_slope", lambda *args: found.append("slope") or lowrank_slope_ops(*args))
    return found


@pytest.mark.parametrize("cores", [1, B])
def test_the_equation_one_number_at_a_time(cores: int) -> None:
    """In float64: y_o + Σ_jki x_i a_ji core_jk b_ok, each row with its core."""
    arrays = arguments(cores=cores)
    y, x, a, core, b = (np.array(array).astype(np.float64) for array in arrays)
    expected = y.copy()
    for row, place, o in np.ndindex(B, L, OUT):
        m = core[row if cores > 1 else 0]
        for i, j, k in np.ndindex(IN, R, R):
            expected[row, place, o] += x[row, place, i] * a[j, i] * m[j, k] * b[o, k]
    np.testing.assert_allclose(np.array(lowrank_update(*arrays)), expected, rtol=1e-5, atol=1e-5)


def test_a_row_with_a_zero_core_is_that_row_of_y() -> None:
    y, x, a, core, b = arguments()
    core[1] = 0
    updated = lowrank_update(y, x, a, core, b)
    assert mx.array_equal(updated[1], y[1])
    assert not mx.array_equal(updated[0], y[0])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("adapter", [mx.float32, None])
def test_the_result_has_the_dtype_of_y(dtype: mx.Dtype, adapter: mx.Dtype | None) -> None:
    """3 + 2 · 5 · 7 · 11 = 773, which is 772 in bfloat16 (8 significant bits, steps of 4, halfway to even)."""
    y, x, a, core, b = (mx.full((1, 1, 1), value) for value in (3.0, 2.0, 5.0, 7.0, 11.0))
    small = [t.astype(adapter or dtype) for t in (a[0], core, b[0])]
    result = lowrank_update(y.astype(dtype), x.astype(dtype), *small)
    assert result.dtype == dtype
    assert result.item() == (772 if dtype == mx.bfloat16 else 773)


@pytest.mark.parametrize("cores", [1, B])
def test_the_gradient_in_x_is_the_one_that_mlx_derives(cores: int) -> None:
    y, x, a, core, b = arguments(cores=cores)
    _, (slope,) = mx.vjp(lambda x: lowrank_update_ops(y, x, a, core, b), [x], [y])
    np.testing.assert_allclose(np.array(lowrank_slope_ops(y, a, core, b)), np.array(slope), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cores", [1, B])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_gradients_around_the_kernel_are_those_of_the_twin(cores: int, dtype: mx.Dtype, launches: list[str]) -> None:
    arrays = arguments(dtype, cores)
    weights = mx.random.normal((B, L, OUT))
    totals = [lambda *args, f=f: (weights * f(*args)).sum() for f in (lowrank_update, lowrank_update_ops)]
    found, expected = (mx.grad(total, argnums=range(5))(*arrays) for total in totals)
    assert launches == ["update", "slope"]
    for name, slope, wanted in zip(("y", "x", "a", "core", "b"), found, expected, strict=True):
        assert slope.dtype == dtype
        np.testing.assert_allclose(
            np.array(slope.astype(mx.float32)),
            np.array(wanted.astype(mx.float32)),
            rtol=1e-5 if dtype == mx.float32 else 2**-6,
            atol=1e-5 if dtype == mx.float32 else 2**-4,
            err_msg=name,
        )


USUAL = {"y": (16, 1, 4), "x": (16, 1, 4), "a": (32, 4), "core": (1, 32, 32), "b": (4, 32)}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({}, ["update"]),
        ({"y": (1, 16, 4), "x": (1, 16, 4)}, ["update"]),
        ({"y": (17, 1, 4), "x": (17, 1, 4)}, []),
        ({"y": (1, 17, 4), "x": (1, 17, 4)}, []),
        ({"a": (33, 4), "core": (1, 33, 33), "b": (4, 33)}, []),
    ],
    ids=["16 rows", "16 positions", "17 rows", "17 positions", "rank 33"],
)
def test_many_rows_and_large_ranks_are_left_to_the_twin(
    shapes: dict[str, tuple[int, ...]], expected: list[str], launches: list[str]
) -> None:
    lowrank_update(*map(mx.ones, (USUAL | shapes).values()))
    assert launches == expected


@pytest.mark.parametrize(
    ("x", "adapter", "expected"),
    [
        (mx.float32, mx.float32, ["update"]),
        (mx.float16, mx.float32, []),
        (mx.float32, mx.float16, []),
    ],
)
def test_dtypes_that_no_check_covers_are_left_to_the_twin(
    x: mx.Dtype, adapter: mx.Dtype, expected: list[str], launches: list[str]
) -> None:
    tensors = [mx.ones(shape, dtype=adapter) for shape in ((2, 4), (1, 2, 2), (4, 2))]
    assert lowrank_update(mx.ones((1, 1, 4)), mx.ones((1, 1, 4), dtype=x), *tensors).dtype == mx.float32
    assert launches == expected
