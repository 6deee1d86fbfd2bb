"""What the experiments share, at tiny settings; their pages are made of what they measured."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from parm_mlx.pblora import PBLoRAConfig, read_adapter
from parm_mlx.pblora.layer import PBLoRALinear
from parm_mlx.rewards.registry import load_rewards
from parm_mlx.training.loss import smooth_tchebycheff

NAMES = ("adapters", "baselines", "costs", "cross_domain", "design", "initialisation", "interpolation")
NAMES += ("jokes", "many_objectives", "nonconvex", "real_preferences", "vocabularies", "weak_to_strong")


@pytest.fixture
def experiment(scripts: SimpleNamespace, work: Path, tmp_path: Path) -> Any:
    """An experiment of two steps of training and two questions, on four pairs."""
    settings = scripts.common.load_settings("interpolation")
    settings["train"] |= {"iters": 2, "batch_size": 2, "warmup": 1}
    settings["sweep"] |= {"questions": 2, "grid": 1.0, "max_tokens": 4}
    return scripts.common.Experiment("interpolation", settings, work, tmp_path / "out")


def test_own_settings_override_the_shared_ones_key_by_key(scripts: SimpleNamespace) -> None:
    shared = scripts.common.load_settings("adapters")
    own = scripts.common.load_settings("interpolation")
    assert own["sweep"]["grid"] == 0.05
    assert own["sweep"] | {"grid": shared["sweep"]["grid"]} == shared["sweep"]
    assert own["train"] == shared["train"]


def test_an_adapter_is_trained_and_swept_once(experiment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parm = experiment.adapter("tiny", 0)
    config, tensors = read_adapter(parm)
    assert config.objectives == ("warmth", "focus")
    run = experiment.run("tiny-0", [parm])
    assert "6 answers" in capsys.readouterr().out  # two questions, two corners and the base alone
    assert {result.alpha for result in run.results} == {None, (1.0, 0.0), (0.0, 1.0)}
    assert all(set(scores) == {"warmth", "focus"} for scores in run.scores.values())

    (weights,) = parm.glob("*.safetensors")
    written = weights.stat().st_mtime_ns
    assert experiment.adapter("tiny", 0) == parm
    assert weights.stat().st_mtime_ns == written
    capsys.readouterr()
    again = experiment.run("tiny-0", [parm])
    assert "answers" not in capsys.readouterr().out
    assert again.results == run.results
    other = read_adapter(experiment.adapter("tiny", 1))[1]
    assert any(not mx.array_equal(other[name], tensor) for name, tensor in tensors.items())


def test_baselines_are_made_of_the_adapters_of_one_objective(scripts: SimpleNamespace, experiment: Any) -> None:
    """At a corner a soup and MOD are one model, alone and beside the base; no adapter is trained twice."""
    baselines = scripts.baselines
    experiment.settings["seeds"], experiment.settings["train"]["iters"] = [0], 4
    experiment.settings["sweep"] |= {"grid": 0.5, "max_tokens": 12, "temp": 0.0}
    runs, numbers = scripts.comparison.sweep_all(
        experiment, baselines.SYSTEMS, baselines.parms, baselines.ALONE, baselines.LABELS
    )
    names = {folder.name for folder in (experiment.work / "adapters").iterdir() if folder.suffix != ".checkpoints"}
    assert names == {"pblora-0", "soup-0", "genarm-warmth-0", "genarm-focus-0"}
    experts, whole = numbers[baselines.MOD], numbers[baselines.PARM]
    assert [numbers[system] for system in baselines.SYSTEMS] == [whole] * 2 + [experts] * 4
    assert 0.9 < experts / whole < 1.1

    def texts(system: str, *weights: float) -> list[str]:
        return [result.text for result in runs[system][0].results if result.alpha in {(w, 1 - w) for w in weights}]

    for soup, mod in ((baselines.SOUP, baselines.MOD), (baselines.GUIDING_SOUP, baselines.GUIDING_MOD)):
        assert texts(soup, 0.0, 1.0) == texts(mod, 0.0, 1.0) != []


def test_a_page_is_made_again_of_what_was_kept(scripts: SimpleNamespace, experiment: Any) -> None:
    """The same runs and facts from the archive alone, which has the same bytes when it is made twice."""
    made: list[str] = []

    def measure() -> dict[str, int]:
        made.append("fact")
        return {"numbers": 3}

    def runs(experiment: Any) -> tuple[Any, Any]:
        parm = experiment.adapter("tiny", 0)
        return experiment.run("tiny-0", [parm]), experiment.fact("size", measure)

    first, effort = runs(experiment), experiment.effort()
    folder = experiment.work / "bases"
    assert experiment.fact("base", lambda: str(folder)) == str(folder)
    assert re.search(
        r"\nTraining took \d+ minutes and answering took \d+ minutes, beside other work \(.*\)\.\n", effort
    )
    archive = scripts.common.archive
    file = archive.of("interpolation", experiment.out)
    archive.pack(experiment.work, experiment.used, file)
    content = file.read_bytes()
    archive.pack(experiment.work, experiment.used, file)
    assert file.read_bytes() == content

    stored = scripts.common.Experiment(
        "interpolation", experiment.settings, archive.unpack(file), experiment.out, stored=True
    )
    assert (runs(stored), stored.effort()) == (first, effort)
    assert made == ["fact"]
    assert stored.fact("base", measure) == "build/experiments/bases"
    assert not (stored.work / "adapters").exists()
    with pytest.raises(SystemExit, match="no fact 'other'"):
        stored.fact("other", measure)
    with pytest.raises(SystemExit, match="without --stored"):
        archive.unpack(experiment.out / "none.tar.xz")


def test_a_page_is_its_template_with_the_parts_filled_in(experiment: Any) -> None:
    experiment.out.mkdir()
    (experiment.out / "interpolation.svg").write_text("")
    parts = {"table": "| T |", "normalization": "N", "jumps": "J", "hv": "H", "reference": "R"}
    parts |= {"smollm2": "| S |", "questions": "2", "tokens": "4"}
    experiment.publish({"value": 0.5}, **parts)
    page = (experiment.out / "interpolation.md").read_text()
    assert "| T |" in page
    assert "`python examples/experiments/interpolation.py`" in page
    assert "2 steps of 2 pairs" in page
    assert "](interpolation.svg)" in page
    assert not re.search(r"\{\w+\}", page)
    assert json.loads((experiment.out / "interpolation.json").read_text()) == {"value": 0.5}


@pytest.mark.parametrize(
    ("name", "answer", "score"),
    [
        ("questions", "Why? I see. Really?", 2),
        ("exclamations", "Oh! Fine.", 1),
        ("examples", "Use wool, for example a hat, such as mine.", 2),
        ("order", "First cut. Then fold.", 2),
        ("address", "You and your tin", 50),
        ("address", "", 0),
    ],
)
def test_own_objectives(scripts: SimpleNamespace, name: str, answer: str, score: float) -> None:
    assert getattr(scripts.objectives, name)(["?"], [answer]) == [score]


def test_twelve_objectives_can_all_be_loaded(scripts: SimpleNamespace) -> None:
    names = scripts.objectives.ALL
    assert len(set(names)) == len(names) == 12
    rewards = load_rewards([f"{name}={spec}" for name, spec in scripts.objectives.specs(names).items()])
    answers = [
        "I am glad! First cut it, then, for example, perhaps fold it because it may rust: be careful. Shall you?",
        "No.",
    ]
    for name, reward in rewards.items():
        first, second = reward(["?", "?"], answers)
        assert first != second, name


def test_preferences_are_corners_centre_and_fixed_draws(scripts: SimpleNamespace) -> None:
    alphas = scripts.many_objectives.preferences(3, 4)
    assert alphas[:4] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1 / 3, 1 / 3, 1 / 3)]
    assert len(set(alphas)) == 8
    assert all(sum(alpha) == pytest.approx(1) and min(alpha) >= 0 for alpha in alphas)
    assert scripts.many_objectives.preferences(3, 4) == alphas


def test_choosing_answers_by_hand(scripts: SimpleNamespace) -> None:
    """Two answers, one for each objective: the first is given where its objective has more weight."""
    scores = np.array([[[2.0, -1.0], [-2.0, 3.0]]])
    spearman, gain = scripts.many_objectives.chosen(scores, [(1.0, 0.0), (0.0, 1.0)])
    assert spearman == pytest.approx([1.0, 1.0])
    assert gain == pytest.approx(2.0)  # (2 + 3) / 2, less ½, what their mean (0, 1) has at both
    ranks = [(1.0, 0.0), (0.9, 0.1), (0.1, 0.9), (0.0, 1.0)]
    assert scripts.many_objectives.chosen(scores, ranks)[0] == pytest.approx([0.894427, 0.894427], abs=1e-6)


def test_recipes_say_what_depends_on_the_number_of_objectives(scripts: SimpleNamespace) -> None:
    settings = scripts.many_objectives.train_settings({"dirichlet": "1/k", "r2": 8}, 4)
    assert settings == {"dirichlet": 0.25, "r2": 8}


def test_parts_are_means_over_objectives(scripts: SimpleNamespace) -> None:
    found = {"leaning": {"x": 0.75, "y": 0.45}, "apart": 2.04}
    _, (line,) = scripts.many_objectives.parts_table({"plain": found})
    assert line == ["plain", "60.0%", "45%", "1 of 2", "2.0"]


def test_pairs_lean_towards_the_corner_that_makes_them_likelier(scripts: SimpleNamespace) -> None:
    """Own corner less the mean of the others is +3, −1.5, −1.5 for the first pair, −3, 0, +3 for the second."""
    margins = np.array([[2.0, -1.0, -1.0], [-1.0, 1.0, 3.0]])
    labels = np.array([[1, 0, 0], [1, -1, -1]])
    assert scripts.many_objectives.leaning(margins, labels) == [0.5, 0.0, 0.0]
    assert scripts.many_objectives.leaning(-margins, -labels) == [0.5, 0.0, 0.0]
    labels[1] = [-1, 0, 1]
    assert scripts.many_objectives.leaning(margins, labels) == [1.0, 1.0]


def test_what_an_added_objective_costs_by_hand(scripts: SimpleNamespace) -> None:
    corners = {"a": (4.0, 2.0, 0.1), "b": (5.0, 1.0, -0.1), "c": (3.0, 2.0, 1.1), "d": (5.0, 0.5, 0.5)}
    summaries = {
        name: {"corner_difference": {axis: {"value": value} for axis, value in zip("xyz", values, strict=True)}}
        for name, values in corners.items()
    }
    sweeps = SimpleNamespace(found=summaries, interval=lambda by_seed: scripts.intervals.over_seeds(by_seed(summaries)))
    frozen, short = ([SimpleNamespace(name=name) for name in names] for names in ("ab", "cd"))
    found = scripts.cross_domain.against(sweeps, short, frozen, ("x", "y", "z"))
    assert found["moved_by_seed"] == pytest.approx([1.0, 0.6])
    assert found["moved"]["value"] == pytest.approx(0.8)
    assert found["kept_by_seed"] == {"x": pytest.approx([75, 100]), "y": pytest.approx([100, 50])}


def test_starts_change_a_layer_and_only_within_the_block(scripts: SimpleNamespace) -> None:
    init = scripts.initialisation

    def layer(name: str) -> PBLoRALinear:
        mx.random.seed(1)
        with init.variant(*init.VARIANTS[name]):
            config = PBLoRAConfig(objectives=("x", "y"), r1=2, r2=2, scale=1.0)
            return PBLoRALinear(nn.Linear(6, 5), config)

    plain = layer("default")
    assert mx.array_equal(layer("W1, W2 × 4").w1, 4 * plain.w1)
    assert mx.array_equal(layer("W1, W2 × 0.25").w2, 0.25 * plain.w2)
    corners = mx.array([[1.0, 0.0], [0.0, 1.0]])
    assert not mx.array_equal(*plain.core(corners))
    assert mx.array_equal(*layer("rows of W2 equal").core(corners))
    assert mx.array_equal(layer("W1 = I, W2 rows = I").core(corners)[0], mx.eye(4))
    tied = layer("A and B tied")
    assert mx.array_equal(tied.a[:2], tied.a[2:])
    assert not mx.array_equal(plain.a[:2], plain.a[2:])
    assert mx.array_equal(layer("default").a, plain.a)


def test_tied_halves_get_their_mean_gradient(scripts: SimpleNamespace) -> None:
    init = scripts.initialisation
    gradients = {
        "a": mx.array([[1.0, 2.0], [3.0, 6.0]]),
        "b": mx.array([[1.0, 5.0]]),
        "w1": mx.ones((1, 1)),
        "w2": mx.ones(1),
    }
    tree = {"layers": [{"q": gradients, "other": {"a": mx.array([[1.0], [2.0]])}}]}
    changed = init._in_layers(tree, init.tied("a", "b"))["layers"][0]
    assert changed["q"]["a"].tolist() == [[2.0, 4.0], [2.0, 4.0]]
    assert changed["q"]["b"].tolist() == [[3.0, 3.0]]
    assert changed["other"]["a"].tolist() == [[1.0], [2.0]]
    frozen = init._in_layers(tree, init.frozen("w1"))["layers"][0]["q"]
    assert frozen["w1"].tolist() == [[0.0]]
    assert frozen["w2"].tolist() == [1.0]


@pytest.mark.parametrize("theta", [-1.3, -1.0, -0.2, 0.5, 1.0])
def test_constructed_losses_are_the_librarys(scripts: SimpleNamespace, theta: float) -> None:
    expected = [1e-3 + 1 - np.exp(-((theta - 1) ** 2)), 1e-3 + 1 - np.exp(-((theta + 1) ** 2))]
    assert scripts.nonconvex.losses(mx.array(theta)).tolist() == pytest.approx(expected, abs=1e-5)


def test_constructed_front_is_not_convex(scripts: SimpleNamespace) -> None:
    """No weighted sum has its minimum in the middle of the front; Tchebycheff of equal weights does."""
    theta = mx.linspace(-1, 1, 401)
    front = scripts.nonconvex.true_losses(theta)
    for weight in np.linspace(0, 1, 41):
        best = theta[mx.argmin(front @ mx.array([weight, 1 - weight], mx.float32))].item()
        assert abs(best) > 0.75
    both = mx.array([True, True])
    values = mx.stack([smooth_tchebycheff(losses, mx.array([0.5, 0.5]), 0.05, both) for losses in front])
    assert abs(theta[mx.argmin(values)].item()) < 0.01


def test_true_points_are_at_equal_distances_from_end_to_end(scripts: SimpleNamespace) -> None:
    points = scripts.nonconvex.true_points(11)
    ends = np.array(scripts.nonconvex.true_losses(mx.array([1.0, -1.0])))
    np.testing.assert_allclose(points[[0, -1]], ends, atol=1e-6)
    distances = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert distances.max() / distances.min() < 1.02


def test_recovered_points_by_hand(scripts: SimpleNamespace) -> None:
    """True points 1 apart: a solution counts for those that it is at most ½ from."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    found = np.array([[0.1, 0.3], [2.0, 0.6]])
    assert scripts.nonconvex.recovered(found, points) == [True, False, False]


