"""Correct kernels give the right numbers: types, sizes, parameters, and kernels that others ship."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal import build
from metal.emulator import HAVE_COMPILER, EmulatorError, address_space_problems, run, trace
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
