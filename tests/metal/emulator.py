"""Runs MLX's custom Metal kernels on a Linux CPU: the very text that a Mac compiles, thread by thread, with checks.

`run` is what tests call. README.md says what is modelled and what is not.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from metal import build, cuda, lint
from metal.graph import EmulatorError, Graph, Launch
from metal.source import buffers, take_apart, to_cpp

__all__ = ["HAVE_COMPILER", "EmulatorError", "Launch", "address_space_problems", "observe", "run", "trace"]

HAVE_COMPILER = build.COMPILER is not None
SCHEDULES = ("forward", "reverse", "rotated")
SECONDS = 120  # of processor time, after which a kernel counts as endless


def trace(function: Callable[..., Any], *arrays: mx.array) -> Launch:
    """The call of the one Metal kernel that ``function(*arrays)`` makes.

    Args:
        function: Any function of arrays that calls exactly one ``metal_kernel``. What else it does must be among the
            operations of graph.py.
        arrays: Its arguments.

    Raises:
        EmulatorError: The function calls none or several, or does something else that cannot be evaluated.
    """
    return Graph(function, *arrays).launch()


def run(
    function: Callable[..., Any],
    *arrays: mx.array,
    checked: bool = True,
    schedule: str = "forward",
    round_up: bool = False,
    dialect: str = "metal",
) -> list[mx.array]:
    """``function(*arrays)`` with its Metal kernel emulated.

    Args:
        function: As for `trace`.
        arrays: Its arguments.
        checked: Watch every access. Without, only what faults between guard pages is noticed.
        schedule: In which order threads run up to their next barrier: ``forward``, ``reverse`` or ``rotated``.
        round_up: Launch whole threadgroups also at the end of the grid, as CUDA does.
        dialect: ``metal``, or ``cuda`` for a kernel made within `cuda.cuda_kernels`, whose launches are rounded up.

    Returns:
        The outputs of the function.

    Raises:
        EmulatorError: The kernel does not compile, or a detector fired.
    """
    return observe(function, *arrays, checked=checked, schedule=schedule, round_up=round_up, dialect=dialect)[0]


def observe(
    function: Callable[..., Any],
    *arrays: mx.array,
    checked: bool = True,
    schedule: str = "forward",
    round_up: bool = False,
    dialect: str = "metal",
) -> tuple[list[mx.array], build.Report]:
    """As `run`, and what was watched: counts of accesses and the bytes of threadgroup memory."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}")
    if not HAVE_COMPILER:
        raise EmulatorError("the emulator needs g++ on Linux")
    graph = Graph(function, *arrays)
    launch = graph.launch()
    cpp = {"metal": to_cpp, "cuda": cuda.to_cpp}[dialect](launch, checked)
    library = build.library(cpp, checked)
    outputs = [_blank(launch, i) for i in range(len(launch.output_shapes))]
    names = [buffer.name.encode() for buffer in buffers(take_apart(launch.name, launch.text))]
    memory = [*_inputs(launch), *((output, 0) for output in outputs)]
    described = [
        build.Buffer(
            data=array.ctypes.data,
            bytes=array.nbytes,
            origin=origin,
            element=array.itemsize,
            is_output=i >= len(memory) - len(outputs),
            is_initialised=launch.init_value is not None,
            name=name,
        )
        for i, (name, (array, origin)) in enumerate(zip(names, memory, strict=True))
    ]
    report = build.call(
        library,
        described,
        launch.grid,
        launch.threadgroup,
        schedule=SCHEDULES.index(schedule),
        round_up=round_up or dialect == "cuda",
        seconds=SECONDS,
    )
    return graph.finish([_to_mlx(*output) for output in zip(outputs, launch.output_dtypes, strict=True)]), report


def address_space_problems(function: Callable[..., Any], *arrays: mx.array) -> list[str]:
    """What is wrong with the address spaces of the kernel's pointers, as ``body:3:14: message``; g++ cannot see it.

    Args:
        function: As for `trace`.
        arrays: Its arguments.
    """
    return lint.problems(trace(function, *arrays))


def _inputs(launch: Launch) -> list[tuple[np.ndarray, int]]:
    """The memory behind every input parameter, and where in it, in bytes, the parameter points."""
    found = []
    for x, (shape, strides, ndim) in zip(launch.inputs, launch.shape_infos, strict=True):
        view = _to_numpy(x)
        found.append(_span(view))
        if x.ndim and shape:
            found.append((np.array(view.shape, np.int32), 0))
        if x.ndim and strides:
            found.append((np.array(view.strides, np.int64) // view.itemsize, 0))
        if x.ndim and ndim:
            found.append((np.array([view.ndim], np.int32), 0))
    return found


def _to_numpy(x: mx.array) -> np.ndarray:
    """A view with MLX's own strides; of bfloat16, which NumPy has not, the bits."""
    mx.eval(x)
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False)


def _span(view: np.ndarray) -> tuple[np.ndarray, int]:
    """A copy of the memory from the first to the last element of a strided array, and where element 0 is in it."""
    if not view.size:
        return np.empty(0, np.uint8), 0
    steps = [(size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)]
    before = -sum(step for step in steps if step < 0)
    length = before + sum(step for step in steps if step > 0) + view.itemsize
    return np.frombuffer(ctypes.string_at(view.ctypes.data - before, length), np.uint8), before


def _blank(launch: Launch, i: int) -> np.ndarray:
    """The memory of an output before the launch: init_value, or all ones, which in floats is NaN."""
    shape, dtype = launch.output_shapes[i], launch.output_dtypes[i]
    if launch.init_value is not None:
        return np.array(_to_numpy(mx.full(shape, launch.init_value).astype(dtype)), order="C")
    blank = np.array(_to_numpy(mx.zeros(shape, dtype=dtype)), order="C")
    blank.reshape(-1).view(np.uint8)[:] = 0xFF
    return blank


def _to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    x = mx.array(array)
    return x.view(mx.bfloat16) if dtype == mx.bfloat16 else x
