"""What the threads of a kernel do together, its grid, and the functions that Metal has."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal.emulator import HAVE_COMPILER, address_space_problems, observe, run
from metal.making import function_of

pytestmark = pytest.mark.skipif(not HAVE_COMPILER, reason="the Metal emulator needs g++ on Linux")
INDEX = "uint i = thread_position_in_grid.x;\n"
SCHEDULES = ("forward", "reverse", "rotated")


LOG_SUM_EXP = """
    threadgroup float shared[GROUP / 32];
    uint row = threadgroup_position_in_grid.x, t = thread_index_in_threadgroup;
    uint lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
    auto values = x + row * N;
    float most = -INFINITY;
    for (uint k = t; k < N; k += GROUP) most = metal::max(most, static_cast<float>(values[k]));
    most = together<GROUP>(simd_max(most), shared, lane, simdgroup, true);
    float sum = 0;
    for (uint k = t; k < N; k += GROUP) sum += metal::exp(static_cast<float>(values[k]) - most);
    sum = together<GROUP>(simd_sum(sum), shared, lane, simdgroup, false);
    if (t == 0) o[row] = static_cast<T>(most + metal::log(sum));
"""
TOGETHER = """
template <int GROUP>
float together(float v, threadgroup float* shared, uint lane, uint simdgroup, bool greatest) {
  if (lane == 0) shared[simdgroup] = v;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  v = lane < GROUP / 32 ? shared[lane] : (greatest ? -INFINITY : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return greatest ? simd_max(v) : simd_sum(v);
}
"""


def log_sum_exp(n: int, dtype: mx.Dtype, group: int = 128) -> Callable[..., mx.array]:
    template = [("T", dtype), ("N", n), ("GROUP", group)]
    return function_of(LOG_SUM_EXP, (3,), 3 * group, group, dtype=dtype, header=TOGETHER, template=template)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_a_row_reduced_by_a_threadgroup(dtype: mx.Dtype) -> None:
    for n in (1, 33, 500):
        x = mx.random.normal((3, n), key=mx.random.key(n)).astype(dtype)
        for schedule in SCHEDULES:
            (y,) = run(log_sum_exp(n, dtype), x, schedule=schedule)
            expected = mx.logsumexp(x.astype(mx.float32), axis=-1)
            assert mx.allclose(y.astype(mx.float32), expected, rtol=2**-8 if dtype == mx.bfloat16 else 1e-6)
    assert address_space_problems(log_sum_exp(500, dtype), x) == []


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_threadgroup_memory_is_really_watched(dtype: mx.Dtype) -> None:
    """Counted by hand: 4 simdgroups write 4 values twice; in each of them 4 lanes read one, twice; 3 rows.

    g++ drops the section of a variable in a template without a word: then nothing would be watched, and no race found.
    """
    source = "threadgroup T kept[128]; kept[thread_index_in_threadgroup] = static_cast<T>(1.0f);\n" + LOG_SUM_EXP
    template = [("T", dtype), ("N", 33), ("GROUP", 128)]
    function = function_of(source, (3,), 3 * 128, 128, dtype=dtype, header=TOGETHER, template=template)
    _, report = observe(function, mx.zeros((3, 33), dtype=dtype))
    assert report.threadgroup_bytes == 128 * dtype.size + 4 * 4
    assert report.threadgroup_accesses == 3 * (128 + 2 * 4 + 2 * 4 * 4)
    assert report.device_accesses == 3 * (2 * 33 + 1)


SIMD = {
    "simd_sum(v)": lambda v: np.full(32, v.sum()),
    "simd_product(lane % 8 == 1 ? 3 : 1)": lambda v: np.full(32, 3**4),
    "simd_max(v)": lambda v: np.full(32, v.max()),
    "simd_min(v)": lambda v: np.full(32, v.min()),
    "simd_xor(v)": lambda v: np.full(32, np.bitwise_xor.reduce(v)),
    "simd_and(v)": lambda v: np.full(32, np.bitwise_and.reduce(v)),
    "simd_or(v)": lambda v: np.full(32, np.bitwise_or.reduce(v)),
    "simd_prefix_inclusive_sum(v)": lambda v: v.cumsum(),
    "simd_prefix_exclusive_sum(v)": lambda v: v.cumsum() - v,
    "simd_broadcast(v, 5)": lambda v: np.full(32, v[5]),
    "simd_broadcast_first(v)": lambda v: np.full(32, v[0]),
    "simd_shuffle(v, (lane * 7) % 32)": lambda v: v[np.arange(32) * 7 % 32],
    "simd_shuffle_xor(v, 9)": lambda v: v[np.arange(32) ^ 9],
    "simd_shuffle_down(v, 3) * (lane < 29)": lambda v: np.append(v[3:], [0] * 3),
    "simd_shuffle_up(v, 3) * (lane > 2)": lambda v: np.append([0] * 3, v[:-3]),
    "simd_shuffle_rotate_down(v, 3)": lambda v: np.roll(v, -3),
    "simd_shuffle_rotate_up(v, 3)": lambda v: np.roll(v, 3),
    "simd_shuffle_and_fill_up(v, 100 + v, 3)": lambda v: np.append(100 + v[-3:], v[:-3]),
    "simd_any(v > 90) + 2 * simd_all(v > 90)": lambda v: np.full(32, (v > 90).any() + 2 * (v > 90).all()),
    "int(simd_is_first())": lambda v: np.eye(32, dtype=int)[0],
}


MATHS = {
    "metal::exp(v)": np.exp,
    "exp2(v)": np.exp2,
    "fast::exp10(v)": lambda v: 10**v,
    "metal::precise::log(v)": np.log,
    "log2(v)": np.log2,
    "log10(v)": np.log10,
    "sqrt(v)": np.sqrt,
    "rsqrt(v)": lambda v: 1 / np.sqrt(v),
    "sin(v) + 10 * cos(v) + 100 * tan(v / 4)": lambda v: np.sin(v) + 10 * np.cos(v) + 100 * np.tan(v / 4),
    "asin(v / 4) + 10 * acos(v / 4) + 100 * atan(v)": lambda v: (
        np.arcsin(v / 4) + 10 * np.arccos(v / 4) + 100 * np.arctan(v)
    ),
    "sinh(v) + 10 * cosh(v) + 100 * tanh(v)": lambda v: np.sinh(v) + 10 * np.cosh(v) + 100 * np.tanh(v),
    "floor(-v) + 10 * ceil(v) + 100 * trunc(-v)": lambda v: np.floor(-v) + 10 * np.ceil(v) + 100 * np.trunc(-v),
    "round(v) + 10 * rint(v + 1.0f)": lambda v: np.floor(v + 0.5) + 10 * np.rint(v + 1),
    "fabs(-v) + 10 * sign(-v) + 100 * fract(v)": lambda v: v - 10 + 100 * (v - np.floor(v)),
    "pow(v, 1.5f) + powr(v, 0.5f) + fmod(v, 0.7f)": lambda v: v**1.5 + v**0.5 + np.fmod(v, np.float32(0.7)),
    "atan2(v, 2.0f) + copysign(3.0f, -v)": lambda v: np.arctan2(v, 2) - 3,
    "abs(1.0f - v) + abs(-2)": lambda v: abs(1 - v) + 2,
    "max(v, 1.0f) + 10 * min(v, 1.0f) + 100 * clamp(v, 0.5f, 2.0f)": lambda v: (
        np.maximum(v, 1) + 10 * np.minimum(v, 1) + 100 * np.clip(v, 0.5, 2)
    ),
    "fmax(v, NAN) + fmin(NAN, v)": lambda v: 2 * v,
    "fma(v, v, 1.0f) + mix(1.0f, v, 0.5f)": lambda v: v * v + 1 + (1 + v) / 2,
    "select(1.0f, v, v > 1) + ldexp(v, 3)": lambda v: np.where(v > 1, v, 1) + 8 * v,
    "isnan(v) + 2 * isinf(v / 0) + 4 * isfinite(v)": lambda v: np.full_like(v, 6),
    "popcount(11u) + 10 * clz(1u) + 1000 * ctz(8u)": lambda v: np.full_like(v, 3313),
    "dot(float4(v), float4(1, 2, 3, 4)) + (float2(v, 1) * 2.0f).y": lambda v: 10 * v + 2,
    "numeric_limits<int>::max() > 2147483646 && numeric_limits<uint>::max() == ~0u": np.ones_like,
    "as_type<float>(as_type<uint>(v) ^ 0x80000000u)": lambda v: -v,
    "static_cast<float>(1.5h) + float(Limits<half>::finite_max)": lambda v: np.full_like(v, 65505.5),
}


def test_mathematical_functions() -> None:
    """Against NumPy, in float64; and the lint knows the same names."""
    body = "".join(f"o[{k} * 16 + i] = {expression};\n" for k, expression in enumerate(MATHS))
    v = np.linspace(0.1, 3.9, 16).astype(np.float32)
    function = function_of(INDEX + "float v = x[i];\n" + body, (len(MATHS), 16), 16)
    assert address_space_problems(function, mx.array(v)) == []
    for (expression, expected), row in zip(MATHS.items(), np.array(run(function, mx.array(v))[0]), strict=True):
        np.testing.assert_allclose(row, expected(v.astype(np.float64)), rtol=2e-6, atol=2e-5, err_msg=expression)


def test_simd_functions() -> None:
    body = "".join(f"o[{k} * 32 + lane] = {expression};\n" for k, expression in enumerate(SIMD))
    source = "uint lane = thread_index_in_simdgroup; int v = x[lane];\n" + body
    v = np.random.default_rng(0).integers(-50, 99, 32)
    function = function_of(source, (len(SIMD), 32), 32, dtype=mx.int32)
    assert address_space_problems(function, mx.array(v.astype(np.int32))) == []
    (y,) = run(function, mx.array(v.astype(np.int32)))
    for (expression, expected), row in zip(SIMD.items(), np.array(y), strict=True):
        assert (row == expected(v)).all(), expression


def test_the_grid_ends_in_smaller_threadgroups_or_is_rounded_up() -> None:
    kernel: Any = mx.fast.metal_kernel(
        name="sizes",
        input_names=["x"],
        output_names=["o"],
        source="""
          uint3 p = thread_position_in_grid, n = threads_per_grid, t = threads_per_threadgroup;
          if (p.x < n.x && p.y < n.y)
            o[p.y * n.x + p.x] = x[0] + t.x + 10 * t.y + 100 * thread_index_in_threadgroup
                               + 10000 * threadgroup_position_in_grid.x + 20000 * threadgroups_per_grid.y;
        """,
    )

    def function(x: mx.array) -> Any:
        return kernel(
            inputs=[x], output_shapes=[(3, 5)], output_dtypes=[mx.int32], grid=(5, 3, 1), threadgroup=(4, 2, 9)
        )

    def expected(width: Callable[[int], int], height: Callable[[int], int]) -> list[list[int]]:
        return [
            [
                width(x // 4) + 10 * height(y // 2) + 100 * (x % 4 + y % 2 * width(x // 4)) + 10000 * (x // 4) + 40000
                for x in range(5)
            ]
            for y in range(3)
        ]

    zero = mx.array([0])
    ends = run(function, zero)[0]
    assert ends.tolist() == expected(lambda group: (4, 1)[group], lambda group: (2, 1)[group])
    assert run(function, zero, round_up=True)[0].tolist() == expected(lambda group: 4, lambda group: 2)
    for schedule in SCHEDULES:
        assert mx.array_equal(run(function, zero, schedule=schedule)[0], ends)
