"""The update of an adapted layer, s · B · M(α) · A · x of PARM after y = W x, in row vectors:

    y + ((x Aᵀ) · core) Bᵀ,    core = s · M(α)ᵀ

In MLX's operations it is :func:`lowrank_update_ops`. The kernel is for decoding: for few rows and a low rank, launching
three operations takes most of the time. For many rows MLX's own products are better.
"""

from typing import Any, cast

import mlx.core as mx

from parm_mlx.kernels.launcher import load, runs

MAX_ROWS = 16
MAX_RANK = 32
THREADS = 256
TILE = 512


def lowrank_update(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """Computes y + ((x Aᵀ) · core) Bᵀ, differentiable in all five. A row whose core is zero is that row of y.

    Args:
        y: (B, L, out).
        x: (B, L, in).
        a: (r, in).
        core: s · M(α)ᵀ, (B, r, r) with one matrix per row, or (1, r, r).
        b: (out, r).

    Returns:
        (B, L, out) in the dtype of y.
    """
    return fused_update(y, x, a, core, b) if is_fused(y, x, a, core, b) else lowrank_update_ops(y, x, a, core, b)


def lowrank_update_ops(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """The equation: W x + s · B · M(α) · A · x for y = W x; arguments and result of :func:`lowrank_update`."""
    return mx.addmm(y, x @ a.T @ core, b.T).astype(y.dtype)


def lowrank_slope_ops(g: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """The gradient of :func:`lowrank_update` in x, ((g b) coreᵀ) a, for the gradient g (B, L, out) of its result."""
    return g @ b @ core.swapaxes(-1, -2) @ a


def is_fused(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> bool:
    """Returns True if :func:`lowrank_update` is one launch of the kernel for these arrays."""
    return (
        runs("lowrank", y.dtype)
        and y.shape[0] * y.shape[1] <= MAX_ROWS
        and a.shape[0] <= MAX_RANK
        and x.dtype == y.dtype
        and {a.dtype, core.dtype, b.dtype} <= {y.dtype, mx.float32}
    )


def fused_update(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """Computes :func:`lowrank_update` with the kernel, where :func:`is_fused`."""
    return cast(mx.array, _fused(y, x, a, core, b))


@mx.custom_function
def _fused(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    return launch(y, x, a, core, b)


@_fused.vjp
def _fused_vjp(primals: list[mx.array], cotangent: mx.array, output: mx.array) -> list[mx.array]:
    _, slopes = mx.vjp(lowrank_update_ops, primals, [cotangent])
    slopes[1] = launch_slope(cotangent, *primals[2:])  # the twin's own, and others not asked for, are never computed
    return slopes


def launch(y: mx.array, x: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """The kernel's y + ((x aᵀ) core) bᵀ."""
    rank, width = a.shape
    steps = {"A_RANK": width, "A_IN": 1, "CORE_IN": rank, "CORE_OUT": 1, "B_OUT": rank, "B_RANK": 1}
    return _call([y, x, a, core, b], width, b.shape[0], rank, steps | {"ADD": True})


def launch_slope(g: mx.array, a: mx.array, core: mx.array, b: mx.array) -> mx.array:
    """The kernel's ((g b) coreᵀ) a."""
    rank, width = a.shape
    steps = {"A_RANK": 1, "A_IN": rank, "CORE_IN": 1, "CORE_OUT": rank, "B_OUT": 1, "B_RANK": width}
    return _call([g, g, b, core, a], b.shape[0], width, rank, steps | {"ADD": False})


def _call(inputs: list[mx.array], width: int, out: int, rank: int, template: dict[str, Any]) -> mx.array:
    """One threadgroup per row and TILE outputs."""
    rows, length, _ = inputs[1].shape
    dtype = inputs[0].dtype
    sizes = {"T": dtype, "IN": width, "OUT": out, "R": rank, "THREADS": THREADS, "TILE": TILE}
    choices = {"STRIP": 4 if width % 4 == 0 else 1, "ONE_CORE": inputs[3].shape[0] == 1}
    kernel = load("lowrank", ("y", "x", "a", "core", "b"), ("updated",))
    (updated,) = kernel(
        inputs=inputs,
        template=list((sizes | choices | template).items()),
        grid=(-(-out // TILE) * THREADS, length, rows),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(rows, length, out)],
        output_dtypes=[dtype],
    )
    return cast(mx.array, updated)
