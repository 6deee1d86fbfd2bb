"""Compiles a kernel with g++ and calls it. What g++ makes is kept in the user's cache folder, named by content."""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from metal.graph import EmulatorError

CPP = Path(__file__).parent / "cpp"
RUNTIME = ("fibers.cpp", "launch.cpp", "memory.cpp", "sanitizer.cpp", "scheduler.cpp")
COMPILER = shutil.which("g++") if platform.system() == "Linux" else None

COMMON = [
    "-std=c++17",
    "-fPIC",
    "-g1",  # lines for error messages
    "-fcf-protection=none" if platform.machine() == "x86_64" else "-fno-omit-frame-pointer",  # we switch stacks
    "-U_FORTIFY_SOURCE",  # its longjmp refuses to leave a fiber
]
KERNEL = [
    "-fsingle-precision-constant",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Werror=uninitialized",
    "-Wno-attributes",
]
CHECKED = [
    "-O1",
    "-fno-tree-vectorize",
    "-ftrivial-auto-var-init=pattern",
    "-fsanitize=thread,bounds,alignment,signed-integer-overflow,shift,integer-divide-by-zero,float-cast-overflow",
    "--param=tsan-instrument-func-entry-exit=0",
]
FAST = ["-O2"]


class Buffer(ctypes.Structure):
    """``emu::Buffer`` of cpp/internal.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("origin", ctypes.c_size_t),
        ("element", ctypes.c_size_t),
        ("is_output", ctypes.c_int),
        ("is_initialised", ctypes.c_int),
        ("name", ctypes.c_char_p),
    )


class Report(ctypes.Structure):
    """``emu::Report`` of cpp/internal.h."""

    _fields_ = (
        ("message", ctypes.c_char * 2048),
        ("address", ctypes.c_size_t),
        ("device_accesses", ctypes.c_size_t),
        ("threadgroup_accesses", ctypes.c_size_t),
        ("threadgroup_bytes", ctypes.c_size_t),
    )


def folder() -> Path:
    """The cache of this user."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        path = base / "parm-mlx" / "metal-emulator"
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = Path(tempfile.gettempdir()) / f"parm-mlx-metal-emulator-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
    return path


@cache
def _fingerprint() -> bytes:
    """Of all that every kernel shares: the compiler, the C++ sources and the flags."""
    version = subprocess.run([COMPILER or "", "--version"], capture_output=True, check=True).stdout
    sources = b"".join(path.read_bytes() for path in sorted(CPP.iterdir()))
    return version + sources + repr((COMMON, KERNEL, CHECKED, FAST)).encode()


def _make(suffix: str, content: bytes, *commands: list[str]) -> Path:
    """The file ``made`` that g++ makes of `content`, in ``kernel.cpp``, by `commands`, in the cache.

    It is made in a folder of its own and then renamed, so that nobody sees half of it.
    """
    key = hashlib.sha256(_fingerprint() + repr((suffix, content)).encode()).hexdigest()[:24]
    result = folder() / f"{key}{suffix}"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=folder()) as beside:
            (Path(beside) / "kernel.cpp").write_bytes(content)
            for command in commands:
                _compile(command, beside)
            (Path(beside) / "made").replace(result)
    return result


def _compile(arguments: list[str], where: str) -> None:
    command = [COMPILER or "", f"-I{CPP}", *arguments]
    english = {**os.environ, "LC_ALL": "C"}
    run = subprocess.run(command, cwd=where, env=english, capture_output=True, text=True, check=False)
    if run.returncode:
        errors = re.findall(r".*(?:error|undefined reference).*", run.stderr) or [run.stderr]
        raise EmulatorError("the kernel does not compile\n" + "\n".join(errors)[:4000])


def preprocessed(text: str) -> str:
    """The text after the preprocessor, which leaves marks of files and lines in it.

    Raises:
        EmulatorError: A directive in it is wrong.
    """
    return _make(".ii", text.encode(), ["-std=c++17", "-E", "kernel.cpp", "-o", "made"]).read_text()


def library(cpp: str, checked: bool) -> Path:
    """The shared library of a kernel and the runtime.

    Raises:
        EmulatorError: g++ refuses the kernel; the message has its errors.
    """
    runtime = [
        str(_make(f"-{Path(name).stem}.o", b"", [*COMMON, "-O2", "-c", str(CPP / name), "-o", "made"]))
        for name in RUNTIME
    ]
    mode = CHECKED if checked else FAST
    return _make(
        "-checked.so" if checked else "-fast.so",
        cpp.encode(),
        [*COMMON, *KERNEL, *mode, "-c", "kernel.cpp"],
        # Without -fsanitize, which would bring g++'s own runtime.
        ["-shared", "-Wl,--no-undefined", "kernel.o", *runtime, "-o", "made"],
    )


def call(
    path: Path, buffers: list[Buffer], grid: tuple[int, ...], threadgroup: tuple[int, ...], **options: int
) -> Report:
    """Launches the kernel of a library; outputs are written to the buffers.

    Raises:
        EmulatorError: A detector fired.
    """
    report = Report()
    array = (Buffer * len(buffers))(*buffers)
    sizes = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*threadgroup))
    launch = ctypes.CDLL(str(path)).emulator_launch
    if launch(
        array, len(buffers), *sizes, options["schedule"], options["round_up"], options["seconds"], ctypes.byref(report)
    ):
        raise EmulatorError(report.message.decode() + source_line(path, report.address))
    return report


def source_line(path: Path, address: int) -> str:
    """``; line N of the kernel body`` for an address in a library, or nothing where it is not known."""
    tool = shutil.which("addr2line")
    if not address or not tool:
        return ""
    found = subprocess.run([tool, "-i", "-e", str(path), hex(address)], capture_output=True, text=True, check=False)
    match = re.search(r"(?:^|/)(body|header):(\d+)", found.stdout, flags=re.M)
    return f"; line {match[2]} of the kernel {match[1]}" if match else ""
