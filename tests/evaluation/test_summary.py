import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from evaluation.made_up import FIXTURES, made_up_run, samples

from parm_mlx.answers.store import Result
from parm_mlx.errors import InputError
from parm_mlx.evaluation.metrics import is_constant
from parm_mlx.evaluation.summary import Run, compare, summarise
from parm_mlx.preference import Alpha

ALPHAS: list[Alpha] = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
POINTS = {(1.0, 0.0): (2.0, -1.0), (0.5, 0.5): (1.0, 1.0), (0.0, 1.0): (0.0, 3.0)}


def small_run(name: str = "small", **changes: Any) -> Run:
    """Two prompts. In raw scores the unguided answers have mean (10, 100) and standard deviation (2, 5); at α the
    answers to both lie at POINTS[α] deviations from it, shifted by −1 and +1 for the one and the other prompt.
    """
    results, scores = [], {}
    for prompt, shift in (("a", -1.0), ("b", 1.0)):
        for alpha in [None, *ALPHAS]:
            result = Result(prompt, "?", alpha, 0, "!", 4 if alpha is None else 10, "stop" if shift < 0 else "length")
            first, second = POINTS.get(alpha, (0.0, 0.0)) if alpha else (0.0, 0.0)
            results.append(result)
            scores[result.key] = {"warmth": 10 + 2 * (first + shift), "focus": 100 + 5 * (second + shift)}
    rewards = {"warmth": "builtin:warmth", "focus": "builtin:focus"}
    return replace(Run(name, ("warmth", "focus"), rewards, results, scores), **changes)


def test_a_run_by_hand() -> None:
    """Points (2, −1), (1, 1) and (0, 3) above (−2, −2): 2·5 + 1·3 + 1·1 = 14. MIP: (2 + 1 + 3) / 3."""
    found = summarise(small_run())
    assert found["kind"] == "run"
    assert found["prompts"] == 2
    assert found["seeds"] == [0]
    assert found["normalization"]["centre"] == {"warmth": 10, "focus": 100}
    assert found["normalization"]["unit"] == {"warmth": 2, "focus": 5}
    assert "2 unguided answers" in found["normalization"]["text"]
    assert found["reference_point"] == {"warmth": -2, "focus": -2}
    assert found["reference_text"] == "-2 for each objective"
    assert [tuple(point["alpha"]) for point in found["points"]] == ALPHAS
    assert [point["scores"]["focus"]["mean"] for point in found["points"]] == [-1, 1, 3]
    assert found["points"][0]["raw"] == {"warmth": 14, "focus": 95}
    assert found["unguided"]["scores"]["warmth"] == {"mean": 0, "low": -1, "high": 1}
    assert found["unguided"]["alpha"] is None
    assert [found["unguided"]["tokens"], found["points"][0]["tokens"], found["points"][0]["ended"]] == [4, 10, 0.5]
    assert found["points"][0]["answers"] == 2
    assert found["hv"]["value"] == pytest.approx(14)
    assert found["hv_unguided"] == pytest.approx(4)
    assert found["hv_text"] == "exact"
    assert found["mip"]["value"] == pytest.approx(2)
    assert found["mip_gain"]["value"] == pytest.approx(1)
    assert found["spearman"]["warmth"] == {"value": 1, "low": 1, "high": 1}
    assert found["corner_difference"]["focus"] == pytest.approx({"value": 4, "low": 4, "high": 4})
    assert found["front"]["indices"] == [0, 1, 2]
    assert found["front"]["spacing"] == 0
    assert found["front"]["clusters"] == []
    assert found["front"]["jumps"] == []


def test_intervals_are_over_prompts() -> None:
    """Both prompts are drawn half of the time, one of them twice in a quarter each: all points shift by −1, 0 or 1.

    MIP: 2 and the shift. HV above (−2, −2): 14. Shifted up, (3, 0) (2, 2) (1, 4): columns 3, 1 and 1 wide, 6, 4 and 2
    high, 18 + 4 + 2. Shifted down, (1, −2) (0, 0) (−1, 2): 1·4 + 1·2.
    """
    found = summarise(small_run())
    assert found["mip"] == pytest.approx({"value": 2, "low": 1, "high": 3})
    assert found["hv"] == pytest.approx({"value": 14, "low": 6, "high": 24})
    assert found["mip_gain"] == pytest.approx({"value": 1, "low": 1, "high": 1})


def test_the_summary_is_json_and_repeats() -> None:
    run = made_up_run(3, 0.5, prompts=12)
    assert json.dumps(summarise(run), allow_nan=False) == json.dumps(summarise(run), allow_nan=False)
    other = summarise(run, seed=1)
    assert other["hv"]["value"] == summarise(run)["hv"]["value"]
    assert other["hv"]["low"] != summarise(run)["hv"]["low"]
    shuffled = replace(run, results=list(reversed(run.results)))
    assert summarise(shuffled) == summarise(run), "the order of answers does not count"


