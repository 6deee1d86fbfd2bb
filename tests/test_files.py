import subprocess
import sys
from pathlib import Path

import pytest

from parm_mlx.errors import ModelError, OutputError, RunError
from parm_mlx.files import check_new, check_new_file, new_directory, recover, remove_directory, resolve, write_whole


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_directory(out) as partial:
        (partial / "config.json").write_text("{}")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    with new_directory(out) as partial:
        (partial / "config.json").write_text("old")

    def fail() -> None:
        with new_directory(out, force=True) as partial:
            (partial / "config.json").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (out / "config.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_recover_ends_what_a_killed_process_began(tmp_path: Path) -> None:
    """Killed between the renames: the old directory comes back. Killed after them: it goes."""
    (tmp_path / ".out.old-7").mkdir()
    (tmp_path / ".out.partial-7").mkdir()
    (tmp_path / ".out2.partial-7").mkdir()
    recover(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out2.partial-7", "out"]
    (tmp_path / ".out.old-8").mkdir()
    recover(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out2.partial-7", "out"]
    remove_directory(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out2.partial-7"]


def test_force_replaces_models_and_adapters_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="exists already"):
        check_new(out)
    with pytest.raises(OutputError, match="not a model, adapter or prepared"):
        check_new(out, force=True)
    (out / "adapter_config.json").write_text("{}")
    with new_directory(out, force=True):
        pass
    assert list(out.iterdir()) == []


def test_a_file_is_no_place_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a model, adapter or prepared"):
        check_new(tmp_path / "file", force=True)
    with pytest.raises(OutputError, match="cannot be written"):
        check_new(tmp_path / "file" / "out")


FULL_DISK = """
import resource, signal, sys
import parm_mlx, mlx.core as mx
from pathlib import Path
from parm_mlx.errors import RunError
from parm_mlx.files import new_directory
from parm_mlx.pblora import PBLoRAConfig, save_adapter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with new_directory(sys.argv[1]) as partial:
        save_adapter(partial, PBLoRAConfig(objectives=("a", "b")), {"layers.0.q.a": mx.zeros((100, 100))})
except RunError as error:
    print("RunError:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_write_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file size makes write(2) fail in the middle of the tensors, as a full disk does."""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(out)], capture_output=True, text=True, check=True)
    assert "RunError:" in done.stdout
    assert "was not written" in done.stdout
    assert list(tmp_path.iterdir()) == []


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


def test_a_new_file_is_no_folder_and_replaces_nothing_by_accident(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    assert check_new_file(tmp_path / "a" / "b" / "new") == tmp_path / "a" / "b" / "new"
    assert check_new_file(tmp_path / "old", force=True) == tmp_path / "old"
    with pytest.raises(OutputError, match="exists already"):
        check_new_file(tmp_path / "old")
    with pytest.raises(OutputError, match="is no file"):
        check_new_file(tmp_path, force=True)
    with pytest.raises(OutputError, match="old is not a writable directory"):
        check_new_file(tmp_path / "old" / "new")
    write_whole(tmp_path / "a" / "b" / "new", ["1\n", "2\n"])
    assert [path.read_text() for path in (tmp_path / "a" / "b").iterdir()] == ["1\n2\n"]
