import re
from collections.abc import Callable
from pathlib import Path

from parm_mlx.named import BUNDLED, BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.pblora import read_adapter
from parm_mlx.rewards.builtin import SCORERS

Run = Callable[..., tuple[int, str, str]]


OBJECTIVES = read_adapter(BUNDLED_PARM)[0].objectives
NUMBER = r"(-?[\d.]+)"


def test_the_demo_shows_questions_answers_scores_and_what_moved(run_cli: Run) -> None:
    code, out, _ = run_cli("demo")
    assert code == 0
    assert out.count("▌ ") == 3
    weights = " ".join(f"{name}={NUMBER}" for name in OBJECTIVES)
    scores = "  ".join(f"{name} {NUMBER}" for name in OBJECTIVES)
    answers = re.findall(rf"\[{weights}\]  →  {scores}\n  (.+)\n", out)
    assert len(answers) == 9
    for *numbers, text in answers:
        assert [float(n) for n in numbers[2:]] == [float(f"{SCORERS[name](text):.1f}") for name in OBJECTIVES]
    corners = {w: sum(float(a[2]) for a in answers if a[0] == w) for w in ("1", "0")}
    assert corners["1"] > corners["0"]
    assert f"What moved (mean score): {OBJECTIVES[0]} " in out.splitlines()[-1]


def test_the_demo_takes_other_questions_and_preferences(run_cli: Run) -> None:
    code, out, _ = run_cli("demo", "--prompt", "How do I bake bread?", "--alpha", "0.8,0.2", "--max-tokens", 20)
    assert code == 0
    assert out.count("▌ ") == 1
    assert "[{}=0.8 {}=0.2]".format(*OBJECTIVES) in out
    assert "there is one preference only" in out


def test_a_wrong_alpha_is_refused(run_cli: Run) -> None:
    code, _, err = run_cli("demo", "--alpha", "1,2,3")
    assert code == 2
    assert f"the objectives are {', '.join(OBJECTIVES)} (k=2)" in err


def test_the_bundled_models_are_small_and_belong_together() -> None:
    sizes = {
        folder: sum(path.stat().st_size for path in (BUNDLED / folder).rglob("*") if path.is_file())
        for folder in (".", "smollm2-parm")
    }
    assert sizes["smollm2-parm"] <= 5_000_000
    assert sizes["."] - sizes["smollm2-parm"] <= 8_000_000
    config, _ = read_adapter(BUNDLED_PARM)
    assert config.k == 2
    assert (BUNDLED_PARM / Path(str(config.base_model))).resolve() == BUNDLED_BASE.resolve()
