from pathlib import Path

import pytest

from parm_mlx.errors import ModelError, RunError
from parm_mlx.files import resolve


def test_a_local_directory_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name")


def test_a_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.update(repo_id=repo_id, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("some-owner/some-model") == tmp_path
    assert asked["repo_id"] == "some-owner/some-model"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["patterns"])


def test_no_network_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not on this machine, and the hub cannot be reached"):
        resolve("some-owner/some-model-that-nobody-has")


@pytest.mark.parametrize("source", ["nowhere", "./a/b", "a/b/c", "/nowhere/at-all"])
def test_what_is_neither_path_nor_id_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such directory"):
        resolve(source)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelError, match="is a file"):
        resolve(file)
