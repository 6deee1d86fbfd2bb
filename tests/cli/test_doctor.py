import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from parm_mlx.diagnostics import doctor
from parm_mlx.diagnostics.findings import Finding

Run = Callable[..., tuple[int, str, str]]


def test_a_line_for_each_check_and_a_generation_that_works(run_cli: Run) -> None:
    code, out, _ = run_cli("doctor")
    assert code == 0
    lines = [line for line in out.splitlines() if not line.strip().startswith("hint:")]
    assert [line.split()[1] for line in lines] == [*doctor.examinations()]
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert f"mlx {version('mlx')}" in lines[0]
    assert "as their weight goes 0 → 1" in lines[-1]


def test_json_is_one_object_without_the_home_folder(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Finding:
        return Finding("device", "ok", f"a device in {Path.home()}/x", data={"device": "d"})

    monkeypatch.setattr(doctor, "examinations", lambda: {"device": look})
    code, out, err = run_cli("doctor", "--json")
    assert (code, err) == (0, "")
    check = {"check": "device", "status": "ok", "found": "a device in ~/x", "hint": None, "data": {"device": "d"}}
    assert json.loads(out) == {"ok": True, "checks": [check]}


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_only_what_is_wrong_ends_with_exit_1(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, status: str, code: int, as_json: bool
) -> None:
    found = {
        "fine": lambda: Finding("fine", "ok", "as it should be"),
        "other": lambda: Finding("other", status, "[so] it is", "do [this]"),  # type: ignore[arg-type]
    }
    monkeypatch.setattr(doctor, "examinations", lambda: found)
    ended, out, _ = run_cli("doctor", *["--json"] * as_json)
    assert ended == code
    if as_json:
        assert json.loads(out)["ok"] is (code == 0)
    else:
        assert out.splitlines() == [
            "ok       fine       as it should be",
            f"{status:<9}other      [so] it is",
            f"{'':<20}hint: do [this]",
        ]
