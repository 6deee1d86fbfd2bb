"""Runs that end early and are resumed, in this process, where the moment can be chosen."""

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from kill_runs import outcome

from parm_mlx.errors import CheckpointError, OutputError, RunError
from parm_mlx.pblora import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.logging import TrainRecord, ValidRecord
from parm_mlx.training.progress import Progress
from parm_mlx.training.run import TrainResult, train

Run = Callable[..., TrainResult]
Whole = Callable[..., dict[str, Any]]
STEPS = 7
WHOLE: dict[str, dict[str, Any]] = {}


class KilledError(BaseException):
    """Ends a run on the spot, as nothing in it expects."""


def kill() -> None:
    raise KilledError


class Listener(Progress):
    """Remembers notes, and ends the run at a moment: "advance 3", "report 4", "validated 2"."""

    def __init__(self, moment: str, ending: Callable[[], None]) -> None:
        self.moment, self.ending = moment, ending
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, step: int) -> None:
        self._end(f"advance {step}")

    def report(self, record: TrainRecord) -> None:
        self._end(f"report {record.step}")

    def validated(self, record: ValidRecord) -> None:
        self._end(f"validated {record.step}")

    def _end(self, moment: str) -> None:
        if moment == self.moment:
            self.ending()


@pytest.fixture
def run(official: Path, tmp_path: Path, write_rows: Callable[..., Path], rows: list[dict[str, Any]]) -> Run:
    """Trains for 7 steps with 4 of 22 pairs, so that an epoch ends within; saves every 2, validates every 3."""
    data = write_rows(rows)

    def run_train(
        out: str = "out",
        moment: str = "",
        ending: Callable[[], None] = kill,
        notes: list[str] | None = None,
        **settings: Any,
    ) -> TrainResult:
        defaults: dict[str, Any] = {
            "model": str(official / "arm_base"),
            "data": str(data),
            "out": str(tmp_path / out),
            "iters": STEPS,
            "batch_size": 4,
            "learning_rate": 0.01,
            "warmup": 1,
            "val_batches": 1,
            "steps_per_save": 2,
            "steps_per_eval": 3,
            "steps_per_report": 2,
            "keep_checkpoints": 2,
        }
        how = {name: settings.pop(name) for name in ("force", "resume", "resume_anyway") if name in settings}
        listener = Listener(moment, ending)
        if notes is not None:
            listener.notes = notes
        return train(TrainConfig(**(defaults | settings)), progress=listener, **how)

    return run_train


@pytest.fixture
def whole(run: Run) -> Whole:
    """The outcome of a run that nobody ends, trained once for all tests with the same settings."""

    def outcome_of(**settings: Any) -> dict[str, Any]:
        key = repr(settings)
        if key not in WHOLE:
            WHOLE[key] = outcome(run("whole", **settings).out)
        return WHOLE[key]

    return outcome_of


def killed(run: Run, moment: str, **settings: Any) -> None:
    with pytest.raises(KilledError):
        run(moment=moment, **settings)


def folder_of(run_out: Path) -> Path:
    return run_out.with_name(f"{run_out.name}.checkpoints")


