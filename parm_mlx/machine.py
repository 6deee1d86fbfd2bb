"""What this machine is: versions, the device that MLX computes on, and its memory."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import mlx.core as mx


def versions(*more: str) -> dict[str, str]:
    """What results depend on besides settings and data.

    Args:
        more: Installed distributions to name besides parm-mlx, mlx, mlx-lm and numpy.

    Returns:
        Versions by name, then those of Python and of the platform.
    """
    return {
        **{name: version(name) for name in ("parm-mlx", "mlx", "mlx-lm", "numpy", *more)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def has_metal() -> bool:
    """Whether MLX computes on an Apple GPU."""
    return bool(mx.metal.is_available() and mx.default_device() == mx.gpu)


def device_name() -> str:
    """The device that MLX computes on: ``Apple M2 Pro (Metal)``, or the processor and its cores."""
    name = mx.device_info().get("device_name") or platform.machine()
    return f"{name} (Metal)" if has_metal() else f"{name}, {os.cpu_count()} cores (CPU)"


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Bytes that a model may use: what Metal recommends, or the physical memory where there is no GPU."""
    recommended: Any = mx.device_info().get("max_recommended_working_set_size") if has_metal() else None
    return int(recommended) if recommended else physical_memory()


def load_per_core() -> float:
    """How busy the machine has been in the last minute: 1.0 where every core had work, by whomever."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


@contextmanager
def weights_kept_in_memory() -> Iterator[None]:
    """Lets Metal keep all that MLX holds resident while the block runs, as mlx-lm's own generation does."""
    if not has_metal():
        yield
        return
    before = mx.set_wired_limit(usable_memory())
    try:
        yield
    finally:
        mx.set_wired_limit(before)


def describe_machine(*more: str) -> str:
    """One line for the foot of a measurement.

    Args:
        more: Installed distributions to name besides mlx and mlx-lm.
    """
    known = versions(*more)
    return ", ".join(
        [known["platform"], *(f"{name} {known[name]}" for name in ("mlx", "mlx-lm", *more)), device_name()]
    )
