import ctypes
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest

from parm_mlx import machine

COUNT = """
import mmap, resource, sys
from parm_mlx.machine import keep_freed_memory
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
    return machine.uses_linux_cpu() and hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not has_mallopt(), reason="glibc only")
def test_freed_memory_is_used_again() -> None:
    """64 MiB are 16384 pages of 4 KiB; once they stay with the process, nearly none is asked for again."""
    assert faults("kept") < 200 < faults("default")


@pytest.mark.parametrize("where", ["macOS", "CUDA"])
def test_only_the_cpu_back_end_gets_openblas_and_kept_memory(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "uses_linux_cpu", machine.uses_linux_cpu.__wrapped__)  # it is told once otherwise
    if where == "macOS":
        monkeypatch.setattr(machine.sys, "platform", "darwin")
    else:
        monkeypatch.setattr(machine, "_is_installed", lambda name: name == "mlx-cuda-13")
    monkeypatch.setattr(machine.ctypes, "CDLL", None)
    assert machine.preload_blas()
    assert not machine.keep_freed_memory()


def test_the_memory_of_this_machine() -> None:
    assert 2**28 < machine.usable_memory() < 2**45


@pytest.mark.parametrize(
    ("info", "backend", "name"),
    [
        ({"device_name": "Apple M2 Pro", "max_recommended_working_set_size": 7}, "Metal", "Apple M2 Pro (Metal)"),
        ({"device_name": "NVIDIA L4", "total_memory": 7, "free_memory": 5}, "CUDA", "NVIDIA L4 (CUDA)"),
        ({"device_name": "Xeon"}, None, f"Xeon, {os.cpu_count()} cores (CPU)"),
    ],
)
def test_memory_and_name_are_those_of_the_device(
    info: dict[str, object], backend: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu_backend", lambda: backend)
    monkeypatch.setattr(machine, "device_info", lambda: info)
    monkeypatch.setattr(machine, "physical_memory", lambda: 7)
    assert machine.usable_memory() == 7
    assert machine.device_name() == name


@pytest.mark.parametrize(
    ("device", "metal", "cuda", "backend"),
    [
        (mx.cpu, True, True, None),
        (mx.gpu, True, False, "Metal"),
        (mx.gpu, False, True, "CUDA"),
        (mx.gpu, False, False, None),
    ],
)
def test_the_back_end_is_that_of_the_gpu_in_use(
    device: mx.DeviceType, metal: bool, cuda: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device))
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    assert machine.gpu_backend() == backend
    assert machine.has_metal() == (backend == "Metal")
    assert machine.has_gpu() == (metal or cuda)


def test_the_line_of_a_measurement_names_versions_and_the_device() -> None:
    line = machine.describe_machine("rich")
    assert line.startswith(f"{platform.system()} {platform.machine()}, mlx {version('mlx')}, ")
    assert f"rich {version('rich')}, {machine.device_name()}" in line


MISSING = """
import sys
error = ImportError("libmlx.so: cannot open shared object file: No such file or directory")

class NoBackend:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            raise error

sys.meta_path.insert(0, NoBackend())
"""


def test_an_import_without_a_back_end_is_one_line_that_names_the_extras(tmp_path: Path) -> None:
    command = "from parm_mlx.cli.main import run; sys.exit(run(['generate', '--prompt', 'hi']))"
    done = subprocess.run([sys.executable, "-c", MISSING + command], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "parm-mlx[cpu]" in line
    assert "parm-mlx[cuda13]" in line
    library = "import parm_mlx; parm_mlx.load()"
    done = subprocess.run([sys.executable, "-c", MISSING + library], capture_output=True, text=True, cwd=tmp_path)
    assert "parm-mlx[cpu]" in done.stderr.splitlines()[-1]
