"""The C library's memory settings that make MLX train faster on a Linux CPU.

A training step frees and allocates the same large arrays again and again. glibc gives each of them back to the kernel,
which has to find and clear the pages anew; told to keep them, it hands the same pages out again.
"""

import ctypes
import sys

# The parameters of mallopt(3) by number. Arrays of up to 32 MiB come from memory that is kept, up to 2 GiB of it stays
# with the process, and it grows by 64 MiB at a time; all threads share it.
SETTINGS = {
    "M_MMAP_THRESHOLD": (-3, 32 * 2**20),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 * 2**20),
    "M_ARENA_MAX": (-8, 1),
}


def keep_freed_memory() -> bool:
    """Has glibc keep the memory that this process frees; elsewhere there is nothing to do.

    It is meant for the start of a training and lasts for the rest of the process.

    Returns:
        Whether every setting was taken.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, musl for instance
        return False
    taken = [mallopt(number, value) for number, value in SETTINGS.values()]
    return all(taken)
