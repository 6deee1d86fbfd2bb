import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from parm_mlx.diagnostics import doctor
from parm_mlx.diagnostics.doctor import Check
from parm_mlx.kernels import launcher
from parm_mlx.machine import has_gpu

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The record of the kernels' check is not that of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(launcher.VARIABLE, raising=False)
    launcher.forget()
    yield
    launcher.forget()


def test_a_line_for_each_check_and_a_generation_that_works(run_cli: Run) -> None:
    code, out, _ = run_cli("doctor")
    assert code == 0
    lines = [line for line in out.splitlines() if not line.strip().startswith("hint:")]
    assert [line.split()[1] for line in lines] == [*doctor.checks()]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert f"mlx {version('mlx')}" in lines[0]
    assert "as their weight goes 0 → 1" in lines[-2]
    assert "of no models yet" in lines[-1]


def test_json_is_one_object_without_the_home_folder(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> list[Check]:
        return [Check("device", "ok", f"a device in {Path.home()}/x", data={"device": "d"})]

    monkeypatch.setattr(doctor, "checks", lambda: {"device": check})
    code, out, err = run_cli("doctor", "--json")
    assert (code, err) == (0, "")
    record = {"check": "device", "status": "ok", "found": "a device in ~/x", "hint": None, "data": {"device": "d"}}
    assert json.loads(out) == {"ok": True, "checks": [record]}


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_only_what_is_wrong_ends_with_exit_1(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, status: str, code: int, as_json: bool
) -> None:
    found = {
        "fine": lambda: [Check("fine", "ok", "as it should be")],
        "other": lambda: [Check("other", status, "[so] it is", "do [this]")],  # type: ignore[arg-type]
    }
    monkeypatch.setattr(doctor, "checks", lambda: found)
    ended, out, _ = run_cli("doctor", *["--json"] * as_json)
    assert ended == code
    if as_json:
        assert json.loads(out)["ok"] is (code == 0)
    else:
        assert out.splitlines() == [
            "ok       fine            as it should be",
            f"{status:<9}other           [so] it is",
            f"{'':<25}hint: do [this]",
        ]


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_kernels_that_are_forced_without_a_gpu_fail_with_a_hint(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launcher.VARIABLE, "on")
    launcher.forget()
    code, out, _ = run_cli("doctor")
    assert code == 1
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.split()[1] == "kernels")
    found = "PARM_MLX_KERNELS=on, but MLX has neither Metal nor CUDA here"
    assert lines[place].split(maxsplit=2) == ["failed", "kernels", found]
    assert lines[place + 1].strip() == "hint: unset PARM_MLX_KERNELS: plain operations do the same"


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_a_broken_record_is_named(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "parm-mlx").mkdir()
    (tmp_path / "parm-mlx" / "kernels.json").write_text("{broken", encoding="utf-8")
    code, out, _ = run_cli("doctor")
    assert code == 1
    assert "failed   kernels         the record of an earlier check is broken\n" in out
    assert f"hint: delete {tmp_path / 'parm-mlx' / 'kernels.json'}\n" in out