@pytest.mark.parametrize("save", ["last", "best"])
def test_a_run_that_is_ended_again_and_again_gives_the_same_bytes(
    run: Run, whole: Whole, tmp_path: Path, save: str
) -> None:
    """Between a step and its report, between a report and its validation, between a validation and its checkpoint."""
    expected = whole(save=save)
    for moment in ("advance 1", "advance 3", "validated 3", "report 4", "advance 6", "validated 7"):
        killed(run, moment, save=save, resume=True)
    metrics = (folder_of(tmp_path / "out") / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["step"] == 7, "the metrics are written while the run goes on"
    result = run(save=save, resume=True)
    assert outcome(result.out) == expected
    steps = [(type(record), record.step) for record in result.records]
    assert len(steps) == len(set(steps))
    assert sorted({step for _, step in steps}) == [0, 2, 3, 4, 6, 7]


def test_a_signal_during_the_validation_leaves_it_for_later(run: Run, whole: Whole, tmp_path: Path) -> None:
    """It comes between the report of step 6 and its validation."""
    expected = whole()
    result = run(moment="report 6", ending=lambda: signal.raise_signal(signal.SIGTERM))
    assert (result.steps, result.signal) == (6, signal.SIGTERM)
    assert [record.step for record in result.records if isinstance(record, ValidRecord)] == [0, 3]
    assert outcome(run(resume=True).out) == expected


def test_a_second_ctrl_c_ends_the_run_on_the_spot(run: Run, whole: Whole, tmp_path: Path) -> None:
    expected = whole()

    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(moment="advance 5", ending=press_twice)
    assert (folder_of(tmp_path / "out") / "step-00000004").is_dir()
    assert outcome(run(resume=True).out) == expected


def test_one_alpha_per_batch_and_dropout_go_on_too(run: Run, whole: Whole) -> None:
    settings = {"alpha_per": "batch", "dropout": 0.3, "val_batches": 0}
    expected = whole(**settings)
    killed(run, "advance 3", **settings)
    assert outcome(run(resume=True, **settings).out) == expected


def test_the_smooth_tchebycheff_goes_on_too(run: Run, tmp_path: Path) -> None:
    settings = {"scalarization": "tchebycheff", "smoothing": 0.05, "dropout": 0.3, "grad_accumulation_steps": 2}
    settings |= {"nll_weight": 0.2, "w2_learning_rate": 0.02}
    whole = run("whole", **settings)
    killed(run, "advance 3", **settings)
    with pytest.raises(CheckpointError, match=r"\n  smoothing: 0.05 → 0.1"):
        run(resume=True, **settings | {"smoothing": None})
    assert outcome(run(resume=True, **settings).out) == outcome(whole.out)
    recorded = read_adapter(whole.out)[0].training["settings"]
    assert [recorded[name] for name in ("scalarization", "smoothing", "alpha_per")] == ["tchebycheff", 0.05, "batch"]
    assert outcome(run("linear", **settings | {"scalarization": "linear", "smoothing": None}).out) != outcome(whole.out)


def test_without_a_checkpoint_it_starts_from_the_beginning(run: Run, tmp_path: Path) -> None:
    notes: list[str] = []
    run(resume=True, notes=notes, iters=1)
    assert f"no checkpoint in {tmp_path / 'out.checkpoints'}: starting from the beginning" in notes


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    run: Run, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the optimiser of step 4 is written."""
    expected = whole()
    save_safetensors, calls = mx.save_safetensors, []

    def write(path: str, *arguments: Any, **more: Any) -> None:
        calls.append(path)
        if len(calls) == 6:
            Path(path).write_bytes(b"half of i")
            raise RuntimeError("[write] Unable to write 100 bytes to file.")
        save_safetensors(path, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "save_safetensors", write)
        with pytest.raises(RunError, match="step-00000004 was not written") as caught:
            run()
    last = folder_of(tmp_path / "out") / "step-00000003"
    assert f"the last good checkpoint is {last}" in str(caught.value)
    assert sorted(path.name for path in last.parent.iterdir()) == [
        ".parm-mlx",
        "metrics.jsonl",
        "step-00000002",
        last.name,
    ]
    assert outcome(run(resume=True).out) == expected


def test_a_broken_checkpoint_is_passed_over(run: Run, whole: Whole, tmp_path: Path) -> None:
    expected = whole()
    killed(run, "advance 5")
    (folder_of(tmp_path / "out") / "step-00000004" / "optimizer.safetensors").write_bytes(b"")
    notes: list[str] = []
    assert outcome(run(resume=True, notes=notes).out) == expected
    assert any("optimizer.safetensors was changed or truncated; the one before it is tried" in note for note in notes)


def test_other_settings_are_refused_and_shown(run: Run, tmp_path: Path) -> None:
    killed(run, "advance 3")
    with pytest.raises(CheckpointError) as caught:
        run(resume=True, seed=1, beta_objective="0.1,0.2")
    assert "\n  seed: 0 → 1" in str(caught.value)
    assert "\n  beta_objective: [0.01] → [0.1, 0.2]" in str(caught.value)
    assert "without --resume" in str(caught.value.hint)
    run(resume=True, steps_per_report=1, steps_per_save=5, keep_checkpoints=1, save="best")


def test_other_data_is_refused(run: Run, tmp_path: Path) -> None:
    killed(run, "advance 3")
    data = tmp_path / "pairs.jsonl"
    text = data.read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / data.name).write_text(text)
    data.write_text(text.replace("Question", "A question"))
    with pytest.raises(CheckpointError, match=r"other data \(SHA-256 .*\):\n  pairs.jsonl: \w{12}… → \w{12}…"):
        run(resume=True)
    run(resume=True, data=str(moved / data.name))


@pytest.fixture
def backbone(official: Path, tmp_path: Path) -> Path:
    """A copy of the backbone that a test may change."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    for file in (official / "arm_base").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def scale_weights(model: Path) -> None:
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(
        str(model / "model.safetensors"), {k: v * 1.1 for k, v in weights.items()}, metadata={"format": "mlx"}
    )


def test_a_run_goes_on_where_its_backbone_has_moved(run: Run, backbone: Path, tmp_path: Path) -> None:
    expected = outcome(run("whole", model=str(backbone)).out)
    killed(run, "advance 3", model=str(backbone))
    moved = backbone.rename(tmp_path / "moved")
    found = outcome(run(resume=True, model=str(moved)).out)
    assert found.pop("adapter_config.json") != expected.pop("adapter_config.json"), "it records where its backbone is"
    assert found == expected
    notes: list[str] = []
    run(resume=True, model=str(moved), notes=notes)
    assert any("is finished already" in note for note in notes)


def test_another_backbone_is_refused_by_name(run: Run, backbone: Path) -> None:
    killed(run, "advance 3", model=str(backbone))
    scale_weights(backbone)
    (backbone / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(CheckpointError, match="was made with other models") as caught:
        run(resume=True, model=str(backbone))
    weights, template = str(caught.value).split("\n")[1:]
    assert re.fullmatch(r"  model: weights: \w{12}… → \w{12}…", weights)
    assert re.fullmatch(r"  model: chat_template.jinja: no such file → \w{12}…", template)
    assert "--resume-anyway" in str(caught.value.hint)


def test_a_finished_run_of_another_backbone_is_not_taken_for_this_one(run: Run, backbone: Path) -> None:
    run(model=str(backbone))
    notes: list[str] = []
    run(resume=True, model=str(backbone), notes=notes)
    assert any("is finished already" in note for note in notes)
    scale_weights(backbone)
    with pytest.raises(OutputError, match="exists already"):
        run(resume=True, model=str(backbone))


def test_resume_anyway_says_so_in_the_records(run: Run, backbone: Path) -> None:
    """Also in those of a run that goes on once more, with what it had then."""
    killed(run, "advance 3", model=str(backbone))
    scale_weights(backbone)
    notes: list[str] = []
    killed(run, "advance 5", model=str(backbone), resume_anyway=True, notes=notes)
    assert "going on with other data or models than before: model: weights" in notes
    result = run(resume=True, model=str(backbone))
    training = read_adapter(result.out)[0].training
    [resumed] = training["resumed_with_changes"]
    assert (resumed["step"], list(resumed["changed"])) == (2, ["model: weights"])
    assert resumed["changed"]["model: weights"][1] == training["models"]["model: weights"]
    records = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    assert {"kind": "resumed with changes", "step": 2, "changed": ["model: weights"]} in records


def test_resume_anyway_with_other_data_begins_their_order_again(run: Run, tmp_path: Path) -> None:
    killed(run, "advance 5")
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:12]))
    result = run(resume_anyway=True)
    assert result.steps == STEPS
    assert list(read_adapter(result.out)[0].training["resumed_with_changes"][0]["changed"]) == ["pairs.jsonl"]


