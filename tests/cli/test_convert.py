"""``parm-mlx convert`` as it is typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_the_commands_of_a_whole_project(official: Path, tmp_path: Path, run_cli: Run) -> None:
    arm, base, k2, peft = (tmp_path / name for name in ("arm", "base", "k2", "k2-peft"))
    code, out, err = run_cli("convert", official / "arm_base", "--out", arm, "--dtype", "float32")
    assert (code, out) == (0, f"{arm}\n")
    assert "is a Hugging Face causal LM" in err

    code, out, _ = run_cli("convert", official / "base_lm", "--out", base, "-q", "--q-bits", 4, "--q-group-size", 32)
    assert (code, out) == (0, f"{base}\n")
    expected = {"group_size": 32, "bits": 4, "mode": "affine"}
    assert json.loads((base / "config.json").read_text())["quantization"] == expected

    names = ("--objectives", "harmless,helpful", "--guide-model", arm)
    code, out, err = run_cli("convert", official / "parm_k2", "--out", k2, *names)
    assert (code, out) == (0, f"{k2}\n")
    assert err.splitlines() == [
        f"{official / 'parm_k2'} is a PEFT PBLoRA adapter",
        "objectives harmless, helpful; r1=4, r2=4, scale 2; 6 layers (k_proj, q_proj, v_proj); backbone ../arm",
    ]

    code, out, err = run_cli("convert", k2, "--out", peft, "--to", "peft")
    assert (code, out) == (0, f"{peft}\n")
    assert f"{k2} is a parm-mlx adapter" in err
    assert sorted(path.name for path in peft.iterdir()) == [
        ".parm-mlx",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arm", "base", "k2", "k2-peft"]


def test_reward_models(reward_source: Callable[..., Path], tmp_path: Path, run_cli: Run) -> None:
    """A cost and two outputs of a classifier, converted, label a pair; 32 inputs make groups of 32."""
    cost, judge = tmp_path / "cost", tmp_path / "judge"
    source = reward_source("beaver-cost")
    code, out, err = run_cli("convert", source, "--out", cost, "-q", "--q-bits", 8, "--q-group-size", 32)
    assert (code, out) == (0, f"{cost}\n")
    assert err.splitlines()[:4] == [
        f"{source} is a Hugging Face reward model",
        "taken for a cost by its name; --higher-is-better says otherwise",
        "outputs cost; lower is better, so scores are negated",
        "2 of 15 layers stay plain: 32 does not divide their number of inputs",
    ]
    code, _, err = run_cli("convert", reward_source("qwen2-2"), "--out", judge, "--higher-is-better")
    assert (code, err.splitlines()[1]) == (0, "outputs harmless, helpful; higher is better")
    assert run_cli("convert", tmp_path / "qwen2-2", "--out", judge, "--force", "--lower-is-better")[0] == 0
    assert json.loads((judge / "reward.json").read_text())["lower_is_better"] is True

    pairs, labelled = tmp_path / "pairs.jsonl", tmp_path / "labelled.jsonl"
    row = {"prompt": "Hi", "responses": ["No.", "Yes, and thanks!"], "preferred": {"any": 0}}
    pairs.write_text(json.dumps(row) + "\n")
    rewards = ("--reward", f"harmless={cost}", "--reward", f"helpful={judge}#helpful")
    code, _, err = run_cli("data", "relabel", pairs, *rewards, "--out", labelled)
    assert code == 0, err
    assert json.loads(labelled.read_text())["margins"].keys() == {"harmless", "helpful"}


def test_unnamed_objectives_are_a_note(official: Path, tmp_path: Path, run_cli: Run) -> None:
    code, _, err = run_cli("convert", official / "parm_k2", "--out", tmp_path / "k2")
    assert code == 0
    assert "called objective_1, objective_2; --objectives names them" in err
    assert "not checked against its backbone; --guide-model does that" in err


def test_an_existing_output_needs_force(official: Path, tmp_path: Path, run_cli: Run) -> None:
    command = ("convert", official / "parm_k2", "--out", tmp_path / "k2")
    assert run_cli(*command)[0] == 0
    code, out, err = run_cli(*command)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'k2'} exists already\nhint: ")
    assert run_cli(*command, "--force")[0] == 0


def test_what_is_read_is_never_replaced(official: Path, tmp_path: Path, run_cli: Run) -> None:
    source = tmp_path / "k2"
    shutil.copytree(official / "parm_k2", source)
    before = sorted(path.name for path in source.iterdir())
    code, _, err = run_cli("convert", source, "--out", source, "--force")
    assert code == 2
    assert "would replace" in err
    assert sorted(path.name for path in source.iterdir()) == before

    backbone = tmp_path / "arm"
    shutil.copytree(official / "arm_base", backbone)
    code, _, err = run_cli("convert", source, "--out", backbone, "--force", "--guide-model", backbone)
    assert code == 2
    assert f"would replace {backbone}" in err


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("arm_base", ("--to", "peft"), "--to peft cannot be used here"),
        ("arm_base", ("--objectives", "a,b"), "--objectives cannot be used here"),
        ("arm_base", ("--guide-model", "x"), "--guide-model cannot be used here"),
        ("arm_base", ("--lower-is-better",), "--lower-is-better cannot be used here"),
        ("parm_k2", ("--higher-is-better",), "--higher-is-better cannot be used here"),
        ("arm_base", ("--q-bits", "4"), "--q-bits needs -q"),
        ("arm_base", ("--dtype", "int8"), "int8"),
        ("arm_base", ("-q", "--q-bits", "7"), "bits 7 is not supported"),
        ("parm_k2", ("-q",), "-q cannot be used here"),
        ("parm_k2", ("--dtype", "float16"), "--dtype cannot be used here"),
        ("parm_k2", ("--to", "peft"), "is in PEFT's format already"),
        ("parm_k2", ("--objectives", "a,b,c"), "3 objective name(s)"),
        ("parm_k2", ("--guide-model", "nowhere"), "guide model nowhere: no such directory"),
        ("nothing", (), "no such directory"),
        ("expected_greedy.json", (), "is a file, not a directory"),
        ("", (), "neither a model"),
    ],
)
def test_wrong_usage_is_one_error_and_exit_2(
    official: Path, tmp_path: Path, run_cli: Run, source: str, options: tuple[str, ...], message: str
) -> None:
    code, out, err = run_cli("convert", official / source, "--out", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_converting_ours_without_to_peft_says_what_to_do(official: Path, tmp_path: Path, run_cli: Run) -> None:
    run_cli("convert", official / "parm_k2", "--out", tmp_path / "k2")
    code, _, err = run_cli("convert", tmp_path / "k2", "--out", tmp_path / "again")
    assert code == 2
    assert "--to peft" in err
    code, _, err = run_cli(
        "convert", tmp_path / "k2", "--out", tmp_path / "again", "--to", "peft", "--objectives", "a,b"
    )
    assert code == 2
    assert "no place for it" in err


@pytest.mark.parametrize(("failure", "exit_code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_half_way_leaves_what_was_there(
    official: Path,
    tmp_path: Path,
    run_cli: Run,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    exit_code: int,
    force: bool,
) -> None:
    def fail_half_way(out: Path, *_: object) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        raise failure

    command = ("convert", official / "arm_base", "--out", tmp_path / "out", *(["--force"] if force else []))
    if force:
        run_cli(*command)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr("parm_mlx.convert.model.save_converted", fail_half_way)
    code, out, err = run_cli(*command)
    assert (code, out) == (exit_code, "")
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_writing_an_adapter_to_a_full_disk_leaves_nothing(
    official: Path, tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("parm_mlx.convert.run.save_adapter", fail)
    code, _, err = run_cli("convert", official / "parm_k2", "--out", tmp_path / "k2")
    assert code == 1
    assert "the disk is full" in err
    assert list(tmp_path.iterdir()) == []
