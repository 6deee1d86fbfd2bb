"""Small kernels as functions of arrays, for the emulator's own tests."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx


def function_of(
    source: str,
    shape: Sequence[int],
    threads: int,
    group: int = 64,
    *,
    dtype: mx.Dtype = mx.float32,
    names: Sequence[str] = ("x",),
    header: str = "",
    atomic: bool = False,
    contiguous: bool = True,
    **call: Any,
) -> Callable[..., mx.array]:
    """A function that calls a kernel with inputs `names` and one output ``o`` on `threads` threads."""
    kernel: Any = mx.fast.metal_kernel(
        name="made",
        input_names=list(names),
        output_names=["o"],
        source=source,
        header=header,
        atomic_outputs=atomic,
        ensure_row_contiguous=contiguous,
    )

    def function(*arrays: mx.array) -> mx.array:
        output: mx.array
        (output,) = kernel(
            inputs=list(arrays),
            output_shapes=[tuple(shape)],
            output_dtypes=[dtype],
            grid=(threads, 1, 1),
            threadgroup=(group, 1, 1),
            **call,
        )
        return output

    return function
