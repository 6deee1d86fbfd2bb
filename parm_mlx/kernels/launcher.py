"""Makes the kernels and decides whether a kernel or its twin of plain operations runs.

One text, written in Metal, serves both of MLX's back ends for GPUs: before it, CUDA gets cuda.h, which says what its
words mean there.

The environment variable ``PARM_MLX_KERNELS`` decides: ``off`` runs the twins; ``on`` the kernels, checked or not; and
``auto``, the default, a kernel where MLX computes on a GPU and the check of that kernel and dtype has passed. The
passed checks are recorded in the user's cache folder. A record holds for the machine, operating system, MLX and kernel
files that it was made with; any other, or one that cannot be read, counts as none.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from parm_mlx.errors import ConfigError, RunError
from parm_mlx.files import cache_folder
from parm_mlx.machine import gpu_backend, has_gpu

VARIABLE = "PARM_MLX_KERNELS"
MODES = ("off", "auto", "on")
DTYPES = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
STRIP = 4  # neighbouring logits that a thread takes at a time: one exponential for the rescaling, not one per logit
_FOLDER = Path(__file__).parent


@cache
def load(name: str, inputs: Sequence[str], outputs: Sequence[str], header: str | None = None) -> Any:
    """Makes the kernel of ``name``.metal, once, with the functions of ``header``.metal.

    Without CUDA it is a Metal kernel, of which only a call needs Metal.
    """
    cuda = gpu_backend() == "CUDA"
    make = mx.fast.cuda_kernel if cuda else mx.fast.metal_kernel
    before = [text("cuda.h")] if cuda else []
    return make(
        name=f"parm_{name}",
        input_names=inputs,
        output_names=outputs,
        source=text(f"{name}.metal"),
        header="\n".join([*before, text(f"{header}.metal") if header else ""]),
    )


def text(file: str) -> str:
    """Returns a file of this folder: the body of a kernel, or what stands before one."""
    return (_FOLDER / file).read_text(encoding="utf-8")


def threads_for(vocabulary: int, most: int) -> int:
    """Returns how many threads share a row of logits: whole simdgroups, and none that has nothing to read."""
    return min(most, 32 * -(-vocabulary // (32 * STRIP)))


def runs(kernel: str, dtype: mx.Dtype) -> bool:
    """Returns True if a kernel (lowrank, logprob or combine) runs where y or the logits have this dtype.

    The variable and the record are read once per process, the device at every call.

    Raises:
        ConfigError: The variable has another value, or asks for kernels where MLX does not compute on a GPU.
    """
    mode = _mode()
    if mode == "off" or dtype not in DTYPES:
        return False
    if gpu_backend():
        return mode == "on" or (kernel, DTYPES[dtype]) in _passed()
    if mode == "on":
        reason = "MLX computes on the CPU" if has_gpu() else "MLX has neither Metal nor CUDA here"
        raise ConfigError(f"{VARIABLE}=on, but {reason}", hint=f"unset {VARIABLE}: plain operations do the same")
    return False


def forget() -> None:
    """Clears the cached variable and record, after either has changed."""
    _mode.cache_clear()
    _passed.cache_clear()


@cache
def _mode() -> str:
    value = os.environ.get(VARIABLE, "auto")
    if value not in MODES:
        raise ConfigError(f"{VARIABLE}={value} is not one of {', '.join(MODES)}", hint="leave it unset for auto")
    return value


@cache
def _passed() -> frozenset[tuple[str, str]]:
    return read_record()


def record_path() -> Path:
    """Returns the file of the record."""
    return cache_folder() / "kernels.json"


def circumstances() -> dict[str, str]:
    """Returns everything that a record depends on."""
    return {
        "device": str(mx.device_info().get("device_name", "")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mlx": version("mlx"),
        "kernels": fingerprint(),
    }


@cache
def fingerprint() -> str:
    """Returns a SHA-256 over all files of this folder: the kernels, and the modules that launch them."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _FOLDER.iterdir() if path.suffix in (".h", ".metal", ".py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def save_record(passed: Iterable[tuple[str, str]]) -> Path:
    """Records which (kernel, dtype) have passed here, and returns the file."""
    path = record_path()
    record = {"made with": circumstances(), "passed": sorted(map(list, passed))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as partial:
            json.dump(record, partial, indent=2)
        Path(partial.name).replace(path)
    except OSError as error:
        raise RunError(f"the record of the kernels' check could not be written to {path}: {error.strerror}") from error
    return path


def read_record() -> frozenset[tuple[str, str]]:
    """Returns which (kernel, dtype) have passed here; none if no record holds."""
    try:
        record = json.loads(record_path().read_text(encoding="utf-8"))
        passed = record["passed"] if record["made with"] == circumstances() else []
        return frozenset((str(kernel), str(dtype)) for kernel, dtype in passed)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):  # also where there is no home folder
        return frozenset()
