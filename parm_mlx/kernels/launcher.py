"""Whether a kernel or its twin of plain operations runs.

The environment variable ``PARM_MLX_KERNELS`` says it:

* ``off``: the twins, always.
* ``auto``, the default: a kernel where MLX computes on a Metal GPU and the check of that kernel and dtype has passed on
  this machine, with this MLX and these texts (:mod:`parm_mlx.kernels.record`).
* ``on``: the kernels, checked or not.
"""

import os
from functools import cache

import mlx.core as mx

from parm_mlx.errors import ConfigError
from parm_mlx.kernels.record import read_record

VARIABLE = "PARM_MLX_KERNELS"
MODES = ("off", "auto", "on")
DTYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}


def runs(kernel: str, dtype: mx.Dtype) -> bool:
    """Whether a kernel runs on arrays of this dtype, here and now.

    The variable and the record are read once per process, the device at every call.

    Args:
        kernel: ``lowrank``, ``logprob`` or ``mix``.
        dtype: Of the array that the kernel is about: y, or logits.

    Raises:
        ConfigError: The variable has another value, or asks for kernels where MLX does not compute on a Metal GPU.
    """
    mode = _mode()
    if mode == "off" or dtype not in DTYPES:
        return False
    if not available():
        if mode == "on":
            _refuse()
        return False
    return mode == "on" or (kernel, DTYPES[dtype]) in _passed()


def available() -> bool:
    """Whether MLX computes on a Metal GPU."""
    return mx.default_device() == mx.gpu and mx.metal.is_available()


def forget() -> None:
    """Reads the variable and the record anew at the next question, after either has changed."""
    _mode.cache_clear()
    _passed.cache_clear()


@cache
def _mode() -> str:
    value = os.environ.get(VARIABLE, "auto")
    if value not in MODES:
        raise ConfigError(f"{VARIABLE}={value} is none of {', '.join(MODES)}", hint="leave it unset for auto")
    return value


@cache
def _passed() -> frozenset[tuple[str, str]]:
    return read_record()


def _refuse() -> None:
    if not mx.metal.is_available():
        raise ConfigError(
            f"{VARIABLE}=on, but this machine has no Metal", hint=f"unset {VARIABLE}: plain operations do the same"
        )
    raise ConfigError(
        f"{VARIABLE}=on, but MLX computes on the CPU", hint=f"kernels run on the GPU alone; unset {VARIABLE}"
    )
