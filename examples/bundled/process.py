"""Settings of the process that make MLX train faster on a Linux CPU."""

import os
import sys

# MLX returns freed memory to the kernel and pays for it again at every step; these settings of the C library keep it.
FAST_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def keep_freed_memory(**settings: str) -> None:
    """Starts this script again with FAST_MEMORY and ``settings`` in its environment; does nothing if they are there.

    The C library reads them when a process starts. On two cores they double the speed of training.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], FAST_MEMORY | settings | dict(os.environ))
