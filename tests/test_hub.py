"""Uploads to a made-up hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from parm_mlx.errors import InputError
from parm_mlx.hub import check_upload

Run = Callable[..., "tuple[int, str, str]"]


class Hub:
    """Takes what is uploaded."""

    refusal: Exception | None = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, exist_ok: bool) -> str:
        assert exist_ok
        return f"https://hub.example/{repo_id}"

    def upload_file(self, path_or_fileobj: bytes, path_in_repo: str, repo_id: str) -> None:
        self.files[path_in_repo] = path_or_fileobj

    def upload_folder(self, repo_id: str, folder_path: Path, ignore_patterns: list[str]) -> None:
        if self.refusal:
            raise self.refusal
        for file in folder_path.iterdir():
            if not any(file.match(pattern) for pattern in ignore_patterns):
                self.files[file.name] = file.read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return made


def train(run_cli: Run, write_rows: Any, rows: Any, official: Path, out: Path, *more: object) -> tuple[int, str, str]:
    data = write_rows(rows)
    settings = "--iters", 2, "--warmup", 0, "--batch-size", 2, "--max-seq-length", 64
    return run_cli("train", "--model", official / "arm_base", "--data", data, "--out", out, *settings, *more)


def test_a_trained_adapter_is_uploaded_with_its_card(
    run_cli: Run, write_rows: Any, rows: Any, official: Path, tmp_path: Path, hub: Hub
) -> None:
    out = tmp_path / "mine"
    code, _, err = train(run_cli, write_rows, rows, official, out, "--upload-repo", "me/mine")
    assert code == 0, err
    assert "uploaded: https://hub.example/me/mine" in err
    assert hub.files.keys() >= {"README.md", "adapter_config.json", "adapters.safetensors", "metrics.jsonl"}
    assert not any(name.startswith(".") for name in hub.files)
    card = hub.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: parm-mlx\n")
    assert "parm-mlx chat --parm mine --alpha " in card
    assert "nats per token" in card
    assert "accuracy weighted by α" in card
    assert str(official.parent) not in card
    assert card == (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", [OSError, RuntimeError])  # the errors of the hub's client are of several families
def test_a_failed_upload_leaves_the_result(
    run_cli: Run, write_rows: Any, rows: Any, official: Path, tmp_path: Path, hub: Hub, kind: type[Exception]
) -> None:
    hub.refusal = kind("the hub is away")
    code, _, err = train(run_cli, write_rows, rows, official, tmp_path / "mine", "--upload-repo", "me/mine")
    assert code == 1
    assert "is finished, but could not be uploaded: the hub is away" in err
    assert "hf upload me/mine" in err
    assert (tmp_path / "mine" / "adapters.safetensors").exists()


def test_an_upload_that_cannot_be_is_refused_before_the_work(
    run_cli: Run, write_rows: Any, rows: Any, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for repo, message in (("mine", "not the id of a repository"), ("me/mine", "needs an account")):
        code, _, err = train(run_cli, write_rows, rows, official, tmp_path / "mine", "--upload-repo", repo)
        assert code == 2
        assert message in err
        assert not (tmp_path / "mine").exists()
    check_upload(None)
    with pytest.raises(InputError):
        check_upload("a/b/c")


def test_a_converted_model_is_uploaded_with_a_card(run_cli: Run, official: Path, tmp_path: Path, hub: Hub) -> None:
    out = tmp_path / "small"
    code, _, err = run_cli("convert", official / "base_lm", "--out", out, "-q", "--upload-repo", "me/small")
    assert code == 0, err
    card = hub.files["README.md"].decode()
    assert "`base_lm`, converted by parm-mlx, 4 bits in groups of 64" in card
    assert "parm-mlx chat --model me/small --alpha base" in card
    assert str(official) not in card
    code, _, _ = run_cli("convert", tmp_path, "--out", tmp_path / "x", "--upload-repo", "me/x")
    assert code == 2
