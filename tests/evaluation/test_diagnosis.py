"""Each sign of failure is found where it is, and not found where it is not."""

from collections.abc import Sequence
from typing import Any

import pytest
from evaluation.made_up import made_up_run

from parm_mlx.evaluation.diagnosis import diagnose
from parm_mlx.evaluation.summary import summarise

NAMES = [
    "no effect",
    "clustered front",
    "conditioning failed",
    "reversed objective",
    "worse than the base",
    "guidance cost",
    "cut answers",
    "few prompts",
]


def interval(value: float, width: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def healthy(grid: int = 5, objectives: Sequence[str] = ("warmth", "focus"), **changes: Any) -> dict[str, Any]:
    """A summary in which nothing is wrong."""

    def point(alpha: list[float] | None, score: float) -> dict[str, Any]:
        scores = {name: {"mean": score, "low": score - 0.1, "high": score + 0.1} for name in objectives}
        return {"alpha": alpha, "answers": 24, "ended": 1.0, "tokens": 20.0, "scores": scores, "raw": {}}

    alphas = [[1 - i / max(grid - 1, 1), i / max(grid - 1, 1)] for i in range(grid)]
    return {
        "objectives": list(objectives),
        "prompts": 24,
        "normalization": {"spread": dict.fromkeys(objectives, 1.0)},
        "unguided": point(None, 0.0),
        "points": [point(alpha, 1.0) for alpha in alphas],
        "hv": interval(9.0, 0.5),
        "hv_unguided": 4.0,
        "mip": interval(1.0, 0.2),
        "mip_gain": interval(0.4, 0.1),
        "spearman": {name: interval(0.9, 0.05) for name in objectives},
        "corner_difference": {name: interval(1.5, 0.2) for name in objectives},
        "front": {"clusters": [[0, 1]], "jumps": []},
        "time": {"base_token_ms": 10.0, "guide_token_ms": 4.0, "guided_token_ms": 14.2},
        **changes,
    }


def finding(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    (found,) = [finding for finding in diagnose(summary) if finding["name"] == name]
    return found


def test_nothing_is_found_in_a_healthy_run() -> None:
    found = diagnose(healthy())
    assert [finding["name"] for finding in found] == NAMES
    assert not any(finding["found"] for finding in found)
    assert all(finding["text"].endswith(".") for finding in found)


def test_no_effect_by_a_small_difference() -> None:
    """0.15 deviations are told from 0, and small."""
    differences = {"warmth": interval(0.15, 0.05), "focus": interval(1.5, 0.2)}
    found = finding("no effect", healthy(corner_difference=differences))
    assert found["found"]
    assert (found["value"], found["threshold"]) == (0.15, 0.2)
    assert "warmth 0.15 [0.1, 0.2]" in found["text"]
    assert "differs by focus" not in found["text"]
    raw = healthy(corner_difference=differences, normalization={"spread": {"warmth": 0.5, "focus": 1.0}})
    assert not finding("no effect", raw)["found"], "0.15 is 0.3 deviations of 0.5"


def test_no_effect_by_an_interval_over_zero() -> None:
    both = {"warmth": interval(0.9, 1.0), "focus": interval(0.5, 0.6)}
    found = finding("no effect", healthy(corner_difference=both))
    assert found["found"]
    assert "on warmth and focus" in found["text"]


def test_a_reversed_effect_is_an_effect() -> None:
    differences = {"warmth": interval(-1.5, 0.2), "focus": interval(1.5, 0.2)}
    assert not finding("no effect", healthy(corner_difference=differences))["found"]


def test_one_objective_differs_from_the_base() -> None:
    one = healthy(1, ["warmth"])
    assert "with the guide and without: warmth 1.5" in finding("no effect", one)["text"]
    one["corner_difference"] = {"warmth": interval(0.0, 0.1)}
    assert finding("no effect", one)["found"]


def test_a_clustered_front() -> None:
    found = finding("clustered front", healthy(front={"clusters": [[0, 1], [2, 3, 4]], "jumps": []}))
    assert found["found"]
    assert found["value"] == pytest.approx(0.6)
    assert "3 of 5 preferences, from (0.5, 0.5) to (0, 1)" in found["text"]
    half = {"clusters": [[0, 1, 2], [3, 4, 5]], "jumps": []}
    assert not finding("clustered front", healthy(6, front=half))["found"]
    assert not finding("clustered front", healthy(front={"clusters": [], "jumps": []}))["found"]


def test_small_grids_are_not_looked_at_for_clusters() -> None:
    found = finding("clustered front", healthy(4, front={"clusters": [[0, 1, 2, 3]], "jumps": []}))
    assert not found["found"]
    assert found["value"] is None
    assert "too few" in found["text"]


def test_conditioning_that_failed() -> None:
    """The hypervolume is 2.25 times that of the base, the MIP may be that of the mean point."""
    found = finding("conditioning failed", healthy(mip_gain=interval(0.02, 0.05)))
    assert found["found"]
    assert "2.25 times" in found["text"]
    assert found["value"] == pytest.approx(-0.03)
    assert not finding("conditioning failed", healthy(mip_gain=interval(0.02, 0.01)))["found"]


def test_a_low_mip_with_a_low_hypervolume_is_another_failure() -> None:
    """1.1 times 4 is 4.4."""
    low = healthy(mip_gain=interval(0.0, 0.05), hv=interval(4.3, 0.1))
    assert not finding("conditioning failed", low)["found"]
    assert finding("conditioning failed", healthy(mip_gain=interval(0.0, 0.05), hv=interval(4.5, 0.1)))["found"]


def test_a_base_below_the_reference_has_no_hypervolume() -> None:
    assert finding("conditioning failed", healthy(mip_gain=interval(0.0, 0.1), hv_unguided=0.0))["found"]
    nothing = healthy(mip_gain=interval(0.0, 0.1), hv_unguided=0.0, hv=interval(0.0))
    assert not finding("conditioning failed", nothing)["found"]


def test_a_reversed_objective() -> None:
    rho = {"warmth": interval(0.9, 0.05), "focus": interval(-0.8, 0.1)}
    found = finding("reversed objective", healthy(spearman=rho))
    assert found["found"]
    assert found["value"] == pytest.approx(-0.7)
    assert "focus falls as its weight rises (Spearman focus −0.8 [−0.9, −0.7])" in found["text"]
    rho["focus"] = interval(-0.5, 0.6)
    assert not finding("reversed objective", healthy(spearman=rho))["found"], "may be chance"


def test_worse_than_the_base() -> None:
    """3 of 5 points are below it in both objectives, one in one alone."""
    summary = healthy()
    for point in summary["points"][:3]:
        point["scores"] = {name: {"mean": -0.5, "low": -0.6, "high": -0.4} for name in ("warmth", "focus")}
    summary["points"][3]["scores"]["warmth"] = {"mean": -0.5, "low": -0.6, "high": -0.4}
    found = finding("worse than the base", summary)
    assert found["found"]
    assert found["value"] == pytest.approx(0.6)
    summary["points"][0]["scores"]["warmth"]["high"] = 0.1
    assert not finding("worse than the base", summary)["found"]


def test_guidance_that_costs_too_much() -> None:
    """10 + 4 ms; 1.1 times that is 15.4."""
    time = {"base_token_ms": 10.0, "guide_token_ms": 4.0, "guided_token_ms": 15.5}
    found = finding("guidance cost", healthy(time=time))
    assert found["found"]
    assert found["value"] == pytest.approx(15.5 / 14)
    assert "15.5 ms, 1.55 times one of the base alone (10.0 ms) and 1.11 times the 14.0 ms" in found["text"]
    assert not finding("guidance cost", healthy(time={**time, "guided_token_ms": 15.3}))["found"]


def test_an_adapter_that_is_expensive_itself() -> None:
    """A guided token takes as long as the passes of base and guide, 10 + 20 ms; the backbone takes 4 of the 20 ms.

    1.5 times the plain 10 + 4 ms is 21.
    """
    time = {"base_token_ms": 10.0, "guide_token_ms": 20.0, "backbone_token_ms": 4.0, "guided_token_ms": 30.0}
    found = finding("guidance cost", healthy(time=time))
    assert found["found"]
    assert (found["value"], found["threshold"]) == (pytest.approx(30 / 14), 1.5)
    assert "3.00 times one of the base alone" in found["text"]
    assert "over 1.5 times the base and the plain backbone" in found["text"]
    assert not finding("guidance cost", healthy(time={**time, "guided_token_ms": 20.9}))["found"]


def test_a_shared_pass_costs_no_more_than_two_plain_ones() -> None:
    """1.1 times 10 + 10 ms is 22."""
    time = {"base_token_ms": 10.0, "guide_token_ms": 30.0, "backbone_token_ms": 10.0, "shared": 1.0}
    assert finding("guidance cost", healthy(time={**time, "guided_token_ms": 22.5}))["found"]
    assert not finding("guidance cost", healthy(time={**time, "guided_token_ms": 21.5}))["found"]


def test_without_the_backbone_the_base_alone_is_compared() -> None:
    time = {"base_token_ms": 10.0, "guide_token_ms": 25.0, "guided_token_ms": 30.5}
    assert finding("guidance cost", healthy(time=time))["threshold"] == 3.0
    assert not finding("guidance cost", healthy(time={**time, "guided_token_ms": 29.5}))["found"]


@pytest.mark.parametrize(
    ("how", "said", "unsaid"),
    [
        ({"same_weights": 1.0}, "can share one pass (leave out --share off)", "a smaller guide"),
        ({"shared": 1.0}, "answers in a batch", "--speculation auto"),
        ({"drafted": 1.0}, "a guide on the base's own weights shares its pass", "--speculation auto"),
        ({}, "answers in a batch", "leave out --share off"),
    ],
)
def test_what_would_cost_less_is_said(how: dict[str, float], said: str, unsaid: str) -> None:
    time = {"base_token_ms": 10.0, "guide_token_ms": 4.0, "guided_token_ms": 20.0, **how}
    text = finding("guidance cost", healthy(time=time))["text"]
    assert said in text
    assert unsaid not in text


@pytest.mark.parametrize("time", [{}, {"base_token_ms": 10.0, "guided_token_ms": 99.0}, {"guided_token_ms": 0.0}])
def test_a_cost_that_was_not_measured(time: dict[str, float]) -> None:
    found = finding("guidance cost", healthy(time=time))
    assert not found["found"]
    assert found["value"] is None
    assert "not measured" in found["text"]


def test_cut_answers() -> None:
    """0.6 of the answers at one of 5 points, and none unguided: 0.6 / 6 = 0.1 is let pass, a little more is not."""
    summary = healthy()
    summary["points"][0]["ended"] = 0.41
    assert not finding("cut answers", summary)["found"]
    summary["unguided"]["ended"] = 0.9
    found = finding("cut answers", summary)
    assert found["found"]
    assert "--max-tokens" in found["text"]
    assert found["value"] == pytest.approx(0.69 / 6)


def test_few_prompts() -> None:
    assert finding("few prompts", healthy(prompts=19))["found"]
    assert not finding("few prompts", healthy(prompts=20))["found"]
    assert "no confidence intervals" in finding("few prompts", healthy(prompts=1))["text"]


def test_one_preference_shows_no_effect_and_no_failure() -> None:
    one = healthy(1, corner_difference={"warmth": interval(0), "focus": interval(0)}, mip_gain=interval(0))
    for name in ("no effect", "conditioning failed"):
        assert not finding(name, one)["found"]
        assert finding(name, one)["value"] is None


def found_in(**made_up: Any) -> set[str]:
    return {finding["name"] for finding in summarise(made_up_run(2, 0.1, **made_up))["diagnosis"] if finding["found"]}


def test_runs_that_fail_in_a_known_way() -> None:
    """Made-up runs end to end: as it should be, without effect, turned around, and on too few prompts."""
    assert found_in() == set()
    assert found_in(effect=0.0) == {"no effect"}
    assert found_in(effect=0.0, noise=0.0) == {"no effect", "clustered front"}
    assert found_in(effect=-1.0) >= {"reversed objective"}
    assert found_in(prompts=10) == {"few prompts"}


def test_scores_that_are_not_normalised_are_judged_alike() -> None:
    for effect in (1.0, 0.0):
        run = made_up_run(2, 0.1, effect=effect)
        as_they_are, normalised = summarise(run, normalize="none")["diagnosis"], summarise(run)["diagnosis"]
        effects = [[(f["name"], f["found"]) for f in found[:2]] for found in (as_they_are, normalised)]
        assert effects[0] == effects[1]
