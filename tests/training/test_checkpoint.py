import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parm_mlx.errors import CheckpointError, OutputError, RunError
from parm_mlx.outputs import read_marker, update
from parm_mlx.training.checkpoint import CheckpointFolder, read_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[CheckpointFolder]:
    folder = CheckpointFolder(tmp_path / "out", keep=2)
    with folder.locked():
        yield folder


def write(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapters.safetensors").write_bytes(bytes(100))


def save(folder: CheckpointFolder, *steps: int, best: int | None = None) -> None:
    for step in steps:
        folder.save(step, {"n": step}, write, best)


def test_what_is_saved_can_be_read(folder: CheckpointFolder) -> None:
    path = folder.save(7, {"a": [1, 2.5, None], "rng": {"state": 2**127 + 1}}, write, None)
    assert path.name == "step-00000007"
    checkpoint = read_checkpoint(path)
    assert (checkpoint.step, checkpoint.state) == (7, {"a": [1, 2.5, None], "rng": {"state": 2**127 + 1}})
    assert sorted(file.name for file in path.iterdir()) == [
        ".parm-mlx",
        "adapter_config.json",
        "adapters.safetensors",
        "state.json",
    ]


def test_a_picture_may_be_added(folder: CheckpointFolder) -> None:
    save(folder, 2)
    with update(folder.at(2)) as directory:
        (directory / "curves.png").write_bytes(b"picture")
    assert read_checkpoint(folder.at(2)).step == 2


def test_the_newest_and_the_best_are_kept(folder: CheckpointFolder) -> None:
    save(folder, 2, 4, 6, 8, best=4)
    assert folder.steps() == [4, 6, 8]
    save(folder, 10, best=10)
    assert folder.steps() == [8, 10]
    assert sorted(path.name[0] for path in folder.path.iterdir()) == [".", "s", "s"]


def truncate(path: Path) -> None:
    (path / "adapters.safetensors").write_bytes(bytes(50))


def flip(path: Path) -> None:
    (path / "adapters.safetensors").write_bytes(bytes(99) + b"x")


def forget(path: Path) -> None:
    (path / "adapters.safetensors").unlink()


def cut_state(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text[: len(text) // 2])


def change_state(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"n": 4', '"n": 5'))


def other_shape(path: Path) -> None:
    (path / "state.json").write_text("[1]")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "adapters.safetensors was changed or truncated"),
        (flip, "adapters.safetensors was changed or truncated"),
        (forget, "adapters.safetensors: No such file"),
        (cut_state, "state.json was changed or truncated"),
        (change_state, "state.json was changed or truncated"),
        (other_shape, "state.json was changed or truncated"),
    ],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(
    folder: CheckpointFolder, damage: Callable[[Path], None], reason: str
) -> None:
    save(folder, 2, 4)
    damage(folder.at(4))
    notes: list[str] = []
    newest = folder.newest(notes.append)
    assert newest is not None
    assert newest.step == 2
    assert len(notes) == 1
    assert str(folder.at(4)) in notes[0]
    assert reason in notes[0]
    assert folder.steps() == [2]
    damage(folder.at(2)) if damage is not change_state else truncate(folder.at(2))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read") as caught:
        folder.newest(notes.append)
    assert caught.value.hint == "start from the beginning with --force, without --resume"


def test_an_unknown_format_is_not_read(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("parm_mlx.training.checkpoint.FORMAT_VERSION", 3)
        save(folder, 2)
    with pytest.raises(CheckpointError, match="unknown format 3"):
        read_checkpoint(folder.at(2))


def test_without_checkpoints_there_is_no_newest(folder: CheckpointFolder) -> None:
    assert folder.newest(print) is None
    folder.check_unused()


def test_a_full_disk_leaves_the_earlier_ones(folder: CheckpointFolder) -> None:
    save(folder, 2)

    def fill(directory: Path) -> None:
        write(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="the disk is full") as caught:
        folder.save(4, {}, fill, None)
    assert str(caught.value).endswith(f"the last good checkpoint is {folder.at(2)}")
    assert caught.value.hint == "make room, then give the same command with --resume"
    assert sorted(path.name for path in folder.path.iterdir()) == [".parm-mlx", "step-00000002"]


def test_two_processes_do_not_share_an_output(tmp_path: Path) -> None:
    """The one that is refused leaves the folder of the other alone, empty or not."""
    folder = CheckpointFolder(tmp_path / "out", 1)
    with folder.locked():
        other = CheckpointFolder(tmp_path / "out", 1).locked()
        with pytest.raises(OutputError, match="another process trains to the same output"), other:
            pass
        assert folder.run
        save(folder, 2)
    assert folder.steps() == [2]


def test_the_folder_goes_with_the_last_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "out", 2)
    with folder.locked():
        save(folder, 2, 4)
        folder.metrics.write_text("{}\n")
        with pytest.raises(OutputError, match="up to step 4"):
            folder.check_unused()
        folder.clear(keep=2)
        assert sorted(path.name for path in folder.path.iterdir()) == [".parm-mlx", "step-00000002"]
        (folder.path / "metrics.jsonl.mine").write_text("mine")
        folder.clear()
    assert sorted(path.name for path in folder.path.iterdir()) == [".parm-mlx", "metrics.jsonl.mine"]
    (folder.path / "metrics.jsonl.mine").unlink()
    with folder.locked():
        pass
    assert not folder.path.exists()


def test_checkpoints_of_others_are_not_touched(tmp_path: Path) -> None:
    """Neither a directory that a person made, nor one of another run, is used, written over or removed."""
    folder = CheckpointFolder(tmp_path / "out", 1)
    with folder.locked():
        save(folder, 2, 4)
    with CheckpointFolder(tmp_path / "other", 1).locked():
        save(CheckpointFolder(tmp_path / "other", 1), 6)
    for make in (lambda path: path.mkdir(), lambda path: (tmp_path / "other.checkpoints" / path.name).rename(path)):
        make(folder.at(6))
        with pytest.raises(OutputError, match="step-00000006 is not of the run"), folder.locked():
            pass
        assert folder.steps() == [4]
        assert folder.at(6).is_dir()
        folder.at(6).rename(tmp_path / f"away{len(list(tmp_path.iterdir()))}")


def test_a_checkpoint_that_was_copied_is_not_the_run_s(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "out", 1)
    with folder.locked():
        save(folder, 2)
    shutil.copytree(folder.at(2), folder.at(900))
    with pytest.raises(OutputError, match="step-00000900 is not of the run"), folder.locked():
        pass
    assert folder.at(900).is_dir()


def test_notes_in_a_checkpoint_stay_and_block_nothing(folder: CheckpointFolder) -> None:
    save(folder, 2)
    (folder.at(2) / "notes.txt").write_text("mine")
    save(folder, 4, 6)
    assert folder.steps() == [4, 6]
    assert [path.read_text() for path in folder.path.glob("step-*.left-*/notes.txt")] == ["mine"]
    assert CheckpointFolder(folder.path.with_suffix(""), 2).steps() == [4, 6]


def test_a_folder_that_is_no_run_s_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.checkpoints" / "step-00000002").mkdir(parents=True)
    refused = pytest.raises(OutputError, match="has not made it for the checkpoints")
    with refused, CheckpointFolder(tmp_path / "out", 1).locked():
        pass


def test_a_broken_checkpoint_is_written_again(folder: CheckpointFolder) -> None:
    save(folder, 2)
    truncate(folder.at(2))
    save(folder, 2)
    assert read_checkpoint(folder.at(2)).step == 2


def test_the_state_is_readable_text(folder: CheckpointFolder) -> None:
    save(folder, 2)
    content = json.loads((folder.at(2) / "state.json").read_text())
    assert content == {"format_version": 2, "step": 2, "run": {"n": 2}}
    assert read_marker(folder.at(2))["files"].keys() == {"adapter_config.json", "adapters.safetensors", "state.json"}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"format_version": 2}', "", "\ud800", '{"step": 1' + "0" * 400 + "}"]
)
def test_a_state_that_no_run_has_written_is_one_clear_line(folder: CheckpointFolder, text: str) -> None:
    """Also where the marker lists it, with the digest of what is there now."""
    save(folder, 2)
    state = folder.at(2) / "state.json"
    state.write_bytes(text.encode(errors="surrogatepass"))
    marker = json.loads((folder.at(2) / ".parm-mlx").read_text())
    marker["files"]["state.json"]["sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
    (folder.at(2) / ".parm-mlx").write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match=r"step-00000002 is broken: state\.json .* is not readable"):
        read_checkpoint(folder.at(2))


def test_a_good_checkpoint_is_not_risked_for_another_of_its_step(folder: CheckpointFolder) -> None:
    def fails(directory: Path) -> None:
        raise KeyboardInterrupt

    save(folder, 2)
    assert folder.save(2, {"n": 3}, fails, None) == folder.at(2)
    assert read_checkpoint(folder.at(2)).state == {"n": 2}
    truncate(folder.at(2))
    save(folder, 2)
    assert read_checkpoint(folder.at(2)).step == 2
