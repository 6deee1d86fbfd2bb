import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import generate
from mlx_lm.utils import load

import parm_mlx

Run = Callable[..., tuple[int, str, str]]
IDS = mx.array([[1, 319, 28, 7]])


def test_the_fused_model_is_the_guide_at_that_preference(run_cli: Run, official_parm: Path, tmp_path: Path) -> None:
    code, out, err = run_cli("fuse", "--parm", official_parm, "--alpha", "0.3,0.7", "--out", tmp_path / "fused")
    assert (code, out) == (0, f"{tmp_path / 'fused'}\n")
    assert "harmless=0.3 helpful=0.7" in err
    fused, tokenizer = load(str(tmp_path / "fused"))
    guide, _ = parm_mlx.load_guide(official_parm)
    assert mx.allclose(fused(IDS), guide(IDS, alpha=[0.3, 0.7]), atol=1e-4)
    assert tokenizer.eos_token_id == 2


def test_a_quantised_backbone_needs_dequantize(
    run_cli: Run, official: Path, official_parm: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    assert run_cli("convert", official / "arm_base", "--out", small, "-q", "--q-bits", 4, "--q-group-size", 32)[0] == 0
    fuse = ["fuse", "--parm", official_parm, "--guide-model", small, "--alpha", "1,0", "--out", tmp_path / "fused"]
    code, _, err = run_cli(*fuse)
    assert code == 2
    assert "round small updates away" in err
    assert "--dequantize" in err
    assert run_cli(*fuse, "--dequantize")[0] == 0
    fused, _ = load(str(tmp_path / "fused"))
    guide, _ = parm_mlx.load_guide(official_parm, model=small)
    assert mx.allclose(fused(IDS), guide(IDS, alpha=[1, 0]), atol=1e-2)
    assert type(fused.layers[0].self_attn.o_proj).__name__ == "QuantizedLinear"
    assert type(fused.layers[0].self_attn.q_proj).__name__ == "Linear"


def test_guided_is_one_pass_at_that_preference_and_strength_in_plain_mlx_lm(
    run_cli: Run, official: Path, official_parm: Path, tmp_path: Path
) -> None:
    fuse = ["fuse", "--parm", official_parm, "--alpha", "0.3,0.7", "--out", tmp_path / "fused"]
    code, _, err = run_cli(*fuse, "--beta", "0.4")
    assert code == 2
    assert "--beta needs --guided" in err
    code, _, err = run_cli(*fuse, "--guided", "--beta", "0.4")
    assert code == 0
    assert "harmless=0.3 helpful=0.7, with its base, beta 0.4" in err
    fused, tokenizer = load(str(tmp_path / "fused"))
    model, _ = parm_mlx.load(official / "arm_base", official_parm, alpha=[0.3, 0.7], beta=0.4, guidance="one-pass")
    assert mx.allclose(fused(IDS), model(IDS), atol=1e-4)
    said = [generate(fused, tokenizer, IDS[0].tolist(), max_tokens=12)]
    assert said == [generate(model, tokenizer, IDS[0].tolist(), max_tokens=12)]
    assert mx.abs(fused(IDS) - 3.5 * model.base_logits(IDS)).max() > 0.1, "not the sharpened base"


@pytest.mark.parametrize(
    ("alpha", "reason"), [("1", "alpha has 1 weight"), ("kind=1", "unknown objective"), ("nan,1", "finite")]
)
def test_a_wrong_alpha_writes_nothing(
    run_cli: Run, official_parm: Path, tmp_path: Path, alpha: str, reason: str
) -> None:
    code, _, err = run_cli("fuse", "--parm", official_parm, "--alpha", alpha, "--out", tmp_path / "fused")
    assert code == 2
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_kept_without_force(
    run_cli: Run, official: Path, official_parm: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    shutil.copytree(official / "arm_base", out)
    fuse = ["fuse", "--parm", official_parm, "--alpha", "1,0", "--out", out]
    code, _, err = run_cli(*fuse)
    assert code == 2
    assert "exists already" in err
    code, _, err = run_cli(*fuse, "--force")
    assert code == 2
    assert "is not a model, adapter or prepared data by parm-mlx" in err
    shutil.rmtree(out)
    assert run_cli(*fuse)[0] == 0
    assert run_cli(*fuse, "--force")[0] == 0
