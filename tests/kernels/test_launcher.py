from math import log
from types import ModuleType

import mlx.core as mx
import pytest

from parm_mlx.errors import ConfigError
from parm_mlx.kernels import launcher
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.kernels.launcher import runs, save_record
from parm_mlx.kernels.logprob import target_logprobs
from parm_mlx.kernels.lowrank import lowrank_update

pytestmark = pytest.mark.usefixtures("empty_cache")

CALLS = {
    "lowrank": lambda: lowrank_update(*map(mx.ones, ((1, 1, 4), (1, 1, 4), (2, 4), (1, 2, 2), (4, 2)))),
    "logprob": lambda: target_logprobs(mx.ones((1, 4)), mx.array([0])),
    "combine": lambda: combine_logits(mx.ones((1, 4)), mx.ones((1, 4)), 1.0),
}


def set_mode(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PARM_MLX_KERNELS", value)
    launcher.forget()


def test_nothing_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what has passed: the record may be that of a GPU that is not in use now."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    save_record([("combine", "float32")])
    assert not runs("combine", mx.float32)


def test_auto_runs_what_has_passed(gpu: None) -> None:
    save_record([("combine", "float32"), ("lowrank", "bfloat16")])
    assert runs("combine", mx.float32)
    assert runs("lowrank", mx.bfloat16)
    assert not runs("combine", mx.bfloat16)
    assert not runs("logprob", mx.float32)


def test_auto_runs_nothing_without_a_record(gpu: None) -> None:
    assert not any(runs(kernel, dtype) for kernel in CALLS for dtype in launcher.DTYPES)


def test_a_new_record_counts_once_it_is_asked_for_again(gpu: None) -> None:
    assert not runs("combine", mx.float32)
    save_record([("combine", "float32")])
    assert not runs("combine", mx.float32)
    launcher.forget()
    assert runs("combine", mx.float32)


def test_on_runs_what_has_not_been_checked(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mode(monkeypatch, "on")
    assert runs("combine", mx.bfloat16)
    assert not runs("combine", mx.float64), "there is no kernel for it"


def test_off_runs_nothing(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    save_record([("combine", "float32")])
    set_mode(monkeypatch, "off")
    assert not runs("combine", mx.float32)


@pytest.mark.parametrize("kernel", CALLS)
@pytest.mark.parametrize("mode", ["off", "auto"])
def test_a_twin_answers_where_no_kernel_runs(
    mode: str, kernel: str, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ones: 1 + 16 of two ranks of 8 each; one of four tokens; 1 + 1. A launch would fail without a GPU."""
    set_mode(monkeypatch, mode)
    expected = {"lowrank": 17, "logprob": -log(4), "combine": 2}[kernel]
    assert CALLS[kernel]().flatten()[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("kernel", CALLS)
def test_on_without_a_gpu_is_one_clear_line(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    for backend in (mx.metal, mx.cuda):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    set_mode(monkeypatch, "on")
    for _ in range(2):  # not the first use alone
        with pytest.raises(ConfigError) as caught:
            CALLS[kernel]()
        assert str(caught.value) == "PARM_MLX_KERNELS=on, but MLX has neither Metal nor CUDA here"
        assert "unset PARM_MLX_KERNELS" in str(caught.value.hint)


@pytest.mark.parametrize("backend", [mx.metal, mx.cuda])
def test_on_where_mlx_computes_on_the_cpu_is_another(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    set_mode(monkeypatch, "on")
    with pytest.raises(ConfigError, match="PARM_MLX_KERNELS=on, but MLX computes on the CPU"):
        runs("combine", mx.float32)


@pytest.mark.parametrize("value", ["", "yes", "ON", "1"])
@pytest.mark.parametrize("kernel", CALLS)
def test_another_value_is_one_clear_line(value: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_mode(monkeypatch, value)
    with pytest.raises(ConfigError) as caught:
        CALLS[kernel]()
    assert str(caught.value) == f"PARM_MLX_KERNELS={value} is not one of off, auto, on"
