from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step
from tiny import tiny_guided, tiny_model

from parm_mlx.diagnostics import bench
from parm_mlx.diagnostics.bench import BatchGeneration, Case, DraftedGeneration, check_batches, measure, summarise, ways
from parm_mlx.diagnostics.plan import Plan
from parm_mlx.diagnostics.subjects import Subjects, weight_bytes
from parm_mlx.errors import InputError, RunError
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.timing import Sample

PLAIN = ["base", "guide", "guided", "shared", "one-pass"]
DRAFTED = ["guided+guide", "guided+base", "shared+guide", "shared+base", "shared+draft"]


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    guided = tiny_guided()
    return Subjects(guided, tuple(range(1, 40)), SharedModel(guided.guide), tiny_model(seed=2))


def expected_tokens(model: nn.Module, prompt: list[int], alpha: tuple[float, float], count: int) -> list[int]:
    """By mlx-lm's generate_step on the model itself."""
    cache = model.make_cache(alpha) if isinstance(model, (Guide, GuidedModel)) else None
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prompt_cache=cache)
    return [int(token) for token, _ in steps]


def test_the_ways_generate_the_tokens_that_their_models_generate(subjects: Subjects) -> None:
    prompt, alpha = subjects.prompts(1, 6), [(0.9, 0.1)]
    guided, shared = subjects.guided, subjects.shared
    assert shared is not None
    models = {"base": guided.base, "guide": guided.guide, "guided": guided, "shared": shared}
    found = ways(subjects)
    (models["one-pass"],) = found["one-pass"][0]
    assert isinstance(models["one-pass"], OnePassModel)
    assert [*found] == PLAIN + DRAFTED
    for name, (held, way) in found.items():
        model = models[name.split("+")[0]]
        assert held == [model, subjects.draft] if "draft" in name else [model]
        run = way(prompt, alpha)
        run.read()
        before = len(run.sequences[0])
        assert run.decode(4) == len(run.sequences[0]) - before >= 4
        assert run.sequences == [expected_tokens(model, prompt[0], (0.9, 0.1), len(run.sequences[0]))], name
        assert (run.acceptance is not None) == (name in DRAFTED)
        run.close()


def test_a_step_of_speculation_takes_all_tokens_of_a_check(subjects: Subjects) -> None:
    """Else the next turn would begin with tokens that this one has paid for."""
    run = ways(subjects)["shared+base"][1](subjects.prompts(1, 6), [(0.5, 0.5)])
    assert isinstance(run, DraftedGeneration)
    run.read()
    for steps in (1, 2, 5):
        run.decode(steps)
        assert run.sequences[0][:-1] == run._speculation.read


def test_a_perfect_draft_is_always_accepted() -> None:
    """A guide that guides nowhere: its adapters are zero, so base and guide agree."""
    model = tiny_model()
    config = PBLoRAConfig(objectives=("a", "b"))
    attach(model, config)
    guide = Guide(model, config)
    subjects = Subjects(GuidedModel(tiny_model(), guide), tuple(range(1, 40)), SharedModel(guide))
    run = ways(subjects)["shared+base"][1](subjects.prompts(1, 6), [(0.5, 0.5)])
    run.read()
    run.decode(8)
    assert run.acceptance == 1.0


def test_sequences_at_once_each_keep_their_own_preference(subjects: Subjects) -> None:
    prompts, alphas = subjects.prompts(3, 6), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    assert [*ways(subjects, 3)] == PLAIN, "tokens are drafted for one sequence only"
    run = ways(subjects, 3)["shared"][1](prompts, alphas)
    assert isinstance(run, BatchGeneration)
    run.read()
    assert run.decode(4) == 3 * 4
    run.close()
    assert subjects.shared is not None
    for row, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        assert run.sequences[row] == expected_tokens(subjects.shared, prompt, alpha, 5)


def test_every_round_adds_a_sample_to_every_case(subjects: Subjects) -> None:
    plan = Plan(batches=(1, 3), prompts=(6,), tokens=2, rounds=2)
    counts = []
    for cases in measure(subjects, plan):
        assert [case.name for case in cases] == PLAIN + DRAFTED * (cases[0].batch == 1)
        counts.append((cases[0].batch, {len(case.samples) for case in cases}))
    assert counts == [(1, {0}), (1, {1}), (1, {2}), (3, {0}), (3, {1}), (3, {2})]
    assert len(counts) == plan.steps
    assert all(sample.tokens == 3 * 2 for case in cases for sample in case.samples)
    assert all(case.memory > case.weights > 0 for case in cases)
    base, guide, guided, shared, one_pass = cases
    assert guided.weights == base.weights + guide.weights == weight_bytes(subjects.guided)
    assert shared.weights == one_pass.weights == guide.weights


@pytest.mark.parametrize("after", [0, 1, 4, 8, 12])
def test_stopped_measurements_end_with_whole_rounds(subjects: Subjects, after: int) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    plan = Plan(batches=(1, 2), prompts=(6,), tokens=2, rounds=3)
    yielded = list(measure(subjects, plan, stopped))
    assert len(yielded) < plan.steps
    for cases in yielded:
        assert len({len(case.samples) for case in cases}) == 1


