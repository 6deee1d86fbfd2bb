import re
from collections.abc import Callable
from pathlib import Path

from parm_mlx.evaluation.rewards import SCORERS
from parm_mlx.guidance.loading import BUNDLED, BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.pblora import read_adapter

Run = Callable[..., tuple[int, str, str]]


def test_the_demo_shows_questions_answers_scores_and_what_moved(run_cli: Run) -> None:
    code, out, _ = run_cli("demo")
    assert code == 0
    assert out.count("▌ ") == 3
    answers = re.findall(r"\[warmth=(\S+) brevity=\S+\]  →  warmth (\S+)  brevity (\S+)\n  (.+)\n", out)
    assert len(answers) == 9
    for _, warmth, brevity, text in answers:
        assert (float(warmth), float(brevity)) == (SCORERS["warmth"](text), SCORERS["brevity"](text))
    corners = {w: [float(a[1]) for a in answers if a[0] == w] for w in ("1", "0")}
    assert sum(corners["1"]) > sum(corners["0"])
    assert "What moved (mean score): warmth " in out.splitlines()[-1]


def test_the_demo_takes_other_questions_and_preferences(run_cli: Run) -> None:
    code, out, _ = run_cli("demo", "--prompt", "How do I keep basil alive?", "--alpha", "0.8,0.2", "--max-tokens", 20)
    assert code == 0
    assert out.count("▌ ") == 1
    assert "[warmth=0.8 brevity=0.2]" in out
    assert "there is one preference only" in out


def test_a_wrong_alpha_is_refused(run_cli: Run) -> None:
    code, _, err = run_cli("demo", "--alpha", "1,2,3")
    assert code == 2
    assert "the objectives are warmth, brevity (k=2)" in err


def test_the_bundled_models_are_small_and_belong_together() -> None:
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 8_000_000
    config, _ = read_adapter(BUNDLED_PARM)
    assert config.objectives == ("warmth", "brevity")
    assert (BUNDLED_PARM / Path(str(config.base_model))).resolve() == BUNDLED_BASE.resolve()
