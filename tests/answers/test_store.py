import errno
from pathlib import Path

import pytest

from parm_mlx.answers.store import Result, RunFolder, read_run, result_line
from parm_mlx.errors import InputError, OutputError, RunError
from parm_mlx.files import read_json
from parm_mlx.outputs import own

IDENTITY = {"objectives": ["a", "b"], "settings": {"model": "m", "alphas": [[1.0, 0.0]]}}
RESULTS = [
    Result("p", "What\u2028now?", None, 0, "an answer\nin two lines", 5, "stop"),
    Result("p", [{"role": "user", "content": "Hi"}], (1.0, 0.0), 0, "ü", 1, "length"),
]


def filled(path: Path) -> RunFolder:
    folder = RunFolder(path, IDENTITY)
    with folder.locked():
        pass
    with folder.appending("results.jsonl") as append:
        for result in RESULTS:
            append(result_line(result))
    return folder


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    assert list(folder.results().values()) == RESULTS
    assert [result.key for result in RESULTS] == [("p", None, 0), ("p", (1.0, 0.0), 0)]
    assert list(RunFolder(tmp_path / "run", IDENTITY).results().values()) == RESULTS


def test_a_line_that_was_cut_off_is_dropped_and_what_follows_is_whole(tmp_path: Path) -> None:
    """Cut anywhere in the last line: the first answer stays, and the second can be appended again."""
    whole = (filled(tmp_path / "run").path / "results.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        (tmp_path / "run" / "results.jsonl").write_bytes(whole[:length])
        folder = RunFolder(tmp_path / "run", IDENTITY)
        assert list(folder.results().values()) == RESULTS[:1]
        with folder.appending("results.jsonl") as append:
            append(result_line(RESULTS[1]))
        assert (tmp_path / "run" / "results.jsonl").read_bytes() == whole


def test_answers_of_other_processes_count(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    other = Result("q", "x", (0.0, 1.0), 0, "y", 1, "stop")
    own(tmp_path / "run", ["results.rank1.jsonl"])
    (tmp_path / "run" / "results.rank1.jsonl").write_text(result_line(other))
    assert list(folder.results().values()) == [*RESULTS, other]
    assert [part.name for part in folder.rank_files()] == ["results.rank1.jsonl"]


def test_another_run_is_refused_and_the_difference_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    other = {"objectives": ["a", "b"], "settings": {"model": "other", "alphas": [[1.0, 0.0]]}}
    with pytest.raises(OutputError, match=r'holds another run \(model: "m", now "other"\)'):
        RunFolder(tmp_path / "run", other)
    with pytest.raises(OutputError, match=r"\(prompts: 1, now 2\)"):
        RunFolder(_with_prompts(tmp_path, "p"), _prompts("p", "q"))


def _prompts(*names: str) -> dict[str, object]:
    return {"objectives": ["a"], "settings": {"prompts": {name: name for name in names}}}


def _with_prompts(tmp_path: Path, *names: str) -> Path:
    with RunFolder(tmp_path / "other", _prompts(*names)).locked():
        pass
    return tmp_path / "other"


def test_folders_that_hold_no_run_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not empty, and parm-mlx has not made it for a run"):
        RunFolder(tmp_path / "mine", IDENTITY)
    with pytest.raises(OutputError, match="is a file"):
        RunFolder(tmp_path / "mine" / "letter.txt", IDENTITY)
    with pytest.raises(InputError, match=r"run\.json is missing"):
        read_run(tmp_path / "mine")


def test_reading_a_run_changes_nothing(tmp_path: Path) -> None:
    """Also where the last line was cut off, and where nothing may be written."""
    folder = filled(tmp_path / "run")
    with folder.locked():
        folder.write_scores({result.key: {"a": 1.0} for result in RESULTS})
    with (folder.path / "results.jsonl").open("a") as file:
        file.write('{"half')
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.path.iterdir()}
    for path in [*folder.path.iterdir(), folder.path]:
        path.chmod(path.stat().st_mode & ~0o222)
    assert list(read_run(folder.path)[1].values()) == RESULTS
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.path.iterdir()} == before
    folder.path.chmod(0o755)


def test_a_folder_without_its_marker_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    (tmp_path / "run" / ".parm-mlx").unlink()
    with pytest.raises(OutputError, match="parm-mlx has not made it") as caught:
        RunFolder(tmp_path / "run", IDENTITY)
    assert str(caught.value.hint).startswith("move it away")