def test_a_page_of_the_repository_is_that_of_its_kept_answers(repository: Path, tmp_path: Path) -> None:
    folder = repository / "examples" / "experiments"
    command = [sys.executable, str(folder / "interpolation.py"), "--stored", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    assert {file.name for file in tmp_path.iterdir()} == {f"interpolation.{kind}" for kind in ("json", "md", "png")}
    for name in ("interpolation.json", "interpolation.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_whole(scripts: SimpleNamespace, repository: Path, name: str) -> None:
    folder = repository / "examples" / "experiments"
    template = (folder / "templates" / f"{name}.md").read_text(encoding="utf-8")
    page = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert "FOUND" not in page
    assert "MEANS" not in page
    assert not re.search(r"\{\w+\}", page)
    pieces = [piece.strip() for piece in re.split(r"\{\w+\}", template)]
    assert [piece for piece in pieces if piece not in page] == []
    (picture,) = [file for kind in ("svg", "png") if (file := folder / f"{name}.{kind}").exists()]
    assert f"({picture.name})" in page
    assert picture.stat().st_size <= scripts.common.LARGEST_PICTURE
    assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_pages_say_how_they_were_made_and_what_they_show(repository: Path, name: str) -> None:
    """Command, seeds, time and machine, and at the end what is shown and what is not."""
    page = (repository / "examples" / "experiments" / f"{name}.md").read_text(encoding="utf-8")
    text, made = page.split("\n\nMade by ")
    assert made.startswith(f"`python examples/experiments/{name}.py`")
    assert "seed" in text
    assert re.search(r"took \d+ (minutes|seconds)", page)
    assert re.search(r"mlx [\d.]+, .* \(CPU\)", page)
    last = text.rsplit("\n\n", 1)[1]
    assert last.startswith("Shown ")
    assert re.search(r"\bnot\b", last)
