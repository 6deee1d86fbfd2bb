import ctypes
import subprocess
import sys

import pytest

from parm_mlx import malloc

COUNT = """
import mmap, resource, sys
from parm_mlx.malloc import keep_freed_memory
assert sys.argv[1] == "default" or keep_freed_memory()
import ctypes
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def once():
    blocks = [c.malloc(2**24) for _ in range(4)]
    for block in blocks: ctypes.memset(block, 1, 2**24)
    for block in blocks: c.free(block)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str) -> int:
    result = subprocess.run([sys.executable, "-c", COUNT, setting], capture_output=True, text=True, check=True)
    return int(result.stdout)


def has_mallopt() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="glibc only")
def test_freed_memory_is_used_again() -> None:
    """64 MiB are 16384 pages of 4 KiB; once they stay with the process, nearly none is asked for again."""
    assert faults("kept") < 200 < faults("default")


def test_nothing_is_done_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    monkeypatch.setattr(malloc.ctypes, "CDLL", None)
    assert not malloc.keep_freed_memory()
