"""Faults planted into the text of a kernel, to see that its test would find them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from metal.emulator import EmulatorError

from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Case, check_kernels, combine_case, logprob_cases, lowrank_cases


def large(kernel: str) -> Case:
    """Several rows, threadgroups and simdgroups, several turns per thread, and no size a multiple of another."""
    if kernel == "lowrank":
        *_, case, _ = lowrank_cases(mx.float32, 2, 2, 1031, 1034, 3)  # the last two: one core, forward and gradient
        return case
    if kernel == "lowrank_cores":
        return next(lowrank_cases(mx.float32, 2, 2, 1031, 1034, 3))
    if kernel == "combine":
        return combine_case(mx.float32, 2, 9001, 9002)
    value, slope = logprob_cases(mx.float32, 2, 9001)
    return value if kernel == "logprob" else slope


def passes(kernel: str, execute: Callable[..., Any]) -> bool:
    """Whether a kernel, executed in this way, gives what its twin gives."""
    try:
        return check_kernels([large(kernel)], execute=execute)[0].passed
    except EmulatorError:
        return False


@contextmanager
def planted(file: str, right: str, wrong: str) -> Iterator[None]:
    """Within the block, a text of the kernels has ``wrong`` where it has ``right``, once."""
    genuine = launcher.text
    assert genuine(file).count(right) == 1

    def text(name: str) -> str:
        return genuine(name).replace(right, wrong) if name == file else genuine(name)

    launcher.load.cache_clear()
    try:
        with patch.object(launcher, "text", text):
            yield
    finally:
        launcher.load.cache_clear()
