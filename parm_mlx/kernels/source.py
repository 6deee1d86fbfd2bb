"""The texts of the kernels: package data, read when a kernel is first launched."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

_FOLDER = Path(__file__).parent

STRIP = 4
"""Neighbouring logits that a thread takes at a time: one exponential for the rescaling, not one per logit."""


def text(name: str) -> str:
    """The text of ``name``.metal: the body of a kernel, or functions that several bodies use."""
    return (_FOLDER / f"{name}.metal").read_text(encoding="utf-8")


@cache
def load(name: str, inputs: Sequence[str], outputs: Sequence[str], header: str | None = None) -> Any:
    """The kernel of ``name``.metal, made once.

    Args:
        name: The file without its suffix.
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
        header: The file of the functions it uses.

    Returns:
        What ``mx.fast.metal_kernel`` makes. Only a call of it needs Metal.
    """
    return mx.fast.metal_kernel(
        name=f"parm_{name}",
        input_names=inputs,
        output_names=outputs,
        source=text(name),
        header=text(header) if header else "",
    )


@cache
def fingerprint() -> str:
    """SHA-256 over all files of this folder: the texts, and the modules that say how they are launched."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _FOLDER.iterdir() if path.suffix in (".metal", ".py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def threads_for(vocabulary: int, most: int) -> int:
    """Threads that share a row of logits: whole simdgroups, and none that has nothing to read."""
    return min(most, 32 * -(-vocabulary // (32 * STRIP)))


def widened(x: mx.array) -> mx.array:
    """The numbers of x in float32. float64 stays: with it the check computes what is right."""
    return x if x.dtype == mx.float64 else x.astype(mx.float32)