def test_another_start_is_refused_unless_it_is_gone(run: Run, tmp_path: Path) -> None:
    first, other = run("first", iters=1).out, run("other", iters=2).out
    killed(run, "advance 3", start_from=str(first))
    kept = first.rename(tmp_path / "kept")
    other.rename(first)
    with pytest.raises(CheckpointError, match="start-from: weights"):
        run(resume=True, start_from=str(first))
    first.rename(other)
    run(resume=True, start_from=str(first))
    kept.rename(first)


def test_models_of_another_shape_cannot_go_on(run: Run, backbone: Path) -> None:
    killed(run, "advance 3", model=str(backbone))
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    weights = mx.load(str(backbone / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(
        str(backbone / "model.safetensors"), {k: v for k, v in weights.items() if ".layers.1." not in k}
    )
    with pytest.raises(CheckpointError, match="its adapter does not fit the model"):
        run(resume_anyway=True, model=str(backbone))


def test_checkpoints_are_not_overwritten_by_accident(run: Run, tmp_path: Path) -> None:
    killed(run, "advance 3")
    with pytest.raises(OutputError, match="holds the checkpoints of an earlier run, up to step 2"):
        run()
    result = run(force=True, seed=1)
    assert not (folder_of(result.out) / "step-00000002").exists()


def test_a_finished_run_has_nothing_left_to_do(run: Run, tmp_path: Path) -> None:
    """Also when the process was ended before it could remove the checkpoints."""
    killed(run, "validated 7", val_batches=-1)
    folder = folder_of(tmp_path / "out")
    kept = folder.rename(tmp_path / "kept")
    first = run(val_batches=-1)
    before = outcome(first.out)
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    kept.rename(folder)
    notes: list[str] = []
    second = run(resume=True, notes=notes, val_batches=-1)
    assert f"{first.out} is finished already" in notes
    assert (second.steps, second.records) == (first.steps, first.records)
    assert outcome(second.out) == before
    assert not list(folder.glob("step-00000006"))


def test_the_best_adapter_is_the_result_or_stays(run: Run, tmp_path: Path) -> None:
    """A learning rate that makes the loss worse after a good beginning."""
    settings = {"learning_rate": 0.3, "warmup": 0, "steps_per_eval": 1, "iters": 3, "beta_objective": 1}
    notes: list[str] = []
    last = run("last", notes=notes, **settings)
    losses = {record.step: record.loss for record in last.records if isinstance(record, ValidRecord) and record.step}
    best = min(losses, key=lambda step: losses[step])
    assert best != 3, "the settings of this test must let the loss grow"
    stays = folder_of(last.out) / f"step-{best:08}"
    assert sorted(path.name for path in stays.parent.iterdir()) == [".parm-mlx", stays.name]
    assert any(str(stays) in note for note in notes)
    result = run("best", save="best", **settings)
    assert not folder_of(result.out).exists()
    config, tensors = read_adapter(result.out)
    assert config.training["steps_done"] == best
    kept = read_adapter(stays)[1]
    assert all(mx.array_equal(tensors[name], kept[name]).item() for name in kept)
    assert not all(mx.array_equal(tensors[name], tensor).item() for name, tensor in read_adapter(last.out)[1].items())


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(run: Run, tmp_path: Path) -> None:
    """The rate grows from 0 in the warm-up, so that the first step is harmless and saved."""
    with pytest.raises(RunError) as caught:
        run(learning_rate=1e3, warmup=1, iters=20, val_batches=0, steps_per_save=1)
    folder = re.escape(str(folder_of(tmp_path / "out")))
    good = re.search(rf"The last good checkpoint: ({folder}/step-0000000\d)$", str(caught.value))
    assert good
    tensors = read_adapter(Path(good[1]))[1]
    assert all(mx.isfinite(tensor).all().item() for tensor in tensors.values())


def test_other_data_are_another_run_than_the_finished_one(run: Run, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """What the result was trained on counts, not its name; data that are gone have not changed."""
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(data=str(data))
    notes: list[str] = []
    run(resume=True, data=str(data), notes=notes)
    assert any("is finished already" in note for note in notes)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(OutputError, match="exists already"):
        run(resume=True, data=str(data))
    data.unlink()
    run(resume=True, data=str(data))


def test_the_best_adapter_is_not_the_last_one(run: Run) -> None:
    """Neither is taken for the other where a run that has ended is resumed."""
    settings = {"learning_rate": 0.3, "warmup": 0, "steps_per_eval": 1, "iters": 3, "beta_objective": 1}
    run(**settings)
    with pytest.raises(OutputError, match="exists already"):
        run(resume=True, save="best", **settings)
