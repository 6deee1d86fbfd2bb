"""Preferences that cover the front evenly: which α comes next, and runs that choose theirs."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parm_mlx
from parm_mlx.answers.store import Key, Scores
from parm_mlx.errors import InputError, OutputError
from parm_mlx.evaluation.even import FIRST, NARROWEST, POINTS, EvenGrid, widest_gap
from parm_mlx.guidance.prompts import Prompt
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.outputs import new_directory
from parm_mlx.pblora import extend_objectives, read_adapter, save_adapter
from parm_mlx.preference import Alpha, simplex_grid

Front = Callable[[float], tuple[float, float]]
NAMES = ("warmth", "focus")


def test_the_widest_gap_by_hand() -> None:
    """Points (4, 0), (3, 0), (0, 4): chords 1 and 5, so the next α is between 1/2 and 0."""
    alphas = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)]
    assert widest_gap(alphas, [(0, 4), (4, 0), (3, 0)]) == (0.25, 0.75)
    assert widest_gap(alphas, [(0, 4), (4, 0), (1, 4)]) == (0.75, 0.25)
    assert widest_gap([*alphas, (0.25, 0.75)], [(1, 1)] * 4) == (0.75, 0.25), "all the same: the wider interval"


def test_where_answers_jump_halving_ends() -> None:
    """A front of two points: each α halves the interval with the jump, 1/2, 1/4, … 1/64; then the others come."""

    def point(alpha: Alpha) -> tuple[float, float]:
        return (1.0, 0.0) if alpha[0] > 0.3 else (0.0, 1.0)

    alphas = list(FIRST)
    for _ in range(5):
        found = widest_gap(alphas, [point(alpha) for alpha in alphas])
        assert found is not None
        alphas.append(found)
    narrow = sorted(alpha[0] for alpha in alphas)
    assert min(b - a for a, b in pairwise(narrow)) == NARROWEST
    assert widest_gap(alphas, [point(alpha) for alpha in alphas]) == (0.75, 0.25)
    assert widest_gap([(1.0, 0.0), (1 - NARROWEST, NARROWEST)], [(0, 0), (1, 1)]) is None


def chosen(front: Front, spread: tuple[float, float] = (1.0, 1.0), seeds: int = 1) -> list[Alpha]:
    """The preferences that a grid of two prompts comes to, each answered and scored as soon as it is asked for."""
    grid = EvenGrid([Prompt("p", "p"), Prompt("q", "q")], list(range(seeds)), NAMES)
    scores: dict[Key, Scores] = {}
    while True:
        alphas = grid.alphas(scores)
        jobs = [job for group in grid.jobs(alphas) for job in group]
        if all(job.key in scores for job in jobs):
            return alphas
        for job in jobs:
            off = 1 if job.prompt.id == "p" else -1  # mean as on the front, standard deviation 1 times the spread
            point = (0.0, 0.0) if job.alpha is None else front(job.alpha[0])
            scores[job.key] = {n: s * (value + off) for n, s, value in zip(NAMES, spread, point, strict=True)}


def chords(front: Front, alphas: list[Alpha]) -> np.ndarray:
    points = np.array([front(w) for w in sorted(alpha[0] for alpha in alphas)])
    return np.linalg.norm(np.diff(points, axis=0), axis=1)


@pytest.mark.parametrize("sharpness", [4.0, 8.0, 12.0])
def test_the_front_is_covered_more_evenly_than_by_equal_steps(sharpness: float) -> None:
    """A quarter of a circle that is run through within a few steps of α, along a sigmoid.

    Where α and length are proportional within a gap, halving leaves gaps of one to two times a length: a standard
    deviation of at most 0.354 of the mean (a third of them twice as long). Here they nearly are; with equal steps it
    is 0.67, 1.25 and 1.60.
    """

    def front(w: float) -> tuple[float, float]:
        angle = np.pi / 4 * (1 + np.tanh(sharpness * (w - 0.6)))
        return float(np.sin(angle)), float(np.cos(angle))

    even, equal = (chords(front, alphas) for alphas in (chosen(front), simplex_grid(2, 0.1)))
    assert len(even) == len(equal) == POINTS - 1
    assert even.max() < 0.75 * equal.max()
    assert even.std() / even.mean() < 0.4
    assert even.std() / even.mean() < 0.5 * equal.std() / equal.mean()


def test_an_even_front_gets_even_steps() -> None:
    """A straight front at constant speed: eighths, then two of the sixteenths, those with more weight on the first."""
    expected = [i / 8 for i in range(9)] + [15 / 16, 13 / 16]
    assert sorted(alpha[0] for alpha in chosen(lambda w: (w, 1 - w))) == sorted(expected)


def test_objectives_are_compared_in_units_of_the_unguided_answers() -> None:
    def front(w: float) -> tuple[float, float]:
        return w, (1 - w) ** 2

    assert chosen(front, (1000.0, 0.001), seeds=2) == chosen(front)


def test_a_reward_that_gives_all_unguided_answers_the_same() -> None:
    grid = EvenGrid([Prompt("p", "p")], [0], NAMES)
    points = {None: (3, 3), (1.0, 0.0): (0, 0), (0.5, 0.5): (0, 1), (0.0, 1.0): (0, 5)}
    scores: dict[Key, Scores] = {
        ("p", alpha, 0): dict(zip(NAMES, map(float, point), strict=True)) for alpha, point in points.items()
    }
    assert grid.alphas(scores) == [*FIRST, (0.25, 0.75)]


def test_groups_stay_when_preferences_are_added() -> None:
    grid = EvenGrid([Prompt(str(i), str(i)) for i in range(60)], [0, 1], NAMES)
    alphas = [*FIRST, (0.75, 0.25), (0.25, 0.75)]
    groups = [grid.jobs(alphas[:n]) for n in (3, 4, 5)]
    assert groups[1][: len(groups[0])] == groups[0]
    assert groups[2][: len(groups[1])] == groups[1]
    keys = [job.key for group in groups[2] for job in group]
    assert len(keys) == len(set(keys)) == 60 * 2 * 6


def evaluate(out: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"model": "bundled", "limit": 3, "grid": "even", "max_tokens": 12, "bootstrap": 5}
    return parm_mlx.evaluate(out=out, **(settings | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("even") / "run"
    evaluate(out)
    return out


def test_a_run_answers_as_many_preferences_as_a_grid_of_tenths(whole: Path) -> None:
    summary = json.loads((whole / "metrics.json").read_text())
    alphas = [point["alpha"][0] for point in summary["points"]]
    assert len(set(alphas)) == POINTS
    assert {0.0, 0.5, 1.0} <= set(alphas)
    assert alphas == sorted(alphas, reverse=True)
    assert summary["time"]["answers"] == 3 * (1 + POINTS)
    identity = json.loads((whole / "run.json").read_text())
    assert identity["settings"]["alphas"] == "even"
    assert identity["settings"]["even_by"] == {"warmth": "builtin:warmth", "focus": "builtin:focus"}
    unit = summary["normalization"]["unit"]
    grid = EvenGrid([Prompt(id, "") for id in identity["settings"]["prompts"]], [0], NAMES)
    rows = [json.loads(line) for line in (whole / "scores.jsonl").read_text().splitlines()]
    scores = {(row["id"], row["alpha"] and tuple(row["alpha"]), row["seed"]): row["scores"] for row in rows}
    assert [alpha[0] for alpha in sorted(grid.alphas(scores), reverse=True)] == alphas
    assert set(unit) == set(NAMES)


@pytest.mark.parametrize(
    ("answers", "scored"), [(2, 0), (11, 0), (12, 5), (12, 12), (14, 12), (18, 16), (23, 21), (36, 35)]
)
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path, answers: int, scored: int
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".parm-mlx", "run.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    for name, lines in (("results.jsonl", answers), ("scores.jsonl", scored)):
        (out / name).write_bytes(b"".join((whole / name).read_bytes().splitlines(keepends=True)[:lines]))
    notes: list[str] = []
    evaluate(out, note=notes.append)
    for name in ("results.jsonl", "scores.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert f"{answers} of 36 answers were there already" in notes


def test_answers_stay_where_their_scores_are_gone(whole: Path, tmp_path: Path) -> None:
    """Without scores, the first preferences alone are known to be wanted; the other answers wait for theirs."""
    out = tmp_path / "run"
    out.mkdir()
    for name in (".parm-mlx", "run.json", "results.jsonl"):
        (out / name).write_bytes((whole / name).read_bytes())
    notes: list[str] = []
    evaluate(out, note=notes.append)
    assert "36 of 36 answers were there already" in notes
    assert (out / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()


def test_other_rewards_of_the_objectives_are_another_run(whole: Path) -> None:
    with pytest.raises(OutputError, match=r"holds another run \(even_by\.focus: "):
        evaluate(whole, rewards={"warmth": "warmth", "focus": "brevity"})
    summary = evaluate(whole, rewards={"warmth": "warmth", "focus": "focus", "length": "detail"})
    assert len(summary["points"]) == POINTS


def test_three_objectives_are_refused_in_one_line(tmp_path: Path) -> None:
    with new_directory(tmp_path / "parm") as partial:
        save_adapter(partial, *extend_objectives(*read_adapter(BUNDLED_PARM), ["detail"]))
    with pytest.raises(InputError, match="--grid even is for two objectives, and these are warmth, focus, detail"):
        evaluate(tmp_path / "run", parm=tmp_path / "parm", guide_model=BUNDLED_BASE, prompts=["How?"])
    assert not (tmp_path / "run").exists()
