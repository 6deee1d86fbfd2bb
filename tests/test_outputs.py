import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx.errors import OutputError, RunError
from parm_mlx.outputs import (
    MARKER,
    check_new,
    check_new_file,
    claimed,
    new_directory,
    new_file,
    own,
    read_marker,
    recover,
    remove_directory,
    renames,
    update,
    write_file,
)


def write(out: Path, content: str, force: bool = False, run: str | None = None) -> None:
    with new_directory(out, force, run=run) as partial:
        (partial / "config.json").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["renames of the system", "plain renames"])
def any_rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to rename: that of the system, where it has one, and the one for file systems that have none."""
    if request.param == "plain renames":
        monkeypatch.setattr(renames, "_system_call", lambda: None)
    elif renames._system_call() is None:
        pytest.skip("this system has no such rename")


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


@pytest.mark.usefixtures("any_rename")
def test_force_replaces_what_was_written_here(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(OutputError, match="exists already"):
        write(out, "new")
    write(out, "new", force=True)
    (out / ".DS_Store").write_text("of Finder")
    write(out, "newer", force=True)
    assert (out / "config.json").read_text() == "newer"
    assert names(tmp_path) == ["out"]


def test_force_takes_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "new"


@pytest.mark.parametrize("touched", [False, True])
def test_a_copy_is_replaced_too(tmp_path: Path, touched: bool) -> None:
    """Another time of change alone is no change; the SHA-256 tells."""
    out = tmp_path / "out"
    write(out, "old")
    os.utime(out / "config.json", (1, 1))
    if touched:
        (out / "config.json").write_text("new")
        with pytest.raises(OutputError, match=r"have changed since: config\.json; --force does not"):
            write(out, "newer", force=True)
    else:
        write(out, "newer", force=True)


def disguised(folder: Path) -> None:
    """A file that was changed, with the size and the time that it had."""
    write(folder, "ours")
    before = (folder / "config.json").stat()
    (folder / "config.json").write_text("mine")
    os.utime(folder / "config.json", ns=(before.st_atime_ns, before.st_mtime_ns))


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "thesis.txt").write_text("years of work")


def mixed(folder: Path) -> None:
    write(folder, "ours")
    (folder / "thesis.txt").write_text("years of work")


def below(folder: Path) -> None:
    write(folder, "ours")
    (folder / "chapters").mkdir()
    (folder / "chapters" / "1.txt").write_text("years of work")


def edited(folder: Path) -> None:
    write(folder, "ours")
    (folder / "config.json").write_text("mine now")


def linked(folder: Path) -> None:
    """A directory of ours under another name: the link is not ours."""
    write(folder.with_name("elsewhere"), "ours")
    folder.symlink_to(folder.with_name("elsewhere"))


def linked_inside(folder: Path) -> None:
    """A folder of ours whose file became a link to a file elsewhere, with the same content."""
    write(folder, "ours")
    (folder / "config.json").rename(folder.with_name("config"))
    (folder / "config.json").symlink_to(folder.with_name("config"))


def dangling(folder: Path) -> None:
    folder.symlink_to("nowhere")


def file(folder: Path) -> None:
    folder.write_text("years of work")


def a_run(folder: Path) -> None:
    with claimed(folder, "run", "in use"):
        write_file(folder / "results.jsonl", ["hours of work\n"])


def forged(folder: Path) -> None:
    """A marker that names files elsewhere is none."""
    folder.mkdir()
    folder.with_name("precious").write_text("years of work")
    (folder / MARKER).write_text(json.dumps({"files": {"../precious": None}}))


def forged_absolute(folder: Path) -> None:
    folder.mkdir()
    (folder / MARKER).write_text(json.dumps({"files": {str(folder.with_name("precious")): None}}))


def broken(folder: Path) -> None:
    folder.mkdir()
    (folder / MARKER).write_text("[" * 100_000)


STRANGERS = [
    foreign,
    mixed,
    below,
    edited,
    disguised,
    linked,
    linked_inside,
    dangling,
    file,
    a_run,
    forged,
    forged_absolute,
]


def everything(folder: Path) -> dict[str, str]:
    """All that is below a folder: contents of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else "folder"
    return found


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", [*STRANGERS, broken])
def test_nothing_of_others_is_replaced(tmp_path: Path, make: Callable[[Path], None], force: bool) -> None:
    make(tmp_path / "out")
    before = everything(tmp_path)
    with pytest.raises(OutputError):
        write(tmp_path / "out", "new", force)
    with pytest.raises(OutputError), new_file(tmp_path / "out") as partial:
        partial.write_text("new")
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("any_rename")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("make", STRANGERS)
def test_what_appears_meanwhile_is_left_alone(tmp_path: Path, make: Callable[[Path], None], force: bool) -> None:
    def run() -> None:
        with new_directory(tmp_path / "out", force) as partial:
            (partial / "config.json").write_text("new")
            make(tmp_path / "out")
            before.update(everything(tmp_path))

    before: dict[str, str] = {}
    with pytest.raises(OutputError, match=r"meanwhile|--force does not|not a directory"):
        run()
    kept = {name: content for name, content in before.items() if ".partial-" not in name}
    assert everything(tmp_path) == kept


