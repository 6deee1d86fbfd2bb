from dataclasses import replace
from pathlib import Path

import pytest

from parm_mlx.cards import Card
from parm_mlx.diagnostics import doctor
from parm_mlx.diagnostics.doctor import Check, judge_guidance, run_check, without_home
from parm_mlx.errors import ModelError

WARM, DRY = "Good luck, my friend! I am delighted, well done.", "Stir flour, yeast, water, salt; bake 40 minutes."
OBJECTIVES = ("warmth", "focus")


def test_answers_that_follow_alpha_are_ok() -> None:
    """Four warm expressions against none; in the dry answer all words but one number inform or count."""
    check = judge_guidance(OBJECTIVES, [[WARM, WARM], [DRY, DRY]], finite=True, speed=120.0)
    assert (check.status, check.hint) == ("ok", None)
    assert check.found.startswith("warmth 0.0 → 4.0, focus ")
    assert check.found.endswith("as their weight goes 0 → 1; 120 tokens/s")
    assert check.data["scores"]["warmth"] == [4.0, 0.0]
    assert check.data["tokens_per_second"] == 120.0


@pytest.mark.parametrize("texts", [[[DRY], [WARM]], [[WARM], [WARM]], [[DRY], [DRY]]])
def test_answers_that_do_not_follow_alpha_are_wrong(texts: list[list[str]]) -> None:
    check = judge_guidance(OBJECTIVES, texts, finite=True, speed=120.0)
    assert check.status == "failed"
    assert check.found.startswith("answers do not follow α: warmth")
    assert check.hint is not None


def test_log_probabilities_that_are_not_finite_are_wrong() -> None:
    check = judge_guidance(OBJECTIVES, [[WARM], [DRY]], finite=False, speed=120.0)
    assert check.status == "failed"
    assert check.found.startswith("log-probabilities are not finite")


def test_finite_log_probabilities_are_told_from_others() -> None:
    """One broken weight is enough: each token's log-probability depends on all logits."""
    import mlx.core as mx
    from tiny import tiny_guided

    from parm_mlx.guidance.generate import Answer
    from parm_mlx.guidance.prompts import PromptTokens
    from parm_mlx.guidance.sampling import Request, Sampling

    model = tiny_guided()
    request = Request(PromptTokens([1, 2], [1, 2]), (0.5, 0.5), Sampling())
    answer = Answer(0, "", [3, 4], "length")
    assert doctor.is_finite(model, request, answer)
    model.base.lm_head.weight[0, 0] = mx.nan
    assert not doctor.is_finite(model, request, answer)


def test_a_missing_blas_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.parm_mlx, "FAST_BLAS", False)
    check = doctor.check_blas()
    assert check.status == "warning"
    assert check.hint is not None
    assert "libopenblas0-pthread" in check.hint
    monkeypatch.setattr(doctor.parm_mlx, "FAST_BLAS", True)
    assert doctor.check_blas().status == "ok"


def test_a_mac_without_metal_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_metal", lambda: False)
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    assert doctor.check_device().status == "ok"
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    check = doctor.check_device()
    assert check.status == "warning"
    assert check.hint is not None


def test_the_memory_of_a_mac_is_what_metal_may_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_metal", lambda: True)
    monkeypatch.setattr(doctor, "physical_memory", lambda: 16 * 10**9)
    monkeypatch.setattr(doctor, "usable_memory", lambda: 12 * 10**9)
    check = doctor.check_memory()
    assert check.found == "16.0 GB; Metal's wired limit is 12.0 GB"
    assert check.data == {"memory_bytes": 16 * 10**9, "usable_bytes": 12 * 10**9}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Card:
    """A machine that computes on an NVIDIA card, as far as the checks can see."""
    found = Card("NVIDIA L4", 24 * 10**9, 23 * 10**9, 300)
    monkeypatch.setattr(doctor, "gpu_backend", lambda: "CUDA")
    monkeypatch.setattr(doctor, "card", lambda: found)
    monkeypatch.setattr(doctor, "device_name", lambda: "NVIDIA L4 (CUDA)")
    monkeypatch.setattr(doctor, "physical_memory", lambda: 64 * 10**9)
    return found


def test_a_card_is_named_with_its_memory_and_bandwidth(cuda: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    check = doctor.check_device()
    assert (check.status, check.found) == ("ok", "NVIDIA L4 (CUDA), 24.0 GB, 300 GB/s")
    assert check.data["bandwidth_gb_per_s"] == 300
    assert doctor.check_memory().found == "64.0 GB; the card has 24.0 GB, of which 23.0 GB are free"
    monkeypatch.setattr(doctor, "card", lambda: replace(cuda, bandwidth=None))
    assert doctor.check_device().found == "NVIDIA L4 (CUDA), 24.0 GB, bandwidth unknown"


def test_cuda_without_a_card_is_a_failure(cuda: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "card", lambda: None)
    check = doctor.check_device()
    assert (check.status, check.found, check.hint) == ("failed", doctor.NO_CARD, doctor.NO_CARD_HINT)


def test_first_runs_compile_and_the_folder_is_named(
    cuda: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path))
    (check,) = doctor.check_compiled()
    assert check.found == f"first runs compile, quantised models for minutes; MLX keeps what it compiles in {tmp_path}"
    assert check.hint is None
    monkeypatch.delenv("MLX_PTX_CACHE_DIR")
    (check,) = doctor.check_compiled()
    assert check.status == "ok"
    assert "MLX_PTX_CACHE_DIR" in str(check.hint)
    monkeypatch.setattr(doctor, "gpu_backend", lambda: "Metal")
    assert doctor.check_compiled() == []


def test_an_error_is_a_check_with_its_hint() -> None:
    def failing() -> list[Check]:
        raise ModelError("base holds no tokenizer", hint="convert it")

    assert run_check("model", failing) == [Check("model", "failed", "base holds no tokenizer", "convert it")]


def test_what_was_not_foreseen_is_a_check_too() -> None:
    (check,) = run_check("memory", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert (check.status, check.found) == ("failed", "ZeroDivisionError: division by zero")
    assert check.hint is not None


def test_json_does_not_say_whose_machine_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/anna"))
    check = Check(
        "record",
        "failed",
        "/Users/anna/.cache/x is broken",
        "delete /Users/anna/.cache/x",
        {"paths": ["/Users/anna/a"]},
    )
    assert check.to_dict() == {
        "check": "record",
        "status": "failed",
        "found": "~/.cache/x is broken",
        "hint": "delete ~/.cache/x",
        "data": {"paths": ["~/a"]},
    }
    assert without_home({"a": {"b": "/Users/anna"}, "n": 1}) == {"a": {"b": "~"}, "n": 1}
