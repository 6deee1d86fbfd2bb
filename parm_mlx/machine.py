"""This machine: MLX's back end, its device and memory, and what makes it fast on a Linux CPU.

MLX's CPU back end for Linux links the reference BLAS. If OpenBLAS is loaded into the process first, float32 products
use it and run about 30 times faster. On macOS MLX uses Accelerate and Metal, on CUDA the GPU: nothing is done there.

``mlx.core`` is imported inside the functions, since OpenBLAS must come first and ``parm-mlx --help`` must not wait.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

OPENBLAS = "libopenblas.so.0"
BLAS_HINT = (
    "OpenBLAS is not installed, so MLX runs about 30 times slower here; on Debian or Ubuntu: "
    "apt install libopenblas0-pthread"
)
NO_BACKEND = (
    "MLX has no back end on this machine; install one: pip install 'parm-mlx[cpu]' or, with an NVIDIA GPU, "
    "pip install 'parm-mlx[cuda]'"
)

# Parameters of mallopt(3): arrays of up to 32 MiB come from memory that is kept, up to 2 GiB of it stays with the
# process, and it grows by 64 MiB at a time; all threads share it.
MALLOC_SETTINGS = {
    "M_MMAP_THRESHOLD": (-3, 32 * 2**20),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 * 2**20),
    "M_ARENA_MAX": (-8, 1),
}


def uses_linux_cpu() -> bool:
    """Returns whether MLX computes with its CPU back end for Linux."""
    return sys.platform == "linux" and not any(map(_is_installed, ("mlx-cuda-12", "mlx-cuda-13")))


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def lacks_backend(error: BaseException) -> bool:
    """Returns whether an import of MLX failed because no back end is installed (plain ``mlx`` on Linux has none)."""
    return isinstance(error, ImportError) and "libmlx" in str(error)


def preload_blas() -> bool:
    """Loads OpenBLAS for the whole process; must be called before ``mlx.core`` is imported.

    Returns:
        False if matrix products will be slow: MLX uses the CPU on Linux, and OpenBLAS was not found.
    """
    if not uses_linux_cpu():
        return True
    try:
        ctypes.CDLL(OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def keep_freed_memory() -> bool:
    """Tells glibc to keep the memory that this process frees, for the rest of the process.

    A training step frees and allocates the same large arrays again and again. By default glibc returns each of them to
    the kernel, which has to find and clear the pages again.

    Returns:
        Whether every setting was taken; False wherever MLX does not use the CPU on Linux.
    """
    if not uses_linux_cpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    taken = [mallopt(number, value) for number, value in MALLOC_SETTINGS.values()]
    return all(taken)


def versions(*more: str) -> dict[str, str]:
    """Returns the versions that results depend on besides settings and data.

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


def device_info() -> dict[str, Any]:
    """Returns MLX's description of the device that it computes on."""
    import mlx.core as mx

    return dict(mx.device_info())


def has_metal() -> bool:
    """Returns whether MLX computes on an Apple GPU."""
    import mlx.core as mx

    return bool(mx.metal.is_available() and mx.default_device() == mx.gpu)


def device_name() -> str:
    """Returns MLX's device: ``Apple M2 Pro (Metal)``, ``NVIDIA L4 (CUDA)``, or the processor and its cores."""
    info = device_info()
    name = info.get("device_name") or platform.machine()
    if has_metal():
        return f"{name} (Metal)"
    return f"{name} (CUDA)" if "total_memory" in info else f"{name}, {os.cpu_count()} cores (CPU)"


def physical_memory() -> int:
    """Returns the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Returns the bytes that a model may use on MLX's device.

    On Metal this is what the system recommends, on CUDA the memory of the GPU, on a CPU the physical memory.
    """
    info = device_info()
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or physical_memory())


def load_per_core() -> float:
    """Returns the load of the last minute, from all processes: 1.0 if every core had work."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


@contextmanager
def weights_kept_in_memory() -> Iterator[None]:
    """Lets Metal keep all that MLX holds resident while the block runs, as mlx-lm's own generation does."""
    import mlx.core as mx

    if not has_metal():
        yield
        return
    before = mx.set_wired_limit(usable_memory())
    try:
        yield
    finally:
        mx.set_wired_limit(before)


def describe_machine(*more: str) -> str:
    """Returns one line for the foot of a measurement.

    Args:
        more: Installed distributions to name besides mlx and mlx-lm.
    """
    known = versions(*more)
    return ", ".join(
        [known["platform"], *(f"{name} {known[name]}" for name in ("mlx", "mlx-lm", *more)), device_name()]
    )