@pytest.mark.usefixtures("any_rename")
def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def run() -> None:
        with new_file(tmp_path / "out.jsonl") as partial:
            partial.write_text("new")
            (tmp_path / "out.jsonl").write_text("precious")

    with pytest.raises(OutputError, match="has appeared meanwhile"):
        run()
    assert everything(tmp_path) == {"out.jsonl": "precious"}
    with new_file(tmp_path / "other.jsonl") as partial:
        partial.write_text("new")
    assert everything(tmp_path) == {"out.jsonl": "precious", "other.jsonl": "new"}


def test_a_change_between_check_and_exchange_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is put into the old output at the last moment: the old output comes back, whole."""
    if renames._system_call() is None:
        pytest.skip("this system cannot exchange")
    write(tmp_path / "out", "old")

    def late(one: Path, other: Path) -> bool:
        if (tmp_path / "out" / "config.json").read_text() == "old":
            (tmp_path / "out" / "thesis.txt").write_text("precious")
        return renames.exchange(one, other)

    monkeypatch.setattr("parm_mlx.outputs.whole.exchange", late)
    with pytest.raises(OutputError, match="has changed meanwhile"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("then", ["file", "nothing"])
def test_an_output_that_becomes_something_else_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    if renames._system_call() is None:
        pytest.skip("this system cannot exchange")
    write(tmp_path / "out", "old")

    def late(one: Path, other: Path) -> bool:
        if not (tmp_path / "away").exists():
            (tmp_path / "out").rename(tmp_path / "away")
            if then == "file":
                (tmp_path / "out").write_text("precious")
        return renames.exchange(one, other)

    monkeypatch.setattr("parm_mlx.outputs.whole.exchange", late)
    with pytest.raises((OutputError, RunError)):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "away" / "config.json").read_text() == "old"
    assert not (tmp_path / "out").exists() or (tmp_path / "out").read_text() == "precious"


def test_links_in_an_input_count_as_read(tmp_path: Path) -> None:
    write(tmp_path / "a", "ours")
    for folder in (tmp_path / "b", tmp_path / "c" / "d"):
        folder.mkdir(parents=True)
        (folder / "config.json").symlink_to(tmp_path / "a" / "config.json")
    for source in (tmp_path / "b", tmp_path / "c"):
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a", True, [source])


def test_what_is_mounted_in_an_output_is_not_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "ours")
    (tmp_path / "out" / "disk").mkdir()
    mounted = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk" or mounted(path))
    with pytest.raises(OutputError, match="have changed since: disk"):
        check_new(tmp_path / "out", True)


def test_a_directory_that_cannot_be_looked_into_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "out", "ours")
    (tmp_path / "out" / "private").mkdir()
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(OutputError, match="private cannot be looked into: Permission denied"):
        check_new(tmp_path / "out", True)


def test_a_kill_while_a_directory_is_removed_loses_no_file_of_others(tmp_path: Path) -> None:
    """Whatever was done of the removal: doing it again removes no file of others."""
    write(tmp_path / ".step.partial-x" / "gone" / "step", "1", run="a")
    hidden = tmp_path / ".step.partial-x"
    (hidden / ".parm-mlx-unfinished").touch()
    (hidden / "gone" / "step" / "notes.txt").write_text("mine")
    (hidden / "gone" / "step" / "config.json").unlink()
    for _ in range(2):
        recover(tmp_path)
        assert [path.read_text() for path in tmp_path.glob("*.left-*/notes.txt")] == ["mine"]
    assert not hidden.exists()


@pytest.mark.parametrize("place", ["home", "home/..", "cwd", "cwd/..", "/", ".", ""])
def test_protected_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Homes, the current directory and what they lie in are not replaced, even with a marker of ours."""
    for folder in (tmp_path, tmp_path / "home", tmp_path / "cwd"):
        folder.mkdir(exist_ok=True)
        (folder / MARKER).write_text(json.dumps({"files": {}}))
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = place if place in ("/", ".", "") else tmp_path / place
    with pytest.raises(OutputError, match=r"never replaced|not a writable directory"):
        check_new(out, force=True)
    with pytest.raises(OutputError):
        check_new(out)


