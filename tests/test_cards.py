"""NVIDIA cards, with descriptions made up as MLX gives them: no test here needs a card."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx import cards, machine
from parm_mlx.cards import Card

H100 = {
    "device_name": "NVIDIA H100 80GB HBM3",
    "architecture": "sm_90",
    "total_memory": 85_520_809_984,
    "free_memory": 84_000_000_000,
}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that computes on a card, whose description a test may change."""
    info: dict[str, Any] = dict(H100)
    for module in (cards, machine):
        monkeypatch.setattr(module, "gpu_backend", lambda: "CUDA")
        monkeypatch.setattr(module, "device_info", lambda: info)
    return info


def test_a_card_is_described_by_name_memory_and_bandwidth(cuda: dict[str, Any]) -> None:
    assert cards.card() == Card("NVIDIA H100 80GB HBM3", 85_520_809_984, 84_000_000_000, 3350)
    assert machine.device_name() == "NVIDIA H100 80GB HBM3 (CUDA)"
    assert machine.usable_memory() == 85_520_809_984


def test_a_back_end_without_a_card_has_none(cuda: dict[str, Any]) -> None:
    """MLX describes no device then: the description is empty."""
    cuda.clear()
    assert cards.card() is None


def test_a_cpu_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "gpu_backend", lambda: None)
    assert cards.card() is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA L4", 300),
        ("NVIDIA L40S", 864),
        ("Tesla T4", 320),
        ("NVIDIA GeForce RTX 4090", 1008),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H300", None),
    ],
)
def test_the_table_knows_exact_names(name: str, expected: float | None) -> None:
    assert cards.known_bandwidth(name) == expected


class Driver:
    """libcuda of a card with a memory clock (kHz) and a bus width (bits)."""

    def __init__(self, clock: int, width: int, fails: str = "") -> None:
        self._values, self._fails = {36: clock, 37: width}, fails

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 100 if self._fails == "cuInit" else 0  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self._values[attribute]
        return 1 if self._fails == "attribute" else 0


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver(2_619_000, 5120), 3352.3),  # an H100: 2 · 2.619 GHz · 640 bytes
        (Driver(10_501_000, 384), 1008.1),  # an RTX 4090: 2 · 10.501 GHz · 48 bytes
        (Driver(0, 5120), None),  # newer drivers may not say
        (Driver(2_619_000, 5120, "cuInit"), None),
        (Driver(2_619_000, 5120, "attribute"), None),
        (object(), None),  # a library of another kind
    ],
)
def test_the_driver_gives_clock_and_width(
    driver: object, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards.ctypes, "CDLL", lambda name: driver)
    assert cards.driver_bandwidth() == expected


def test_without_a_driver_the_bandwidth_is_unknown() -> None:
    assert cards.driver_bandwidth("libno-such-library.so") is None


def test_compiled_kernels_are_where_mlx_keeps_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``ptx_cache_dir`` of mlx/backend/cuda/jit_module.cpp."""
    monkeypatch.delenv("MLX_PTX_CACHE_DIR", raising=False)
    monkeypatch.setattr(cards.tempfile, "gettempdir", lambda: "/var/tmp")
    assert cards.compiled_folder() == Path("/var/tmp/mlx") / version("mlx") / "ptx"
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path))
    assert cards.compiled_folder() == tmp_path


LACKING = [
    (RuntimeError("SVD has no CUDA implementation."), "SVD"),
    (ValueError("[quantized_matmul] 7-bit quantization is not supported."), "quantized_matmul"),
    (RuntimeError("[quantized_matmul] Group size 16 is not supported."), "quantized_matmul"),
]
NO_CARD = [
    RuntimeError("cudaFree(nullptr) failed: no CUDA-capable device is detected"),
    RuntimeError("cudaGetDevice(&d) failed: CUDA driver version is insufficient for CUDA runtime version"),
    ImportError("libcuda.so.1: cannot open shared object file: No such file or directory"),
]


@pytest.mark.parametrize(("error", "operation"), LACKING)
def test_an_operation_that_the_back_end_lacks_is_named(error: Exception, operation: str) -> None:
    line, hint = cards.problem(error) or ("", "")
    assert line == f"MLX's CUDA back end cannot compute the operation {operation}: {error}"
    assert "parm-mlx[cpu]" in hint


@pytest.mark.parametrize("error", NO_CARD)
def test_no_card_is_one_line(error: Exception) -> None:
    assert cards.problem(error) == (cards.NO_CARD, cards.NO_CARD_HINT)


def test_missing_headers_are_one_line() -> None:
    """The message of mlx/backend/cuda/jit_module.cpp."""
    text = "Can not find locations of CUDA headers, please set environment variable CUDA_HOME or CUDA_PATH."
    assert cards.problem(RuntimeError(text)) == (cards.NO_HEADERS, cards.NO_HEADERS_HINT)


def test_a_library_that_is_missing_is_named() -> None:
    error = ImportError("libcublasLt.so.13: cannot open shared object file: No such file or directory")
    line, hint = cards.problem(error) or ("", "")
    assert "libcublasLt.so.13" in line
    assert "parm-mlx[cuda]" in hint


@pytest.mark.parametrize(
    "error", [RuntimeError("other"), ValueError("[load] x is not supported"), KeyError("libcuda.so")]
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert cards.problem(error) is None


@pytest.mark.parametrize("error", [LACKING[0][0], NO_CARD[0]])
def test_the_command_line_ends_with_that_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    from parm_mlx.cli import app

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    code, out, err = run_cli("generate", "hi", "--model", "bundled")
    assert (code, out) == (1, "")
    expected = cards.problem(error)
    assert expected is not None
    assert " ".join(err.split()) == f"error: {expected[0]} hint: {expected[1]}"


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="MLX has a GPU here")
def test_the_suite_on_a_gpu_that_is_not_there_is_skipped_with_a_reason() -> None:
    """PARM_MLX_TEST_DEVICE=gpu on a machine without one: no failure, and no test that ran on the CPU instead."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_preference.py"]
    environment = {**os.environ, "PARM_MLX_TEST_DEVICE": "gpu"}
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PARM_MLX_TEST_DEVICE=gpu, but MLX has no GPU here" in done.stdout
    assert "passed" not in done.stdout


def test_another_device_for_the_tests_is_refused() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_preference.py"]
    environment = {**os.environ, "PARM_MLX_TEST_DEVICE": "tpu"}
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "PARM_MLX_TEST_DEVICE is cpu or gpu, not tpu" in done.stdout + done.stderr
