"""``parm-mlx refine`` on the bundled pair."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

import parm_mlx
from parm_mlx.outputs import new_directory
from parm_mlx.pblora import read_adapter
from parm_mlx.pblora.adapter import save_adapter

Run = Callable[..., tuple[int, str, str]]
IDS = mx.array([[1, 31, 28, 7]])


def test_a_refined_adapter_has_other_tensors_and_says_how_they_came(run_cli: Run, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "refined"
    prompts.write_text(
        "".join(f"How do I {what}?\n" for what in ("bake bread", "plant a tree", "sleep", "sing", "swim"))
    )
    given = ("refine", "--parm", "bundled", "--prompts", prompts, "--out", out, "--seed", 3)
    code, printed, err = run_cli(*given, "--max-tokens", 12, "--iters", 3, "--learning-rate", 1e-4)
    assert (code, printed) == (0, f"{out}\n"), err
    assert "step 3 of 3: loss 0." in err
    assert len(re.findall(r"beta \S+: total variation of one pass 0\.\d+, now 0\.\d+", err)) == 3
    config = json.loads((out / "adapter_config.json").read_text())
    refinement = config["training"]["refinement"]
    assert (refinement["iters"], refinement["seed"], refinement["prompts"]) == (3, 3, 5)
    assert set(refinement["measured_by_beta"]) == {"0.5", "1", "2"}
    said = re.search(r"beta 1: total variation of one pass (0\.\d+), now (0\.\d+)", err)
    assert said is not None
    kept = refinement["measured_by_beta"]["1"]
    assert [f"{kept[when]:.4f}" for when in ("before", "after")] == list(said.groups())
    assert config["base_model"] == "bundled"
    told = (out / "README.md").read_text(encoding="utf-8")
    assert f"| 1 | {kept['before']:.4f} | {kept['after']:.4f} | {kept['moved']:.4f} |" in told
    exact = [parm_mlx.load("bundled", parm)[0](IDS) for parm in ("bundled", out)]
    assert not mx.array_equal(*exact)
    assert mx.allclose(*exact, atol=0.5)


def test_three_prompts_are_too_few(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How?\nWhy?\nWho?\n")
    given = ["refine", "--parm", "bundled", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    code, _, err = run_cli(*given)
    assert code == 2
    assert "fewer than 4 prompts" in err
    assert not (tmp_path / "out").exists()


def test_the_backbone_of_the_adapter_is_not_replaced(
    run_cli: Run, official: Path, official_parm: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("How?\nWhy?\nWho?\nWhen?\n")
    backbone, parm = tmp_path / "backbone", tmp_path / "parm"
    assert run_cli("convert", official / "arm_base", "--out", backbone)[0] == 0
    with new_directory(parm) as partial:
        config, tensors = read_adapter(official_parm)
        save_adapter(partial, replace(config, base_model=str(backbone)), tensors)
    before = (backbone / "model.safetensors").read_bytes()
    given = ["refine", "--parm", parm, "--prompts", tmp_path / "prompts.txt", "--out", backbone, "--force"]
    code, _, err = run_cli(*given, "--iters", 1, "--max-tokens", 4)
    assert code == 2
    assert f"--out {backbone} would replace " in err
    assert (backbone / "model.safetensors").read_bytes() == before


def test_a_prompt_beyond_the_context_is_refused(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How?\nWhy?\nWho?\n" + "word " * 20000 + "\n")
    given = ["refine", "--parm", "bundled", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    code, _, err = run_cli(*given)
    assert code == 2
    assert "error: the prompt has 20006 tokens, and the model reads 1024 with its answer" in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How?\nWhy?\nWho?\nWhat?\n")
    given = ["refine", "--parm", "bundled", "--prompts", tmp_path / "prompts.txt", "--out", "/proc/refined"]
    code, _, err = run_cli(*given)
    assert code != 0
    assert "/proc/refined" in err.splitlines()[-1]
    assert "answering" not in err


def test_the_card_of_a_shipped_adapter_names_its_backbone(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How?\nWhy?\nWho?\nWhat?\n")
    given = ["refine", "--parm", "bundled", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    code, _, err = run_cli(*given, "--max-tokens", 4, "--iters", 1)
    assert code == 0, err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "for `bundled` and larger models" in card
    assert "| learning rate at its peak | 0.003 |" in card