def test_seeds_are_averaged_in_each_prompt() -> None:
    """A second seed with scores 4 lower and 4 higher for the two prompts: means and intervals of their averages."""
    run = small_run()
    more = [replace(result, seed=1) for result in run.results]
    scores = dict(run.scores) | {
        r.key: {name: value + (4 if r.id == "b" else -4) for name, value in run.scores[r.id, r.alpha, 0].items()}
        for r in more
    }
    found = summarise(replace(run, results=[*run.results, *more], scores=scores), normalize="none")
    assert found["seeds"] == [0, 1]
    assert found["points"][0]["answers"] == 4
    assert found["unguided"]["raw"] == {"warmth": 10, "focus": 100}
    assert found["unguided"]["scores"]["warmth"] == {"mean": 10, "low": 6, "high": 14}, "8 and 4, 12 and 16"


def test_scores_as_they_are() -> None:
    """Points (14, 95) (12, 105) (10, 115) and the base (10, 100): a tenth of 4 and 20 below the lowest."""
    found = summarise(small_run(), normalize="none")
    assert found["normalization"]["kind"] == "none"
    assert found["normalization"]["unit"] == {"warmth": 1, "focus": 1}
    assert found["normalization"]["spread"] == {"warmth": 2, "focus": 5}
    assert found["reference_point"] == pytest.approx({"warmth": 9.6, "focus": 93})
    assert "tenth" in found["reference_text"]
    assert found["hv"]["value"] == pytest.approx(4.4 * 2 + 2.4 * 10 + 0.4 * 10)


def test_the_reference_point_goes_below_every_point() -> None:
    run = small_run()
    scores = {key: dict(values) for key, values in run.scores.items()}
    for prompt in "ab":
        scores[prompt, (1.0, 0.0), 0]["focus"] -= 5  # −2 deviations in the mean
        scores[prompt, (0.0, 1.0), 0]["warmth"] -= 4.2  # −2.1
    found = summarise(replace(run, scores=scores))
    assert found["reference_point"] == {"warmth": -2.5, "focus": -2.5}
    assert "0.5 below" in found["reference_text"]


def test_a_given_reference_point() -> None:
    """Above (0, 0): (2, −1) adds nothing, (0, 3) touches; (1, 1) is left."""
    found = summarise(small_run(), reference=[0, 0])
    assert found["reference_text"] == "given"
    assert found["hv"]["value"] == pytest.approx(1)
    assert found["hv_unguided"] == 0
    assert found["reference_point"] == {"warmth": 0, "focus": 0}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([1, 1], "no point dominates the reference point 1, 1"),
        ([0], "the reference point 0 has 1 number(s), the objectives are warmth, focus"),
        ([0, float("nan")], "the reference point 0, nan must be finite"),
    ],
)
def test_reference_points_that_do_not_do(reference: list[float], message: str) -> None:
    with pytest.raises(InputError) as error:
        summarise(small_run(), reference=reference)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unguided_answers_that_all_score_the_same() -> None:
    run = small_run()
    scores = {
        key: {**values, "focus": 0.1 if key[1] is None else values["focus"]} for key, values in run.scores.items()
    }
    found = summarise(replace(run, scores=scores))
    assert found["normalization"]["unit"] == {"warmth": 2, "focus": 1}
    assert found["normalization"]["spread"]["focus"] == 0
    assert "all score the same in focus; the unit there is 1" in found["normalization"]["text"]
    json.dumps(found, allow_nan=False)


def test_one_prompt_has_no_intervals() -> None:
    run = small_run()
    found = summarise(replace(run, results=[result for result in run.results if result.id == "a"]))
    for value in (found["hv"], found["mip"], found["spearman"]["focus"], found["corner_difference"]["warmth"]):
        assert value["low"] == pytest.approx(value["value"])
        assert value["high"] == pytest.approx(value["value"])
    assert "one prompt" in found["confidence"]["text"]
    assert "one prompt" not in summarise(run)["confidence"]["text"]


