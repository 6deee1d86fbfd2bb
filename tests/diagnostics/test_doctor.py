import pytest

from parm_mlx.diagnostics import doctor
from parm_mlx.diagnostics.doctor import judge_guidance

WARM, DRY = "Good luck, my friend! I am delighted, well done.", "Stir flour, yeast, water, salt; bake 40 minutes."
OBJECTIVES = ("warmth", "focus")


def test_answers_that_follow_alpha_are_ok() -> None:
    """Four warm expressions against none; in the dry answer all words but one number inform or count."""
    finding = judge_guidance(OBJECTIVES, [[WARM, WARM], [DRY, DRY]], finite=True, speed=120.0)
    assert (finding.status, finding.hint) == ("ok", None)
    assert finding.found.startswith("warmth 0.0 → 4.0, focus ")
    assert finding.found.endswith("as their weight goes 0 → 1; 120 tokens/s")
    assert finding.data["scores"]["warmth"] == [4.0, 0.0]
    assert finding.data["tokens_per_second"] == 120.0


@pytest.mark.parametrize("texts", [[[DRY], [WARM]], [[WARM], [WARM]], [[DRY], [DRY]]])
def test_answers_that_do_not_follow_alpha_are_wrong(texts: list[list[str]]) -> None:
    finding = judge_guidance(OBJECTIVES, texts, finite=True, speed=120.0)
    assert finding.status == "failed"
    assert finding.found.startswith("answers do not follow α: warmth")
    assert finding.hint is not None


def test_log_probabilities_that_are_not_finite_are_wrong() -> None:
    finding = judge_guidance(OBJECTIVES, [[WARM], [DRY]], finite=False, speed=120.0)
    assert finding.status == "failed"
    assert finding.found.startswith("log-probabilities are not finite")


def test_finite_log_probabilities_are_told_from_others() -> None:
    """One broken weight is enough: each token's log-probability depends on all logits."""
    import mlx.core as mx
    from tiny import tiny_guided

    from parm_mlx.guidance.prompts import PromptTokens
    from parm_mlx.guidance.requests import Answer, Request
    from parm_mlx.guidance.sampling import Sampling

    model = tiny_guided()
    request = Request(PromptTokens([1, 2], [1, 2]), (0.5, 0.5), Sampling())
    answer = Answer(0, "", [3, 4], "length")
    assert doctor.is_finite(model, request, answer)
    model.base.lm_head.weight[0, 0] = mx.nan
    assert not doctor.is_finite(model, request, answer)


def test_a_missing_blas_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.parm_mlx, "FAST_BLAS", False)
    finding = doctor.look_at_blas()
    assert finding.status == "warning"
    assert finding.hint is not None
    assert "libopenblas0-pthread" in finding.hint
    monkeypatch.setattr(doctor.parm_mlx, "FAST_BLAS", True)
    assert doctor.look_at_blas().status == "ok"


def test_a_mac_without_metal_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_metal", lambda: False)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    assert doctor.look_at_device().status == "ok"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    finding = doctor.look_at_device()
    assert finding.status == "warning"
    assert finding.hint is not None


def test_the_memory_of_a_mac_is_what_metal_may_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_metal", lambda: True)
    monkeypatch.setattr(doctor, "physical_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(doctor, "usable_memory", lambda: 12 * 10**9)
    finding = doctor.look_at_memory()
    assert finding.found == "16.0 GB; Metal's wired limit is 12.0 GB"
    assert finding.data == {"memory_bytes": 16 * 10**9, "usable_bytes": 12 * 10**9}
