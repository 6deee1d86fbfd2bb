from pathlib import Path

import pytest

from parm_mlx.diagnostics.findings import Finding, examine, without_home
from parm_mlx.errors import ModelError


def test_an_error_is_a_finding_with_its_hint() -> None:
    def look() -> list[Finding]:
        raise ModelError("base holds no tokenizer", hint="convert it")

    assert examine("model", look) == [Finding("model", "failed", "base holds no tokenizer", "convert it")]


def test_what_was_not_foreseen_is_a_finding_too() -> None:
    (finding,) = examine("memory", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert (finding.status, finding.found) == ("failed", "ZeroDivisionError: division by zero")
    assert finding.hint is not None


def test_json_does_not_say_whose_machine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/anna"))
    finding = Finding(
        "record",
        "failed",
        "/Users/anna/.cache/x is broken",
        "delete /Users/anna/.cache/x",
        {"paths": ["/Users/anna/a"]},
    )
    assert finding.to_dict() == {
        "check": "record",
        "status": "failed",
        "found": "~/.cache/x is broken",
        "hint": "delete ~/.cache/x",
        "data": {"paths": ["~/a"]},
    }
    assert without_home({"a": {"b": "/Users/anna"}, "n": 1}) == {"a": {"b": "~"}, "n": 1}