def test_models_that_cannot_be_batched_are_refused_before_anything_is_measured(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_batches(subjects, Plan(batches=(1, 8)))
    monkeypatch.setattr(bench, "can_batch", lambda cache: False)
    check_batches(subjects, Plan(batches=(1,)))
    with pytest.raises(InputError, match="several sequences at once"):
        check_batches(subjects, Plan(batches=(1, 8)))


def test_metal_keeps_weights_only_while_measuring(subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    from parm_mlx import machine

    limits: list[int] = []
    monkeypatch.setattr(machine, "has_metal", lambda: True)
    monkeypatch.setattr(machine, "usable_memory", lambda: 1000)
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.append(limit) or 7)
    list(bench.measure(subjects, Plan((1,), (2,), 1, 1)))
    assert limits[0] == 1000
    assert limits[-1] == 7


def case(name: str, decode: list[float], acceptance: float | None = None) -> Case:
    """Two sequences with prompts of 10 tokens; 20 tokens each in every round."""
    return Case(name, 2, 10, 3_000_000, 4_500_000, [Sample(0.5, seconds, 40, acceptance) for seconds in decode])


def test_rates_and_ratios_by_hand() -> None:
    """20 tokens of each sequence in 2, 4 and 2 s: 100, 200, 100 ms; the floor is 4, 8 and 6 s.

    Guided in 5, 8 and 6 s: 0.8, 1 and 1 of the floor, and 2/5, 1/2, 1/3 of unguided.
    """
    base, guide, guided = summarise(
        [case("base", [2.0, 4.0, 2.0]), case("guide", [2.0, 4.0, 4.0]), case("guided", [5.0, 8.0, 6.0], 0.625)]
    )
    assert (base["case"], base["batch"], base["prompt"], base["rounds"]) == ("base", 2, 10, 3)
    assert base["ms_per_token"] == 100
    assert base["ms_per_token_spread"] == [100, 200]
    assert base["decode_tokens_per_second"] == 20
    assert base["decode_tokens_per_second_spread"] == [10, 20]
    assert base["prefill_tokens_per_second"] == 40, "2 · 10 tokens in 0.5 s"
    assert base["of_unguided_spread"] == [1, 1]
    assert guide["of_unguided"] == 1
    assert guide["of_unguided_spread"] == [0.5, 1]
    assert guided["of_floor"] == 1
    assert guided["of_floor_spread"] == [0.8, 1]
    assert guided["of_unguided"] == 0.4
    assert guided["of_unguided_spread"] == [pytest.approx(1 / 3, abs=1e-5), 0.5]
    assert (guided["weights_mb"], guided["peak_mb"]) == (3.0, 4.5)
    assert (base["accepted"], guided["accepted"]) == (None, 0.625)


def test_more_tokens_than_asked_for_count() -> None:
    """A draft may bring more tokens in its last step: 2 s for 25 of each sequence are 80 ms."""
    drafted = Case("drafted", 2, 10, 1, 1, [Sample(0.5, 2.0, 50, 0.5)])
    rows = summarise([case("base", [2.0]), case("guide", [2.0]), drafted])
    assert rows[2]["ms_per_token"] == 80
    assert rows[2]["of_unguided"] == 1.25
    assert rows[2]["of_floor"] == 2.5


FIGURES = ("decode_tokens_per_second", "of_unguided", "prefill_tokens_per_second")


def row(case: str, batch: int, prompt: int, value: float) -> dict[str, Any]:
    figures = dict.fromkeys(FIGURES, value) | {f"{name}_spread": [value - 1, value + 2] for name in FIGURES}
    return {"case": case, "batch": batch, "prompt": prompt, **figures}


ROWS = [row("base", 1, 64, 10), row("guided", 1, 64, 5), row("base", 4, 64, 20), row("guided", 4, 64, 9)]


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_ending_decides_the_format(tmp_path: Path, ending: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    bench.draw([*ROWS, row("base", 1, 256, 8), row("guided", 1, 256, 4)], tmp_path / f"speed{ending}")
    assert (tmp_path / f"speed{ending}").read_bytes().startswith(start)


def test_what_is_drawn() -> None:
    """A line per case, through medians, with bars to the lowest and highest round."""
    axis: Any = pytest.importorskip("matplotlib.figure").Figure().subplots()
    bench._lines(axis, ROWS, "batch", "of_unguided")
    lines = [container.lines[0] for container in axis.containers]
    assert [list(line.get_xdata()) for line in lines] == [[1, 4], [1, 4]]
    assert [list(line.get_ydata()) for line in lines] == [[10, 20], [5, 9]]
    assert [container.get_label() for container in axis.containers] == ["base", "guided"]
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    bars = axis.containers[1].lines[2][0].get_segments()
    assert [[list(end) for end in bar] for bar in bars] == [[[1, 4], [1, 7]], [[4, 8], [4, 11]]]


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(RunError, match=r"speed\.png was not written"):
        bench.draw(ROWS, tmp_path / "missing" / "speed.png")
