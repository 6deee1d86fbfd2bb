"""Correct kernels give the right numbers: types, sizes, parameters, what threads do together, and real kernels."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal import build
from metal.emulator import HAVE_COMPILER, EmulatorError, address_space_problems, observe, run, trace
from metal.making import function_of

pytestmark = pytest.mark.skipif(not HAVE_COMPILER, reason="the Metal emulator needs g++ on Linux")
INDEX = "uint i = thread_position_in_grid.x;\n"
SCHEDULES = ("forward", "reverse", "rotated")


def same(x: mx.array, y: mx.array) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and bool(mx.array_equal(x, y, equal_nan=True))


# ---- what MLX hands over


def test_trace_shows_the_call_as_mlx_makes_it() -> None:
    x = mx.arange(6).reshape(2, 3)
    launch = trace(function_of("o[0] = x[0] + x_shape[1];", (4,), 5, 2, dtype=mx.int32, init_value=7), x)
    assert "const constant int32_t* x [[buffer(0)]],\n  const constant int* x_shape [[buffer(1)]]" in launch.text
    assert (launch.grid, launch.threadgroup, launch.init_value) == ((5, 1, 1), (2, 1, 1), 7.0)
    assert (launch.output_shapes, launch.output_dtypes, launch.shape_infos) == (
        [(4,)],
        [mx.int32],
        [(True, False, False)],
    )
    assert same(launch.inputs[0], x)


def test_init_value_is_told_from_its_absence() -> None:
    x = mx.zeros((9,))
    assert trace(function_of("o[0] = x[0];", (1,), 1), x).init_value is None
    assert trace(function_of("o[0] = x[0];", (1,), 1, init_value=0), x).init_value == 0.0


def test_a_function_must_call_exactly_one_kernel() -> None:
    one = function_of("o[0] = x[0];", (9,), 1)
    with pytest.raises(EmulatorError, match="calls 0 Metal kernels"):
        trace(mx.exp, mx.zeros((9,)))
    with pytest.raises(EmulatorError, match="calls 2 Metal kernels"):
        trace(lambda x: one(one(x)), mx.zeros((9,)))


def test_operations_around_the_kernel_are_evaluated() -> None:
    double = function_of(INDEX + "o[i] = 2 * x[i];", (12,), 12)
    x = mx.arange(24).reshape(4, 6).astype(mx.float16)

    def function(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        y = double(x[:, ::2].T.astype(mx.float32).reshape(-1))
        return y.reshape(3, 4).sum(axis=0) + 1, mx.maximum(y.reshape(3, 4).max(axis=1), 30), y

    total, most, y = run(function, x)
    expected = (2 * x[:, ::2].T).astype(mx.float32)
    assert same(y, expected.reshape(-1))
    assert same(total, expected.sum(axis=0) + 1)
    assert same(most, mx.maximum(expected.max(axis=1), 30))


def test_slices_before_the_kernel_are_those_of_mlx() -> None:
    x = mx.arange(24).reshape(4, 6).astype(mx.float32)
    for cut in (np.s_[::-1, 2], np.s_[1, ::-1], np.s_[3:1:-1, 4:1:-1], np.s_[-2:, :-3]):
        part = x[cut].reshape(-1)
        copy = function_of(INDEX + "o[i] = x[i];", part.shape, part.size)
        assert same(run(lambda x, copy=copy, cut=cut: copy(x[cut].reshape(-1)), x)[0], part)


def test_a_custom_function_is_refused_where_mlx_cannot_export_it() -> None:
    function = mx.custom_function(function_of("o[0] = x[0];", (1,), 1))
    function.vjp(lambda primals, cotangents, outputs: cotangents)
    with pytest.raises(EmulatorError, match=r"MLX cannot export the function: .*CustomTransforms"):
        trace(function, mx.zeros((9,)))


def test_an_operation_that_cannot_be_evaluated_is_named() -> None:
    one = function_of("o[0] = x[0];", (9,), 1)
    with pytest.raises(EmulatorError, match="the function uses Sort beside the kernel"):
        trace(lambda x: one(mx.sort(x)), mx.zeros((9,)))


# ---- types and sizes


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "fast"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_elementwise_in_every_float_type_and_odd_sizes(dtype: mx.Dtype, checked: bool) -> None:
    source = INDEX + "if (i < N) o[i] = static_cast<T>(metal::exp(static_cast<float>(x[i])) * s[0]);"
    for n in (1, 7, 31, 33, 1000):
        x = mx.random.normal((n,), key=mx.random.key(n)).astype(dtype)
        function = function_of(source, (n,), n, dtype=dtype, names=("x", "s"), template=[("T", dtype), ("N", n)])
        (y,) = run(function, x, mx.array([0.5]), checked=checked)
        expected = mx.exp(x.astype(mx.float32)) * 0.5
        tolerance = {mx.float32: 1e-6, mx.float16: 2**-11, mx.bfloat16: 2**-8}[dtype]
        assert y.dtype == dtype
        assert mx.all(mx.abs(y.astype(mx.float32) - expected) <= tolerance * expected), n


@pytest.mark.parametrize("dtype", [mx.bool_, mx.uint8, mx.int16, mx.int32, mx.uint32, mx.int64, mx.uint64], ids=str)
def test_a_copy_in_every_integer_type(dtype: mx.Dtype) -> None:
    x = (mx.arange(40) * 997).astype(dtype)
    (y,) = run(function_of(INDEX + "o[i] = x[i];", (40,), 40, 32, dtype=dtype), x)
    assert same(y, x)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_sixteen_bit_floats_round_as_mlx_rounds(dtype: mx.Dtype) -> None:
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 65520.0, 1e-8, 6e-8, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8]
    x = mx.concatenate([mx.array(special), mx.random.normal((500,), key=mx.random.key(0)) * 100])
    narrow = function_of(INDEX + "o[i] = static_cast<T>(x[i]);", x.shape, x.size, dtype=dtype, template=[("T", dtype)])
    (y,) = run(narrow, x)
    assert same(y, x.astype(dtype))
    arithmetic = function_of(
        INDEX + "T a = x[i], b = x[(i + 1) % 512]; o[i] = a * b + a / b - a;", x.shape, x.size, dtype=dtype,
        template=[("T", dtype)],
    )  # fmt: skip
    a, b = y, mx.roll(y, -1)
    assert same(run(arithmetic, y)[0], a * b + a / b - a)


# ---- parameters


def test_shapes_strides_and_dimensions_are_parameters() -> None:
    x = mx.arange(60).reshape(3, 4, 5).astype(mx.float32)
    source = INDEX + "o[i] = x[elem_to_loc(int(i), x_shape, x_strides, x_ndim)];"
    raw = function_of(source, (60,), 60, 32, contiguous=False)
    copied = function_of(source + "// MLX made x contiguous", (60,), 60, 32)
    for view in (
        x,
        x.transpose(2, 0, 1),
        x[::-1],
        mx.broadcast_to(x[:, :1], (3, 20, 5))[:, :4],
        x[:, 1:3, ::2][:, :, ::-1],
    ):
        flat = view.reshape(-1)
        y = (
            run(raw, view)[0]
            if view.size == 60
            else run(function_of(source, (view.size,), view.size, 32, contiguous=False), view)[0]
        )
        assert same(y, flat)
        if view.size == 60:
            assert same(run(copied, view)[0], flat)


def test_arrays_of_few_elements_and_scalars_are_constants() -> None:
    source = INDEX + "o[i] = few[i] * scalar + flag[0];"
    function = function_of(source, (7,), 7, names=("few", "scalar", "flag"))
    few = mx.arange(7).astype(mx.float32)
    assert "const constant float& scalar" in trace(function, few, mx.array(3.0), mx.array([True])).text
    assert same(run(function, few, mx.array(3.0), mx.array([True]))[0], few * 3 + 1)
    assert address_space_problems(function, few, mx.array(3.0), mx.array([True])) == []


def test_template_arguments_and_header() -> None:
    header = """
        template <typename P, int K>
        float total(P p) {
          float sum = 0;
          for (int k = 0; k < K; k++) sum += p[k];
          return sum;
        }
    """
    source = INDEX + "o[i] = static_cast<T>(total<decltype(x), N>(x + i) * (FLIP ? -1.0f : 1.0f));"
    x = mx.arange(12).astype(mx.float32)
    for flip in (True, False):
        template = [("T", mx.float16), ("N", 3), ("FLIP", flip)]
        function = function_of(source, (10,), 10, dtype=mx.float16, header=header, template=template)
        expected = (x[:10] + x[1:11] + x[2:12]) * (-1 if flip else 1)
        assert same(run(function, x)[0], expected.astype(mx.float16))
        assert address_space_problems(function, x) == []


def test_several_outputs() -> None:
    kernel: Any = mx.fast.metal_kernel(
        name="two",
        input_names=["x"],
        output_names=["p", "q"],
        source=INDEX + "p[i] = x[i]; if (i % 2) q[i / 2] = int(x[i]);",
    )

    def function(x: mx.array) -> Any:
        shapes, dtypes = [(2, 5), (5,)], [mx.float32, mx.int32]
        return kernel(inputs=[x], output_shapes=shapes, output_dtypes=dtypes, grid=(10, 1, 1), threadgroup=(4, 1, 1))

    x = mx.arange(10).astype(mx.float32)
    p, q = run(function, x)
    assert same(p, x.reshape(2, 5))
    assert same(q, x[1::2].astype(mx.int32))


def test_init_value_and_atomic_outputs() -> None:
    x = mx.arange(100).astype(mx.uint32)
    source = INDEX + "atomic_fetch_add_explicit(&o[x[i] % 7], 1, memory_order_relaxed);"
    count = function_of(source, (7,), 100, dtype=mx.uint32, atomic=True, init_value=5)
    expected = mx.array([5 + 15] * 2 + [5 + 14] * 5, dtype=mx.uint32)  # 100 = 14 · 7 + 2
    for schedule in SCHEDULES:
        assert same(run(count, x, schedule=schedule)[0], expected)


# ---- what threads do together


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
        assert same(run(function, zero, schedule=schedule)[0], ends)


# ---- the emulator itself


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="forward, reverse, rotated"):
        run(function_of("o[0] = 1;", (1,), 1), mx.zeros((9,)), schedule="backward")


def test_a_library_is_compiled_once_and_by_several_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    function = function_of("o[0] = x[0]; // compiled in an empty cache", (1,), 1)
    with ThreadPoolExecutor(3) as pool:
        from metal.source import to_cpp

        cpp = to_cpp(trace(function, mx.zeros((9,))), checked=True)
        assert len(set(pool.map(lambda _: build.library(cpp, True), range(3)))) == 1
    made = sorted(tmp_path.rglob("*.*"))
    assert len([path for path in made if path.suffix == ".so"]) == 1
    monkeypatch.setattr(subprocess, "run", None)
    build.library(cpp, True)
    assert sorted(tmp_path.rglob("*.*")) == made


def test_a_fault_leaves_nothing_behind() -> None:
    wrong = function_of(INDEX + "o[i] = x[i + 1];", (16,), 16)
    right = function_of(INDEX + "o[i] = x[i];", (16,), 16)
    for checked in (True, False):
        for _ in range(3):
            with pytest.raises(EmulatorError):
                run(wrong, mx.zeros((16,)), checked=checked)
            run(right, mx.zeros((16,)), checked=checked)


# ---- kernels that mlx-lm ships


@pytest.mark.skipif(sys.version_info < (3, 11), reason="mlx-lm 0.31 has other kernels")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_mlx_lms_gated_delta_kernel(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import gated_delta

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    kernel: Any = gated_delta._make_gated_delta_kernel(has_mask=False, vectorized=False)
    monkeypatch.undo()
    batch, length, heads, width = 2, 3, 2, 32

    def step(q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array) -> Any:
        names = {"InT": dtype, "StT": mx.float32, "Dk": width, "Dv": width, "Hk": heads, "Hv": heads}
        return kernel(
            inputs=[q, k, v, g, beta, state, length],
            template=list(names.items()),
            grid=(32, width, batch * heads),
            threadgroup=(32, 4, 1),
            output_shapes=[v.shape, state.shape],
            output_dtypes=[dtype, mx.float32],
        )

    def normal(seed: int, *shape: int) -> mx.array:
        return (mx.random.normal(shape, key=mx.random.key(seed)) / 4).astype(dtype)

    q, k, v = (normal(seed, batch, length, heads, width) for seed in range(3))
    g, beta = (mx.sigmoid(normal(seed, batch, length, heads)) for seed in (3, 4))
    state = normal(5, batch, heads, width, width).astype(mx.float32)
    expected = gated_delta.gated_delta_ops(q, k, v, g, beta, state)
    for found, wanted in zip(run(step, q, k, v, g, beta, state), expected, strict=True):
        tolerance = 2e-2 if dtype == mx.bfloat16 else 1e-5
        assert mx.allclose(found.astype(mx.float32), wanted.astype(mx.float32), atol=tolerance, rtol=tolerance)
