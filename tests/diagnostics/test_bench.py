import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step
from tiny import tiny_guided, tiny_model

from parm_mlx.diagnostics import bench
from parm_mlx.diagnostics.bench import check_batches, measure, ways
from parm_mlx.diagnostics.plan import Plan
from parm_mlx.diagnostics.runs import Batch, Drafted
from parm_mlx.diagnostics.subjects import Subjects, weight_bytes
from parm_mlx.errors import InputError
from parm_mlx.guidance.guided import Guide, GuidedModel
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.pblora import PBLoRAConfig, attach

PLAIN = ["base", "guide", "guided", "shared"]
DRAFTED = ["guided+self", "shared+self", "shared+draft"]


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
    run = ways(subjects)["shared+self"][1](subjects.prompts(1, 6), [(0.5, 0.5)])
    assert isinstance(run, Drafted)
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
    run = ways(subjects)["shared+self"][1](subjects.prompts(1, 6), [(0.5, 0.5)])
    run.read()
    run.decode(8)
    assert run.acceptance == 1.0


def test_sequences_at_once_each_keep_their_own_preference(subjects: Subjects) -> None:
    prompts, alphas = subjects.prompts(3, 6), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    assert [*ways(subjects, 3)] == PLAIN, "tokens are drafted for one sequence only"
    run = ways(subjects, 3)["shared"][1](prompts, alphas)
    assert isinstance(run, Batch)
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
    base, guide, guided, shared = cases
    assert guided.weights == base.weights + guide.weights == weight_bytes(subjects.guided)
    assert shared.weights == guide.weights


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
