"""Kernels for GPUs, each beside its twin of plain operations, which defines it; the launcher decides which one runs."""

import math

import mlx.core as mx

from parm_mlx.machine import uses_linux_cpu


def widened(x: mx.array) -> mx.array:
    """Returns x in float32. float64 stays: the check of the kernels computes in it what is right."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)


# Taylor coefficients of 2^f: for |f| ≤ ½ the first one left out is below 2⁻²⁵ of the sum.
_POWERS = [math.log(2) ** i / math.factorial(i) for i in range(7)]


def exp(x: mx.array) -> mx.array:
    """Computes e^x for x ≤ 0 in float32, with a relative error of at most 3e-7 + |x| · 1.2e-7; 0 below that.

    With MLX on a Linux CPU, where its exponential is a call of the C library for every number, it is twice as fast:
    e^x = 2^n · 2^f, for n the nearest integer to x / ln 2 and f the rest. Elsewhere it is MLX's own.
    """
    if not uses_linux_cpu() or mx.default_device() != mx.cpu or x.dtype != mx.float32:
        return mx.exp(x)
    t = mx.maximum(x * (1 / math.log(2)), -127.0)
    n = mx.round(t)
    f = t - n
    power = f * _POWERS[-1] + _POWERS[-2]
    for coefficient in reversed(_POWERS[:-2]):
        power = power * f + coefficient
    return power * ((n.astype(mx.int32) + 127) << 23).view(mx.float32)
