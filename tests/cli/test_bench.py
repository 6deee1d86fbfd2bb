import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.diagnostics import bench

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parm_mlx.machine.load_per_core", lambda: 0.1)


TINY = ["--hidden", 64, "--layers", 1, "--vocabulary", 100, "--tokens", 2, "--rounds", 2]
PLAIN = ["base", "guide", "guided", "shared", "one-pass"]
DRAFTED = ["guided+guide", "guided+base", "shared+guide", "shared+base", "shared+draft"]


def test_json_is_one_object_with_settings_machine_and_cases(run_cli: Run) -> None:
    code, out, err = run_cli("bench", *TINY, "--batch", "1,2", "--prompt", "4,8", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["models"] == {"hidden": 64, "layers": 1, "vocabulary": 100, "bits": None, "drafted": 12}
    assert record["settings"] == {"batches": [1, 2], "prompts": [4, 8], "tokens": 2, "rounds": 2}
    assert record["complete"] is True
    assert {"parm-mlx", "mlx", "mlx-lm", "python", "platform", "device"} <= record["machine"].keys()
    found = [(row["batch"], row["prompt"], row["case"]) for row in record["cases"]]
    groups = {(1, 4): PLAIN + DRAFTED, (2, 4): PLAIN, (1, 8): PLAIN + DRAFTED}
    assert found == [(*group, name) for group, names in groups.items() for name in names]
    for row in record["cases"]:
        assert row["rounds"] == 2
        low, high = row["ms_per_token_spread"]
        assert 0 < low <= row["ms_per_token"] <= high
        assert row["peak_mb"] >= row["weights_mb"] > 0
        assert (row["accepted"] is not None) == (row["passes"] is not None) == (row["case"] in DRAFTED)
    for ratios in record["passes"].values():
        assert [*ratios] == ["1", "2", "4", "8", "12"]
        assert ratios["1"] == 1


def test_a_busy_machine_is_noted_and_recorded(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parm_mlx.machine.load_per_core", lambda: 1.25)
    code, out, err = run_cli("bench", *TINY, "--batch", 1, "--prompt", 4, "--json")
    assert code == 0
    assert "this machine is busy (load 1.2 per core)" in err
    assert json.loads(out)["machine"]["load_per_core"] == 1.25


def test_the_table_has_a_line_for_each_case(run_cli: Run) -> None:
    code, out, err = run_cli("bench", *TINY, "--batch", "2", "--prompt", "4", "--bits", 4)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "2 sequences, prompts of 4 tokens; tokens/s"
    assert lines[1].split() == ["case", "prefill", "decode", "floor", "unguided", "MB"]
    assert [line.split()[0] for line in lines[2:7]] == PLAIN
    assert len(lines[4].split()) == 7, "name, prefill, decode, its spread, floor, unguided, peak"
    assert ", mlx " in err


def test_models_of_ones_own(run_cli: Run, official: Path, official_parm: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "speed.png"
    own = ["--model", official / "base_lm", "--parm", official_parm]
    code, out, err = run_cli(
        *("bench", *own, "--batch", 1, "--prompt", 4, "--tokens", 2, "--rounds", 1, "--json", "--plot", picture)
    )
    assert code == 0
    record = json.loads(out)
    assert record["models"]["parm"] == [str(official_parm)]
    cases = ["base", "guide", "guided", "guided+guide", "guided+base"]
    assert [row["case"] for row in record["cases"]] == cases, "no shared weights"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {picture}" in err


def test_a_base_that_is_the_backbone_is_also_measured_shared(run_cli: Run, official: Path, official_parm: Path) -> None:
    own = ["--parm", official_parm, "--draft-model", official / "base_lm", "--num-draft-tokens", 2]
    code, out, _ = run_cli("bench", *own, "--batch", 1, "--prompt", 4, "--tokens", 2, "--rounds", 1)
    assert code == 0
    lines = out.splitlines()
    assert lines[1].split()[-1] == "drafts"
    assert [line.split()[0] for line in lines[2:12]] == PLAIN + DRAFTED
    assert all(line.split()[-1].endswith("%") for line in lines[7:12])
    assert lines[12].startswith("passes of base + guide for a token: guided+guide ")
    assert "a pass of the base takes, of one over a single token: " in out


def interrupt(monkeypatch: pytest.MonkeyPatch, *, call: int) -> None:
    """Presses Ctrl-C in the middle of a round."""
    import os
    import signal

    calls = 0
    original = bench.time_in_turns

    def time_in_turns(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "time_in_turns", time_in_turns)


def test_ctrl_c_reports_the_rounds_that_are_done(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, call=2)
    code, out, err = run_cli("bench", *TINY, "--batch", "1,2", "--prompt", 4, "--json")
    assert code == 130
    record = json.loads(out)
    assert record["complete"] is False
    assert [(row["case"], row["rounds"]) for row in record["cases"]] == [(name, 1) for name in PLAIN + DRAFTED]
    assert "stopped: the figures are those of the rounds that were done" in err


def test_ctrl_c_in_the_first_round_reports_that_there_is_nothing(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, call=1)
    code, out, err = run_cli("bench", *TINY, "--batch", 1, "--prompt", 4)
    assert (code, out) == (130, "")
    assert "stopped: no round was done" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--batch", "1,x"], "'--batch': must be a whole number from 1 to 4096, got 'x'"),
        (["--batch", "0"], "'--batch': must be a whole number from 1 to 4096, got '0'"),
        (["--prompt", ""], "'--prompt': must hold one value or more"),
        (["--tokens", "0"], "'--tokens': must be a whole number from 1"),
        (["--rounds", "-1"], "'--rounds': must be a whole number from 1"),
        (["--hidden", "100"], "--hidden must be a multiple of 64"),
        (["--bits", "7"], "--bits must be one of"),
        (["--beta", "0"], "beta must be a number from"),
        (["--model", "base"], "--model, --guide-model and --draft-model need --parm"),
        (["--guide-model", "small"], "--model, --guide-model and --draft-model need --parm"),
        (["--draft-model", "small"], "--model, --guide-model and --draft-model need --parm"),
        (["--parm", "parm", "--layers", "2", "--bits", "4"], "--layers, --bits is for random models"),
        (["--parm", "nowhere"], "adapter nowhere: no such directory"),
        (["--plot", "speed.gif"], "--plot draws .png, .svg or .pdf files, got speed.gif"),
        (["--plot", "missing/speed.png"], "there is no directory missing"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(run_cli: Run, arguments: list[str], reason: str) -> None:
    code, out, err = run_cli("bench", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert reason in err.splitlines()[0]


def test_a_picture_replaces_nothing(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "speed.png").write_text("precious")
    code, out, err = run_cli("bench", "--plot", tmp_path / "speed.png")
    assert (code, out) == (2, "")
    assert "speed.png exists already" in err
    assert (tmp_path / "speed.png").read_text() == "precious"


def test_a_picture_needs_matplotlib(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parm_mlx.drawing.find_spec", lambda name: None)
    code, _, err = run_cli("bench", "--plot", "speed.png")
    assert code == 2
    assert err.splitlines() == [
        "error: --plot needs matplotlib, which is not installed",
        "hint: pip install 'parm-mlx[plot]'",
    ]
