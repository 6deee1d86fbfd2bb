import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from folders import names, write

from parm_mlx.outputs import (
    new_directory,
    read_marker,
    recover,
)
from parm_mlx.outputs.partial import made_here


def test_a_kill_while_a_directory_is_removed_loses_no_file_of_others(tmp_path: Path) -> None:
    """Whatever was done of the removal: doing it again removes no file of others."""
    write(tmp_path / ".step.partial-x" / "gone" / "step", "1", run="a")
    hidden = tmp_path / ".step.partial-x"
    made_here(hidden).touch()
    (hidden / "gone" / "step" / "notes.txt").write_text("mine")
    (hidden / "gone" / "step" / "config.json").unlink()
    for _ in range(2):
        recover(tmp_path)
        assert [path.read_text() for path in tmp_path.glob("*.left-*/notes.txt")] == ["mine"]
    assert not hidden.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import parm_mlx.outputs.partial as partial
import parm_mlx.outputs as outputs

moment, plain = int(sys.argv[2]), sys.argv[3] == "plain"
if plain:
    partial._system_call = lambda: None
seen = 0

def count(frame, event, argument):
    global seen
    if "/outputs/" in frame.f_code.co_filename:
        seen += event == "line"
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

sys.settrace(count)
with outputs.new_directory(sys.argv[1], force=True) as partial:
    (partial / "config.json").write_text("new")
    (partial / "weights").write_text("new")
sys.settrace(None)
print(seen)
"""


@pytest.mark.parametrize("how", ["system", "plain"])
def test_a_kill_at_any_line_leaves_the_old_or_the_new(tmp_path: Path, how: str) -> None:
    """At 20 lines of the code, from the first to the last: no moment without an output, and the next command tidies."""
    program = [sys.executable, "-c", KILLED, str(tmp_path / "out")]

    def prepare() -> None:
        write(tmp_path / "out", "old", force=True)

    prepare()
    total = int(subprocess.run([*program, "-1", how], capture_output=True, text=True, check=True).stdout)
    outcomes = set()
    for moment in sorted({1 + i * (total - 1) // 19 for i in range(20)}):
        prepare()
        done = subprocess.run([*program, str(moment), how], check=False)
        assert done.returncode == -signal.SIGKILL
        if how == "system":
            outcomes.add((tmp_path / "out" / "config.json").read_text())
        recover(tmp_path)
        assert names(tmp_path) == ["out"]
        outcomes.add((tmp_path / "out" / "config.json").read_text())
        assert read_marker(tmp_path / "out") is not None
    assert outcomes == {"old", "new"}


def test_recover_leaves_alone_what_is_not_ours_or_in_use(tmp_path: Path) -> None:
    (tmp_path / ".mine.partial-abc").mkdir()
    (tmp_path / ".mine.partial-abc" / "thesis.txt").write_text("precious")
    (tmp_path / ".file.partial-abc").write_text("precious")
    with new_directory(tmp_path / "out") as partial:
        (partial / "config.json").write_text("{}")
        recover(tmp_path)
        assert (partial / "config.json").exists()
    assert names(tmp_path) == [".file.partial-abc", ".mine.partial-abc", "out"]


def test_a_hidden_folder_that_was_planted_or_copied_is_left_alone(tmp_path: Path) -> None:
    made, copy = tmp_path / ".out.partial-abc", tmp_path / ".copy.partial-abc"
    (made / "new").mkdir(parents=True)
    made_here(made).touch()
    (made / "new" / "config.json").write_text("{}")
    shutil.copytree(made, copy)
    recover(tmp_path)
    assert names(tmp_path) == [copy.name]
    assert (copy / "new" / "config.json").read_text() == "{}"


def test_a_file_of_a_removed_directory_that_was_edited_stays(tmp_path: Path) -> None:
    hidden = tmp_path / ".step.partial-x"
    write(hidden / "gone" / "step", "1", run="a")
    made_here(hidden).touch()
    (hidden / "gone" / "step" / "config.json").write_text("my own settings")
    recover(tmp_path)
    assert (tmp_path / "step.left-x" / "config.json").read_text() == "my own settings"