def test_the_files_of_other_processes_are_known_by_their_names(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    for name in ("results.rank-notes.jsonl", "results.rank7.jsonl"):
        (folder.path / name).write_text("mine")
    assert folder.rank_files() == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    (tmp_path / "run" / "results.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(OutputError, match=r"results\.jsonl:1: not a line that parm-mlx has written"):
        folder.results()


def test_other_rewards_drop_the_scores_that_they_replace(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    folder.set_rewards({"a": "one", "b": "two"})
    scores = {result.key: {"a": 1.0, "b": 2.0} for result in RESULTS}
    folder.write_scores(scores)
    again = RunFolder(tmp_path / "run", IDENTITY)
    again.set_rewards({"a": "one", "b": "two"})
    assert again.scores() == scores
    again.set_rewards({"a": "one", "b": "three"})
    assert again.scores() == {result.key: {"a": 1.0} for result in RESULTS}
    identity, results, _ = read_run(tmp_path / "run")
    assert (identity["rewards"], list(results.values())) == ({"a": "one", "b": "three"}, RESULTS)


def with_files(weights: str, **rewards: str) -> dict[str, object]:
    return {**IDENTITY, "models": {"base": {"weights": weights}}, "reward_files": rewards}


def saved_with_files(path: Path) -> Path:
    folder = RunFolder(path, with_files("1111", one="aa", two="bb"))
    with folder.locked():
        pass
    folder.set_rewards({"a": "one", "b": "two"})
    folder.write_scores({result.key: {"a": 1.0, "b": 2.0} for result in RESULTS})
    return path


@pytest.mark.parametrize(
    ("weights", "rewards", "named"),
    [
        ("2222", {"one": "aa", "two": "bb"}, r'models\.base\.weights: "1111", now "2222"'),
        ("1111", {"one": "cc", "two": "bb"}, r'reward_files\.one: "aa", now "cc"'),
    ],
)
def test_other_models_and_rewards_are_refused_by_name(
    tmp_path: Path, weights: str, rewards: dict[str, str], named: str
) -> None:
    path = saved_with_files(tmp_path / "run")
    with pytest.raises(OutputError, match=named) as caught:
        RunFolder(path, with_files(weights, **rewards))
    assert "--resume-anyway" in str(caught.value.hint)


def test_rewards_that_are_others_are_not_compared(tmp_path: Path) -> None:
    RunFolder(saved_with_files(tmp_path / "run"), with_files("1111", three="cc"))


def test_anyway_goes_on_drops_outdated_scores_and_says_so(tmp_path: Path) -> None:
    path = saved_with_files(tmp_path / "run")
    folder = RunFolder(path, with_files("2222", one="cc", two="bb"), anyway=True)
    assert folder.changed == ["models.base.weights", "reward_files.one"]
    folder.set_rewards({"a": "one", "b": "two"})
    assert folder.scores() == {result.key: {"b": 2.0} for result in RESULTS}
    [resumed] = read_json(path / "run.json", "run", OutputError)["resumed_with_changes"]  # type: ignore[misc]
    assert resumed["changed"]["models.base.weights"] == ['"1111"', '"2222"']
    again = RunFolder(path, with_files("2222", one="cc", two="bb"))
    with again.locked():
        pass
    assert again.changed == []
    assert read_json(path / "run.json", "run", OutputError)["resumed_with_changes"] == [resumed]


def test_anyway_is_for_files_and_not_for_settings(tmp_path: Path) -> None:
    path = saved_with_files(tmp_path / "run")
    other = {**with_files("2222"), "settings": {"model": "other", "alphas": [[1.0, 0.0]]}}
    with pytest.raises(OutputError, match="holds another run"):
        RunFolder(path, other, anyway=True)


def test_a_run_without_scores_is_not_finished(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    with pytest.raises(InputError, match="is not finished"):
        read_run(tmp_path / "run")


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(tmp_path / "run")
    before = (tmp_path / "run" / "results.jsonl").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="the disk is full"):
        folder.write_results(RESULTS[:1])
    assert (tmp_path / "run" / "results.jsonl").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_answer_that_the_disk_has_no_room_for_is_one_line(tmp_path: Path) -> None:
    folder = filled(tmp_path / "run")
    own(tmp_path / "run", ["full.jsonl"])
    (tmp_path / "run" / "full.jsonl").symlink_to("/dev/full")
    problem = pytest.raises(RunError, match=r"^the disk is full: .*full\.jsonl was not written$")
    with problem, folder.appending("full.jsonl") as append:
        append("a line\n")
    assert list(folder.results().values()) == RESULTS
