import subprocess
import sys
from pathlib import Path

import pytest
from folders import names, write

from parm_mlx.errors import OutputError, RunError
from parm_mlx.outputs import (
    MARKER,
    check_new,
    check_new_file,
    new_directory,
    new_file,
    read_marker,
)


@pytest.mark.usefixtures("any_rename")
def test_a_directory_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_directory(out) as partial:
        (partial / "config.json").write_text("{}")
        (partial / "more").mkdir()
        (partial / "more" / "template.jinja").write_text("")
        assert not out.exists()
    assert names(out) == [MARKER, "config.json", "more"]
    assert sorted((read_marker(out) or {})["files"]) == ["config.json", "more/template.jinja"]
    assert names(out.parent) == ["out"]


@pytest.mark.usefixtures("any_rename")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    write(out, "old")

    def fail() -> None:
        with new_directory(out, force=True) as partial:
            (partial / "config.json").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (out / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("out", ["~no-such-user/x", "file/out", "file/deep/out"])
def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for check in (check_new, check_new_file):
        with pytest.raises(OutputError, match=r"no such user|not a writable directory"):
            check(out)  # type: ignore[operator]


def test_a_write_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    def full() -> None:
        with new_file(tmp_path / "file") as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="the disk is full"):
        full()
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
import parm_mlx, mlx.core as mx
from pathlib import Path
from parm_mlx.errors import RunError
from parm_mlx.outputs import new_directory
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
