import re
from collections.abc import Callable
from pathlib import Path

import pytest

from parm_mlx import named
from parm_mlx.cli.demo import _rewards as demo_rewards
from parm_mlx.errors import InputError
from parm_mlx.files import NAMED
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM, MODELS
from parm_mlx.pblora import read_adapter
from parm_mlx.rewards.builtin import SCORERS

Run = Callable[..., tuple[int, str, str]]


OBJECTIVES = read_adapter(BUNDLED_PARM)[0].objectives
NUMBER = r"(-?[\d.]+)"


def test_the_demo_shows_the_base_and_three_preferences_and_what_moved(run_cli: Run) -> None:
    code, out, _ = run_cli("demo", "--model", "bundled")
    assert code == 0
    assert out.count("▌ ") == 3
    weights = "|".join(["base alone", " ".join(f"{name}=[\\d.]+" for name in OBJECTIVES)])
    scores = "  ".join(f"{name} {NUMBER}" for name in OBJECTIVES)
    answers = re.findall(rf"\[({weights})\]\n  (.+?)(?: …)?\n  →  {scores}\n", out)
    assert len(answers) == 12
    for _, text, *numbers in answers:
        assert [float(n) for n in numbers] == [float(f"{SCORERS[name](text):.1f}") for name in OBJECTIVES]
    first = OBJECTIVES[0]
    corners = {w: sum(float(a[2]) for a in answers if a[0].startswith(f"{first}={w}")) for w in ("1", "0 ")}
    assert corners["1"] > corners["0 "]
    moved = out[out.index("What moved") :].splitlines()
    assert [line.split()[0] for line in moved[1:]] == list(OBJECTIVES)
    assert "the base alone" in moved[1]


def test_the_demo_takes_other_questions_and_preferences(run_cli: Run) -> None:
    code, out, _ = run_cli(
        *("demo", "--model", "bundled", "--prompt", "How do I bake bread?", "--alpha", "0.8,0.2", "--max-tokens", 20)
    )
    assert code == 0
    assert out.count("▌ ") == 1
    assert "[{}=0.8 {}=0.2]".format(*OBJECTIVES) in out
    assert "there is one preference only" in out


def test_a_score_whose_extra_is_missing_is_left_out(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise InputError("VADER is not installed", hint="pip install 'parm-mlx[scorers]'")

    monkeypatch.setattr("parm_mlx.rewards.vader.check_installed", missing)
    monkeypatch.setitem(NAMED, "smollm2", named._bundled)
    monkeypatch.setattr("parm_mlx.cli.demo._rewards", lambda objectives: demo_rewards(("cheer", "focus")))
    code, out, err = run_cli("demo", "--prompt", "How do I bake bread?", "--max-tokens", 8)
    assert code == 0
    assert "cheer is not scored: VADER is not installed (pip install 'parm-mlx[scorers]')" in err
    assert "→  focus " in out
    assert "warmth" not in out[out.index("What moved") :]


def test_a_wrong_alpha_is_refused(run_cli: Run) -> None:
    code, _, err = run_cli("demo", "--model", "bundled", "--alpha", "1,2,3")
    assert code == 2
    assert f"the objectives are {', '.join(OBJECTIVES)} (k=2)" in err


def test_the_bundled_models_are_small_and_belong_together() -> None:
    sizes = {
        folder: sum(path.stat().st_size for path in (MODELS / folder).rglob("*") if path.is_file())
        for folder in (".", "smollm2-parm")
    }
    assert sizes["smollm2-parm"] <= 5_000_000
    assert sizes["."] - sizes["smollm2-parm"] <= 8_000_000
    config, _ = read_adapter(BUNDLED_PARM)
    assert config.k == 2
    assert (BUNDLED_PARM / Path(str(config.base_model))).resolve() == BUNDLED_BASE.resolve()
