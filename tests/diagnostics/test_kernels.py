import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from parm_mlx.diagnostics import doctor
from parm_mlx.diagnostics.doctor import check_all_kernels, judge_kernel
from parm_mlx.errors import ConfigError
from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Verdict
from parm_mlx.kernels.launcher import read_record, record_path

GOOD = [
    Verdict("combine", "float32", "1 row", 1e-7, 1e-5, 1.5, typical=True),
    Verdict("lowrank", "float32", "small", 3e-7, 1e-5, 0.5),
    Verdict("lowrank", "float32", "large", 2e-7, 1e-5, 1.5, typical=True),
    Verdict("lowrank", "float32", "large, gradient", 2e-7, 1e-5, 2.0, typical=True),
    Verdict("lowrank", "float16", "large", 4e-4, 5e-4, 2.0, typical=True),
]


@pytest.fixture(autouse=True)
def own_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(launcher.VARIABLE, raising=False)
    launcher.forget()
    yield record_path()
    launcher.forget()


@pytest.fixture(params=["Metal", "CUDA"])
def verdicts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """Those of a machine with a GPU, which a test may change."""
    verdicts = list(GOOD)
    for module in (launcher, doctor):
        monkeypatch.setattr(module, "gpu_backend", lambda: request.param)
    monkeypatch.setattr(doctor, "check_kernels", lambda: verdicts)
    return verdicts


def test_where_kernels_do_not_run_nothing_is_checked_or_saved(
    monkeypatch: pytest.MonkeyPatch, own_record: Path
) -> None:
    monkeypatch.setattr(doctor, "gpu_backend", lambda: None)
    (check,) = check_all_kernels()
    assert check.status == "ok"
    assert check.found == ("not used: MLX computes on the CPU" if doctor.has_gpu() else doctor.NO_GPU)
    assert doctor.NO_GPU.startswith("not available: neither Metal nor CUDA")
    assert not own_record.exists()


def test_each_kernel_has_a_line_and_those_that_pass_go_on_record(verdicts: list[Verdict]) -> None:
    combine, lowrank = check_all_kernels()
    assert (lowrank.name, lowrank.status, combine.name) == ("kernel lowrank", "ok", "kernel combine")
    assert lowrank.found == (
        "float16 error 4e-04, 2.0 times its twin's speed; float32 error 3e-07, 1.8 times its twin's speed"
    )
    assert read_record() == {("lowrank", "float16"), ("lowrank", "float32"), ("combine", "float32")}
    assert launcher.runs("combine", mx.float32), "the process that has checked uses the kernels, too"
    assert not launcher.runs("logprob", mx.float32)


def test_a_kernel_that_is_right_and_slow_is_not_used(verdicts: list[Verdict]) -> None:
    verdicts[0] = Verdict("combine", "float32", "1 row", 1e-7, 1e-5, 0.8, typical=True)
    combine, _ = check_all_kernels()
    assert combine.found == "float32 error 1e-07, 0.8 times its twin's speed, so it is not used"
    assert combine.status == "ok", "nothing is wrong: plain operations run in its place"
    assert not launcher.runs("combine", mx.float32)


def test_a_kernel_that_is_wrong_is_named_and_not_on_record(verdicts: list[Verdict]) -> None:
    verdicts.append(Verdict("lowrank", "float16", "odd", 0.25, 5e-4, 3.0))
    verdicts.append(Verdict("combine", "bfloat16", "1 row", float("inf"), 4e-3, None, "it does not compile"))
    combine, lowrank = check_all_kernels()
    assert (lowrank.status, lowrank.found) == ("failed", "float16, odd: error 2.5e-01, and 5.0e-04 is allowed")
    assert (combine.status, combine.found) == ("failed", "bfloat16, 1 row: it does not compile")
    assert lowrank.hint is not None
    assert read_record() == {("lowrank", "float32"), ("combine", "float32")}
    cases = json.loads(json.dumps(combine.to_dict(), allow_nan=False))["data"]["cases"]
    assert [(case["passed"], case["error"]) for case in cases] == [(False, None), (True, 1e-7)]


def test_kernels_that_were_not_timed_show_no_speed() -> None:
    check = judge_kernel("combine", [Verdict("combine", "float32", "1 row", 1e-7, 1e-5)])
    assert check.found == "float32 error 1e-07"


@pytest.mark.parametrize("content", ["{broken", "[]", '{"passed": []}', "\xff"])
def test_a_broken_record_is_replaced_where_kernels_run(verdicts: list[Verdict], own_record: Path, content: str) -> None:
    own_record.parent.mkdir()
    own_record.write_bytes(content.encode("latin-1"))
    *_, record = check_all_kernels()
    assert (record.name, record.status) == ("record", "warning")
    assert ("combine", "float32") in read_record()
    assert [check.name for check in check_all_kernels()] == ["kernel combine", "kernel lowrank"]


def test_a_record_of_another_machine_is_not_broken(own_record: Path) -> None:
    own_record.parent.mkdir()
    own_record.write_text('{"made with": {"device": "another"}, "passed": []}', encoding="utf-8")
    assert not doctor.record_is_broken()


def test_a_wrong_value_of_the_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher.VARIABLE, "maybe")
    with pytest.raises(ConfigError, match="maybe is not one of off, auto, on"):
        check_all_kernels()
