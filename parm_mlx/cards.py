"""NVIDIA cards: memory and bandwidth, where MLX keeps what it compiles for them, and what its errors mean.

``mlx.core`` is imported inside the functions, as in machine.py.
"""

import ctypes
import os
import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parm_mlx.machine import device_info, gpu_backend

# Gigabytes a second as NVIDIA gives them, by the name that the driver gives without its first word.
BANDWIDTHS = {
    "A10": 600,
    "A100 80GB PCIe": 1935,
    "A100-PCIE-40GB": 1555,
    "A100-SXM4-40GB": 1555,
    "A100-SXM4-80GB": 2039,
    "A10G": 600,
    "B200": 8000,
    "GB10": 273,
    "GeForce RTX 3090": 936,
    "GeForce RTX 4090": 1008,
    "GeForce RTX 5090": 1792,
    "H100 80GB HBM3": 3350,
    "H100 NVL": 3900,
    "H100 PCIe": 2000,
    "H200": 4800,
    "L4": 300,
    "L40": 864,
    "L40S": 864,
    "RTX 6000 Ada Generation": 960,
    "RTX A6000": 768,
    "T4": 320,
}
COMPILED = "MLX_PTX_CACHE_DIR"
NO_CARD = "MLX has its CUDA back end here, but finds no NVIDIA card that it can use"
NO_CARD_HINT = (
    "`nvidia-smi` shows cards and the driver; on a machine without a card, install parm-mlx[cpu] in place of "
    "parm-mlx[cuda13], in a new environment"
)
NO_HEADERS = "MLX compiles kernels for the card while it runs, and finds no CUDA headers"
NO_HEADERS_HINT = "the extra cuda13 in place of cuda brings them; or name a CUDA toolkit of the machine in CUDA_HOME"
# How CUDA says that there is no card or no driver for it.
_NO_CARD = re.compile(r"no CUDA-capable device|CUDA driver version is insufficient|cannot open.*libcuda|libcuda\.so")
_LIBRARY = re.compile(r"(lib(?:cu|nv|nccl)[\w.+-]*): cannot open shared object file")
_LACKING = re.compile(r"(\w+) has no CUDA implementation|\[(quantized_matmul|gather_qmm)\] .*\bnot supported")


@dataclass(frozen=True)
class Card:
    """A graphics card that MLX computes on with CUDA."""

    name: str
    memory: int  # bytes
    free: int  # bytes that no process uses
    bandwidth: float | None  # gigabytes a second; None if neither the table nor the driver knows it


def card() -> Card | None:
    """Returns the card that MLX computes on; None without CUDA, or where there is no card for it."""
    info = device_info() if gpu_backend() == "CUDA" else {}
    return describe(info) if info.get("total_memory") else None


def describe(info: dict[str, Any]) -> Card:
    """Reads MLX's description of a card, and looks up its bandwidth."""
    name, total = str(info["device_name"]), int(info["total_memory"])
    return Card(name, total, int(info.get("free_memory", total)), known_bandwidth(name) or driver_bandwidth())


def known_bandwidth(name: str) -> float | None:
    """Returns the gigabytes a second of a card of exactly this name, from the table.

    A part of a card (MIG) and the laptop's card of the same number have other names and another bandwidth.
    """
    return BANDWIDTHS.get(re.sub(r"^(NVIDIA|Tesla) (Tesla )?", "", name))


def driver_bandwidth(library: str = "libcuda.so.1") -> float | None:
    """Computes a bandwidth from the first card's memory clock and bus width, as the driver gives them.

    GB/s = 2 transfers a cycle · clock in kHz · 1000 · bits / 8 / 1e9.
    """
    try:
        cuda = ctypes.CDLL(library)
        device, values = ctypes.c_int(), []
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
            return None
        for attribute in (36, 37):  # CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, …_GLOBAL_MEMORY_BUS_WIDTH
            value = ctypes.c_int()
            if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
                return None
            values.append(value.value)
    except (OSError, AttributeError):
        return None
    clock, width = values
    return round(2 * clock * 1000 * width / 8 / 1e9, 1) or None


def compiled_folder() -> Path:
    """Returns the folder where MLX keeps kernels that it compiled for a card, and finds them in later runs."""
    return Path(os.environ.get(COMPILED) or Path(tempfile.gettempdir()) / "mlx" / version("mlx") / "ptx")


def problem(error: BaseException) -> tuple[str, str] | None:
    """Returns a line and a hint for an error of MLX's CUDA back end; None for every other error."""
    text = str(error)
    if isinstance(error, ImportError | RuntimeError) and _NO_CARD.search(text):
        return NO_CARD, NO_CARD_HINT
    if isinstance(error, ImportError) and (found := _LIBRARY.search(text)):
        return (
            f"MLX's CUDA back end needs {found[1]}, which is not installed",
            "install parm-mlx[cuda13], or parm-mlx[cuda], again",
        )
    if isinstance(error, RuntimeError) and "locations of CUDA headers" in text:
        return NO_HEADERS, NO_HEADERS_HINT
    if isinstance(error, RuntimeError | ValueError) and (found := _LACKING.search(text)):
        line = f"MLX's CUDA back end cannot compute the operation {found[1] or found[2]}: {' '.join(text.split())}"
        return line, "please report it; an environment with parm-mlx[cpu] computes it on the CPU"
    return None