def test_inputs_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "b", "ours")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "config.json")
    for read in (tmp_path / "a" / "b", "a/b/config.json", "a/../a/b", "link"):
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a" / "b", True, [None, "owner/name", read])
        with pytest.raises(OutputError, match="which is read"):
            check_new(tmp_path / "a", True, [read])
    assert check_new("a/b", True, ["owner/name", "a"]) == Path("a/b")


@pytest.mark.parametrize("out", ["~no-such-user/x", "file/out", "file/deep/out"])
def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for check in (check_new, check_new_file):
        with pytest.raises(OutputError, match=r"no such user|not a writable directory"):
            check(out)  # type: ignore[operator]


KILLED = """
import os, signal, sys
from pathlib import Path
import parm_mlx.outputs.renames as renames
import parm_mlx.outputs as outputs

moment, plain = int(sys.argv[2]), sys.argv[3] == "plain"
if plain:
    renames._system_call = lambda: None
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


def test_a_claimed_folder_is_of_one_process_and_of_one_kind(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder, "run", "in use") as marker:
        with pytest.raises(OutputError, match="in use"), claimed(folder, "run", "in use"):
            pass
        write_file(folder / "a.txt", ["1\n"])
    with claimed(folder, "run", "in use") as again:
        assert again["run"] == marker["run"]
    with pytest.raises(OutputError, match="has not made it for the checkpoints"), claimed(folder, "checkpoints", ""):
        pass
    with claimed(tmp_path / "nothing", "run", "in use"):
        pass
    assert names(tmp_path) == ["run"], "a folder that holds nothing goes"
    foreign(tmp_path / "mine")
    with pytest.raises(OutputError, match="has not made it for a run"), claimed(tmp_path / "mine", "run", ""):
        pass
    assert names(tmp_path / "mine") == ["config.json", "thesis.txt"]


def test_a_claimed_folder_replaces_its_own_files_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", "run", "in use"):
        (tmp_path / "run" / "report.html").write_text("mine")
        with pytest.raises(OutputError, match=r"report\.html is not a file that parm-mlx has written"):
            write_file(tmp_path / "run" / "report.html", ["ours"])
        with update(tmp_path / "run") as partial:
            (partial / "a").write_text("1")
            (partial / "b").write_text("1")
        write_file(tmp_path / "run" / "a", ["2"])
        own(tmp_path / "run", ["a", "c"])
        (tmp_path / "precious").write_text("precious")
    assert everything(tmp_path / "run") | {MARKER: ""} == {"a": "2", "b": "1", "report.html": "mine", MARKER: ""}


def test_a_directory_of_a_run_is_removed_and_files_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path / "step", "1", run="a")
    for run in ("b", None):
        with pytest.raises(OutputError, match="not of this run"):
            remove_directory(tmp_path / "step", run)
    remove_directory(tmp_path / "step", "a")
    assert names(tmp_path) == []
    write(tmp_path / "step", "1", run="a")
    (tmp_path / "step" / "notes.txt").write_text("mine")
    remove_directory(tmp_path / "step", "a")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("step.left-")
    assert (left / "notes.txt").read_text() == "mine"
    recover(tmp_path)
    assert (left / "notes.txt").read_text() == "mine"


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
