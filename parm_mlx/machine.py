"""This machine: MLX's back end, its device and memory, and what makes it fast on a Linux CPU.

MLX's CPU back end for Linux links the reference BLAS. If OpenBLAS is loaded into the process first, float32 products
use it and run about 30 times faster. ``mlx.core`` is imported inside the functions: OpenBLAS comes first, and
``parm-mlx --help`` must not wait.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

OPENBLAS = "libopenblas.so.0"
BLAS_HINT = (
    "OpenBLAS is not installed, so MLX runs about 30 times slower here: pip install 'parm-mlx[blas]', or on Debian and "
    "Ubuntu apt install libopenblas0-pthread"
)
NO_BACKEND = (
    "MLX has no back end on this machine; install one: pip install 'parm-mlx[cpu]' or, with an NVIDIA GPU, "
    "pip install 'parm-mlx[cuda13]'"
)

MALLOC_SETTINGS = (  # mallopt(3)
    (-3, 32 * 2**20),  # M_MMAP_THRESHOLD: arrays of up to 32 MiB come from memory that is kept,
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: up to 2 GiB of which stay with the process.
    (-2, 64 * 2**20),  # M_TOP_PAD: It grows by 64 MiB at a time.
    (-8, 1),  # M_ARENA_MAX: All threads share it.
)


@cache
def uses_linux_cpu() -> bool:
    """Returns True if MLX computes with its CPU back end for Linux."""
    return sys.platform == "linux" and not any(map(_is_installed, ("mlx-cuda-12", "mlx-cuda-13")))


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def lacks_backend(error: BaseException) -> bool:
    """Returns True if an import of MLX failed because no back end is installed (plain ``mlx`` on Linux has none)."""
    return isinstance(error, ImportError) and "libmlx" in str(error)


def preload_blas() -> bool:
    """Loads OpenBLAS, before ``mlx.core`` is imported; returns False if products will be slow: it was not found."""
    return not uses_linux_cpu() or any(map(_load_blas, [OPENBLAS, *_blas_of_packages()]))


def _blas_of_packages() -> Iterator[str]:
    """Yields the paths of OpenBLAS libraries that installed packages carry, after loading what they need.

    ``auditwheel`` puts such libraries into ``PACKAGE.libs`` beside a package. Those of NumPy and SciPy have other
    names, since their functions have.
    """
    for path in (file for folder in sys.path for file in Path(folder).glob("*.libs/libopenblas*.so*")):
        for name in ("libquadmath*", "libgfortran*", "libgomp*"):
            for needed in path.parent.glob(name):
                with suppress(OSError):
                    ctypes.CDLL(str(needed))
        yield str(path)


def _load_blas(library: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL), "cblas_sgemm")
    except OSError:
        return False


def keep_freed_memory() -> bool:
    """Tells glibc to keep the memory that this process frees; returns False wherever MLX does not use the CPU on Linux.

    A training step frees and allocates the same large arrays again and again. By default glibc returns each of them to
    the kernel, which has to find and clear the pages again.
    """
    if not uses_linux_cpu():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    taken = [mallopt(number, value) for number, value in MALLOC_SETTINGS]
    return all(taken)


def versions(*more: str) -> dict[str, str]:
    """Returns the versions that results depend on, by name: of distributions, also ``more``, Python and platform."""
    return {
        **{name: version(name) for name in ("parm-mlx", "mlx", "mlx-lm", "numpy", *more)},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def device_info() -> dict[str, Any]:
    """Returns MLX's description of the device that it computes on."""
    import mlx.core as mx

    return dict(mx.device_info())


def gpu_backend() -> Literal["Metal", "CUDA"] | None:
    """Returns MLX's back end for the GPU that it computes on, or None if it computes on the CPU."""
    import mlx.core as mx

    if mx.default_device() != mx.gpu:
        return None
    if mx.metal.is_available():
        return "Metal"
    return "CUDA" if mx.cuda.is_available() else None


def has_gpu() -> bool:
    """Returns True if MLX has a back end for a GPU, in use or not."""
    import mlx.core as mx

    return bool(mx.metal.is_available() or mx.cuda.is_available())


def has_metal() -> bool:
    """Returns True if MLX computes on an Apple GPU."""
    return gpu_backend() == "Metal"


def device_name() -> str:
    """Returns MLX's device: ``Apple M2 Pro (Metal)``, ``NVIDIA L4 (CUDA)``, or the processor and its cores."""
    name = device_info().get("device_name") or platform.machine()
    backend = gpu_backend()
    return f"{name} ({backend})" if backend else f"{name}, {os.cpu_count()} cores (CPU)"


def physical_memory() -> int:
    """Returns the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Returns the bytes that a model may use: what Metal recommends, a GPU's memory, or a CPU's physical memory."""
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
    """Returns one line for the foot of a measurement, with the versions of mlx, mlx-lm and ``more``."""
    known = versions(*more)
    named = [f"{name} {known[name]}" for name in ("mlx", "mlx-lm", *more)]
    return ", ".join([known["platform"], *named, device_name()])
