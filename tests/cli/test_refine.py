"""``parm-mlx refine`` on the bundled pair."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

import parm_mlx
from parm_mlx.named import BUNDLED_BASE

Run = Callable[..., tuple[int, str, str]]
IDS = mx.array([[1, 31, 28, 7]])


def test_a_refined_adapter_is_the_same_but_in_one_pass(run_cli: Run, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "refined"
    prompts.write_text(
        "".join(f"How do I {what}?\n" for what in ("bake bread", "plant a tree", "sleep", "mend a shirt"))
    )
    code, printed, err = run_cli(
        "refine", "--parm", "bundled", "--prompts", prompts, "--out", out, "--max-tokens", 12, "--seed", 3
    )
    assert (code, printed) == (0, f"{out}\n"), err
    assert len(re.findall(r"beta \S+: total variation 0\.\d+, now 0\.\d+", err)) == 3
    config = json.loads((out / "adapter_config.json").read_text())
    assert len(config["one_pass"]) == 28
    assert (out / config["base_model"]).resolve() == BUNDLED_BASE.resolve()
    exact = [parm_mlx.load("bundled", parm)[0](IDS) for parm in ("bundled", out)]
    assert mx.array_equal(*exact)
    fast = [parm_mlx.load("bundled", parm, guidance="one-pass")[0](IDS) for parm in ("bundled", out)]
    assert not mx.allclose(*fast, atol=1e-3)


def test_one_prompt_is_too_few(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("How do I bake bread?\n")
    given = ["refine", "--parm", "bundled", "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    code, _, err = run_cli(*given)
    assert code == 2
    assert "fewer than two prompts" in err
    assert not (tmp_path / "out").exists()
