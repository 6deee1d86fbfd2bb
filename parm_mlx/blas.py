"""OpenBLAS for MLX on Linux.

MLX's Linux wheel links the reference BLAS. When OpenBLAS is loaded into the process first, MLX's float32 products use
it and run about 30 times faster. On macOS there is nothing to do: MLX uses Accelerate and Metal.
"""

import ctypes
import sys

LIBRARY = "libopenblas.so.0"
HINT = (
    "OpenBLAS is not installed, so MLX runs about 30 times slower here; on Debian or Ubuntu: "
    "apt install libopenblas0-pthread"
)


def preload() -> bool:
    """Loads OpenBLAS for the whole process; call it before ``mlx.core`` is imported.

    Returns:
        Whether matrix products are fast: True on anything but Linux, and on Linux when OpenBLAS was found.
    """
    if sys.platform != "linux":
        return True
    try:
        ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
