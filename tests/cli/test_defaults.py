from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.cli.defaults import NAMES, variable

Run = Callable[..., "tuple[int, str, str]"]
ASK = "generate", "Hi", "--json", "--max-tokens", 2


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(variable(name), "")  # so that what a test sets is taken back
        monkeypatch.delenv(variable(name))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        file = tmp_path / "config" / "parm-mlx" / "settings.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        monkeypatch.delenv("PARM_MLX_SETTINGS")
        return file

    return write


def test_a_flag_comes_before_a_variable_and_that_before_the_file(
    run_cli: Run, settings: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings("model: bundled\nalpha: focus=0.9, warmth=0.1\nbeta: 2\n")
    code, out, _ = run_cli(*ASK)
    assert code == 0
    assert '"alpha": [0.1, 0.9]' in out
    assert '"beta": 2.0' in out
    monkeypatch.setenv("PARM_MLX_ALPHA", "warmth=1")
    assert '"alpha": [1.0, 0.0]' in run_cli(*ASK)[1]
    assert '"alpha": null' in run_cli(*ASK, "--alpha", "base")[1]
    assert '"beta": 3.0' in run_cli(*ASK, "--beta", "3")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red\n", "unknown setting 'colour'"),
        ("- 1\n", "must hold 'name: value' lines"),
        ("alpha: [1, 0]\n", "alpha must be text or a number"),
        ("a: b: c\n", "is not valid YAML"),
        ('model: "a\\0b"\n', "model must not hold a NUL character"),
        ("model: ''\n", "model must not be empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    run_cli: Run, settings: Callable[[str], Path], text: str, message: str
) -> None:
    file = settings(text)
    code, out, err = run_cli(*ASK, "--model", "bundled")
    assert (code, out) == (2, "")
    assert message in err
    assert str(file) in err
    assert "not foreseen" not in err


def test_a_wrong_variable_is_named(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARM_MLX_PARM", "my parm")
    code, _, err = run_cli(*ASK)
    assert code == 2
    assert "adapter my parm: no such directory" in err
    monkeypatch.setenv("PARM_MLX_ALPHA", "1,0,0")
    monkeypatch.delenv("PARM_MLX_PARM")
    assert "alpha has 3 weight(s)" in run_cli(*ASK, "--model", "bundled")[2]


def test_commands_that_make_something_new_read_no_variable(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(variable(name), "0.5,1")
    assert run_cli("bench", "--rounds", 1, "--tokens", 1, "--hidden", 64, "--layers", 1, "--batch", 1)[0] == 0
    assert "model is missing" in run_cli("train", "--data", "x", "--out", "y")[2]


def test_the_file_that_a_variable_names_must_be_there(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARM_MLX_SETTINGS", "missing.yaml")
    code, _, err = run_cli(*ASK)
    assert code == 2
    assert "missing.yaml is missing" in err
    assert run_cli("--help")[0] == run_cli("generate", "--help")[0] == 0
