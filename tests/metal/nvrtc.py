"""NVIDIA's own compiler, NVRTC, on the text of a CUDA kernel. It compiles without a card; nothing runs.

It comes with ``parm-mlx[cuda]``, or alone: ``pip install nvidia-cuda-nvrtc nvidia-cuda-runtime``. A folder that holds
them, as ``pip install --target`` makes one, may be named in NVRTC_FOLDER.
"""

import ctypes
import os
import sys
from pathlib import Path

from metal.cuda import INCLUDES

# What MLX's device/utils.cuh gives to the kernels of this package: the types of 16 bits.
HEADER = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <cooperative_groups.h>\n"
# As mlx/backend/cuda/jit_module.cpp calls it; without the folders.
OPTIONS = ["--device-as-default-execution-space"]


def find() -> tuple[Path, Path] | None:
    """The library and the folder of CUDA's headers, of CUDA 13 or 12."""
    for folder in map(Path, [os.environ.get("NVRTC_FOLDER", ""), *sys.path]):
        for nvrtc, runtime in (("cu13", "cu13"), ("cuda_nvrtc", "cuda_runtime")):
            libraries = sorted((folder / "nvidia" / nvrtc / "lib").glob("libnvrtc.so.*"))
            include = folder / "nvidia" / runtime / "include"
            if libraries and include.is_dir():
                return libraries[0], include
    return None


def compile_for(architecture: str, text: str) -> str:
    """Compiles MLX's text for an architecture such as ``sm_90``; returns the compiler's log, empty if all is well.

    Raises:
        RuntimeError: NVRTC refuses the text; the message is its log.
    """
    found = find()
    if found is None:
        raise RuntimeError("NVRTC is not installed")
    nvrtc = ctypes.CDLL(str(found[0]))
    program = ctypes.c_void_p()
    source = (HEADER + text.removeprefix(INCLUDES)).encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    options = [*OPTIONS, f"--gpu-architecture={architecture}", f"--include-path={found[1]}"]
    options += [f"--include-path={found[1] / 'cccl'}"] if (found[1] / "cccl").is_dir() else []
    failed = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    )
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(log.value.decode())
    return log.value.decode().strip()
