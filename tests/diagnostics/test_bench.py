import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from tiny import tiny_guided

from parm_mlx.diagnostics import bench
from parm_mlx.diagnostics.bench import measure, ways
from parm_mlx.diagnostics.plan import Plan
from parm_mlx.diagnostics.runs import Batch, Single
from parm_mlx.diagnostics.subjects import Subjects, weight_bytes

WAYS = ["base", "guide", "guided"]


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return Subjects(tiny_guided(), tuple(range(1, 40)))


def test_the_ways_generate_the_tokens_that_the_models_generate(subjects: Subjects) -> None:
    """Each way beside mlx-lm's generate_step on the model itself."""
    prompt, alpha = subjects.prompts(1, 6), [(0.9, 0.1)]
    guided = subjects.guided
    models = {"base": guided.base, "guide": guided.guide, "guided": guided}
    for name, (model, way) in ways(subjects).items():
        assert model is models[name]
        cache = None if name == "base" else model.make_cache((0.9, 0.1))
        steps = generate_step(mx.array(prompt[0]), model, max_tokens=5, prompt_cache=cache)
        expected = [token for token, _ in steps]
        run = way(prompt, alpha)
        assert isinstance(run, Single)
        run.read()
        assert run.decode(4) == 4
        assert run.sequences == [expected], name
        run.close()


def test_sequences_at_once_each_keep_their_own_preference(subjects: Subjects) -> None:
    prompts, alphas = subjects.prompts(3, 6), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    run = ways(subjects)["guided"][1](prompts, alphas)
    assert isinstance(run, Batch)
    run.read()
    assert run.decode(4) == 3 * 4
    run.close()
    for row, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        cache = subjects.guided.make_cache(alpha)
        steps = generate_step(mx.array(prompt), subjects.guided, max_tokens=5, prompt_cache=cache)
        assert run.sequences[row] == [token for token, _ in steps]


def test_every_round_adds_a_sample_to_every_case(subjects: Subjects) -> None:
    plan = Plan(batches=(1, 3), prompts=(6,), tokens=2, rounds=2)
    counts = []
    for cases in measure(subjects, plan):
        assert [case.name for case in cases] == WAYS
        counts.append((cases[0].batch, {len(case.samples) for case in cases}))
    assert counts == [(1, {0}), (1, {1}), (1, {2}), (3, {0}), (3, {1}), (3, {2})]
    assert len(counts) == plan.steps
    assert all(sample.tokens == 3 * 2 for case in cases for sample in case.samples)
    assert all(case.memory > case.weights > 0 for case in cases)
    base, guide, guided = cases
    assert guided.weights == base.weights + guide.weights == weight_bytes(subjects.guided)


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


def test_metal_keeps_weights_only_while_measuring(subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    from parm_mlx import machine

    limits: list[int] = []
    monkeypatch.setattr(machine, "has_metal", lambda: True)
    monkeypatch.setattr(machine, "usable_memory", lambda: 1000)
    monkeypatch.setattr(machine.mx, "set_wired_limit", lambda limit: limits.append(limit) or 7)
    list(bench.measure(subjects, Plan((1,), (2,), 1, 1)))
    assert limits[0] == 1000
    assert limits[-1] == 7