def test_one_objective() -> None:
    """α is 1 alone: HV and MIP are the score, and the corner difference is that to the base."""
    run = made_up_run(1, 1.0, prompts=30)
    found = summarise(run)
    mean = found["points"][0]["scores"]["warmth"]["mean"]
    assert found["mip"]["value"] == pytest.approx(mean)
    assert found["hv"]["value"] == pytest.approx(mean + 2)
    assert found["corner_difference"]["warmth"]["value"] == pytest.approx(mean)
    assert found["spearman"]["warmth"] == {"value": 0, "low": 0, "high": 0}
    assert found["front"]["indices"] == [0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("k", [4, 9, 12])
def test_many_objectives(k: int) -> None:
    found = summarise(made_up_run(k, 0.5 if k < 12 else 1.0, prompts=6), samples=20)
    assert len(found["points"]) == (k * (k + 1) // 2 if k < 12 else k)
    assert found["hv"]["low"] <= found["hv"]["value"] <= found["hv"]["high"]
    assert ("approximated from 16384" in found["hv_text"]) == (k == 9), "45 points of 9 objectives, 12 of 12"
    assert found["mip_gain"]["low"] > 0
    json.dumps(found, allow_nan=False)


def test_rewards_beside_the_objectives() -> None:
    found = summarise(made_up_run(2, 0.5, extra=True))
    assert found["objectives"] == ["warmth", "focus"]
    assert set(found["points"][0]["scores"]) == {"warmth", "focus", "length"}
    assert set(found["spearman"]) == {"warmth", "focus"}
    assert found["unguided"]["scores"]["length"]["mean"] == pytest.approx(0)
    alone = made_up_run(2, 0.5, extra=True)
    alone = replace(alone, rewards={name: alone.rewards[name] for name in ("warmth", "focus")})
    assert summarise(alone)["hv"] == found["hv"]


def test_preferences_that_change_nothing_have_no_order() -> None:
    """The same answers at all 11 preferences: rounding must not look like a trend."""
    run = made_up_run(2, 0.1, prompts=7)
    scores = {key: run.scores[key[0], None, key[2]] for key in run.scores}
    found = summarise(replace(run, scores=scores))
    for value in (*found["spearman"].values(), *found["corner_difference"].values(), found["mip_gain"]):
        assert [value["value"], value["low"], value["high"]] == pytest.approx([0, 0, 0], abs=1e-12)
    assert found["front"]["clusters"] == [list(range(11))]
    assert found["front"]["jumps"] == []


def test_time() -> None:
    assert summarise(small_run())["time"] == {}
    timing = {"generating_s": 30.0, "scoring_s": 10.0, "tokens": 99}
    assert summarise(small_run(timing=timing))["time"] == {**timing, "scoring_share": 0.25}
    nothing = {"generating_s": 0.0, "scoring_s": 0.0}
    assert summarise(small_run(timing=nothing))["time"]["scoring_share"] == 0


def test_incomplete_runs_are_refused() -> None:
    run = small_run()
    keep = [r for r in run.results if (r.id, r.alpha) != ("b", (0.5, 0.5))]
    with pytest.raises(InputError, match=r"1 of 8 answers are missing, for instance to 'b' at warmth=0.5 focus=0.5"):
        summarise(replace(run, results=keep))
    with pytest.raises(InputError, match=r"2 of 8 answers are missing, for instance to 'a' unguided, seed 0"):
        summarise(replace(run, results=[r for r in run.results if r.alpha is not None]))
    with pytest.raises(InputError, match="no guided answer"):
        summarise(replace(run, results=[r for r in run.results if r.alpha is None]))
    with pytest.raises(InputError, match="'a' unguided, seed 0 is there twice"):
        summarise(replace(run, results=[*run.results, replace(run.results[0], text="again")]))
    with pytest.raises(InputError, match="no guided answer"):
        summarise(replace(run, results=[]))


def test_missing_scores_are_refused() -> None:
    run = small_run()
    key = ("b", (0.5, 0.5), 0)
    with pytest.raises(InputError, match=r"1 of 8 scores are missing, for instance to 'b' at warmth=0.5 focus=0.5"):
        summarise(replace(run, scores={k: v for k, v in run.scores.items() if k != key}))
    with pytest.raises(InputError, match=r"'b' at .* has no score by the reward 'focus'"):
        summarise(replace(run, scores={**run.scores, key: {"warmth": 1.0}}))
    with pytest.raises(InputError, match="has the score nan by the reward 'focus'"):
        summarise(replace(run, scores={**run.scores, key: {"warmth": 1.0, "focus": float("nan")}}))
    with pytest.raises(InputError, match="no reward for the objective 'focus'"):
        summarise(replace(run, rewards={"warmth": "builtin:warmth"}))


def test_a_run_beside_itself() -> None:
    run = made_up_run(2, 0.25, prompts=8)
    alone, both = summarise(run), compare([run, replace(run, name="again")])
    assert both["kind"] == "comparison"
    assert both["reference_point"] == alone["reference_point"]
    assert both["normalization"]["unit"] == pytest.approx(alone["normalization"]["unit"])
    for one in both["runs"]:
        assert one["hv"] == pytest.approx(alone["hv"])
        assert one["points"][1]["scores"]["warmth"] == pytest.approx(alone["points"][1]["scores"]["warmth"])
    (difference,) = both["differences"]
    assert difference["run"] == "again"
    assert difference["less"] == run.name
    assert difference["hv"] == {"value": 0, "low": 0, "high": 0}


def test_a_comparison_has_one_scale() -> None:
    """The second run's scores are 4 and 10 higher throughout, so its base too: all unguided answers together have
    mean (12, 105) and variance 2² + 2² and 5² + 5². The points differ by 4/√8 and 10/√50, both √2.
    """
    run = small_run()
    higher = {key: {"warmth": v["warmth"] + 4, "focus": v["focus"] + 10} for key, v in run.scores.items()}
    found = compare([run, small_run("higher", scores=higher)])
    assert found["normalization"]["centre"] == {"warmth": 12, "focus": 105}
    assert found["normalization"]["unit"] == pytest.approx({"warmth": 8**0.5, "focus": 50**0.5})
    assert "4 unguided answers of all 2 runs" in found["normalization"]["text"]
    first, second = found["runs"]
    assert first["normalization"] == second["normalization"] == found["normalization"]
    assert first["reference_point"] == second["reference_point"] == found["reference_point"]
    for low, high in zip(first["points"], second["points"], strict=True):
        assert high["scores"]["focus"]["mean"] - low["scores"]["focus"]["mean"] == pytest.approx(2**0.5)
    (difference,) = found["differences"]
    assert difference["mip"] == pytest.approx({"value": 2**0.5, "low": 2**0.5, "high": 2**0.5}), "paired: no spread"
    assert second["mip"]["high"] - second["mip"]["low"] > 1


def test_the_joint_reference_point_is_below_the_points_of_all_runs() -> None:
    low = made_up_run(2, 0.5, effect=-4.0, name="low")
    found = compare([made_up_run(2, 0.5), low])
    lowest = min(point["scores"]["warmth"]["mean"] for point in found["runs"][1]["points"])
    assert lowest < -2
    assert lowest - 0.5 <= found["reference_point"]["warmth"] < lowest
    assert "points of the 2 runs" in found["reference_text"]
    assert all(run["hv"]["value"] > 0 for run in found["runs"])


def test_runs_on_other_prompts_have_no_paired_difference() -> None:
    assert compare([made_up_run(2, 0.5, prompts=4), made_up_run(2, 0.5, prompts=5)])["differences"] == []


def test_only_what_is_alike_is_paired() -> None:
    """Prompts of the same ids are not the same; and a mean over other preferences is another measure."""
    run = made_up_run(2, 0.5)
    others = replace(run, results=[replace(each, prompt=f"{each.prompt}?") for each in run.results])
    assert compare([run, others])["differences"] == []
    (difference,) = compare([run, made_up_run(2, 0.25)])["differences"]
    assert difference.keys() == {"run", "less", "hv"}


def test_scores_that_differ_by_rounding_are_the_same() -> None:
    assert is_constant([[0.3, 1.0], [0.1 + 0.2, 2.0]]).tolist() == [True, False]


def test_a_reference_point_that_one_run_dominates() -> None:
    weak = made_up_run(2, 0.5, effect=0.0, name="weak", seed=3)
    found = compare([weak, made_up_run(2, 0.5, effect=3.0)], reference=[0.8, -9])
    assert found["runs"][0]["hv"]["value"] == 0
    assert found["runs"][1]["hv"]["value"] > 0


def test_runs_that_cannot_be_compared() -> None:
    run = small_run()
    with pytest.raises(InputError, match="the objectives are warmth, focus in one, focus, warmth in the other"):
        compare([run, small_run("other", objectives=("focus", "warmth"))])
    with pytest.raises(InputError, match="small and other cannot be compared: the reward 'focus' is builtin:focus in"):
        compare([run, small_run("other", rewards={**run.rewards, "focus": "my:focus"})])
    with pytest.raises(InputError, match="the reward 'detail' is not there in one, builtin:detail in the other"):
        compare([run, small_run("other", rewards={**run.rewards, "detail": "builtin:detail"})])
    with pytest.raises(InputError, match="no run"):
        compare([])


def test_the_samples_are_current() -> None:
    """``python tests/evaluation/made_up.py`` writes them."""

    def assert_equal(found: Any, stored: Any) -> None:
        if isinstance(found, dict):
            assert list(found) == list(stored)
            for name in found:
                assert_equal(found[name], stored[name])
        elif isinstance(found, list):
            assert len(found) == len(stored)
            for one, other in zip(found, stored, strict=True):
                assert_equal(one, other)
        else:
            assert found == (pytest.approx(stored, rel=1e-9, abs=1e-9) if isinstance(found, float) else stored)

    for file, content in samples().items():
        assert_equal(content, json.loads((FIXTURES / file).read_text(encoding="utf-8")))


def test_a_fine_grid_of_five_objectives() -> None:
    """495 preferences: arrays, neighbours and clusters must not grow out of hand."""
    found = summarise(made_up_run(5, 0.125, prompts=3), samples=10)
    assert len(found["points"]) == 495
    assert np.isfinite(found["hv"]["value"])
