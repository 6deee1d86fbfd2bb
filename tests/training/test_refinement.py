"""Adapters that are trained for one pass: the loss by the models themselves, and what it does to the bundled pair."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guide

from parm_mlx.errors import RunError
from parm_mlx.evaluation.fidelity import ReadAnswer, compare_distributions
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.session import load_session
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.training import refinement
from parm_mlx.training.refinement import EPSILON, SampledAnswer, measure, refine, share_kept, tensors_of, train

ANSWERS = [
    SampledAnswer([3, 14, 15], [9, 26, 5, 40], (0.3, 0.7), 1.0),
    SampledAnswer([7, 8], [41, 12, 13], (1.0, 0.0), 0.5),
    SampledAnswer([20, 21, 22, 23], [24, 25], (0.0, 1.0), 2.0),
]


def logprobs(model: GuidedModel, each: SampledAnswer) -> np.ndarray:
    """Log-probabilities (n, V) before each token of an answer."""
    ids = mx.array([[*each.prompt, *each.answer[:-1]]])
    logits = model(ids, cache=model.make_cache(each.alpha, each.strength))[0, len(each.prompt) - 1 :]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True), np.float64)


def root_divergences(guide: Guide) -> np.ndarray:
    """√(D(p ‖ q) + ε) of every token of the answers, by the models of exact and one-pass guidance."""
    found = []
    for each in ANSWERS:
        p, q = (logprobs(model, each) for model in (SharedModel(guide), OnePassModel(guide)))
        found.append(np.sqrt((np.exp(p) * (p - q)).sum(axis=-1) + EPSILON))
    return np.concatenate(found)


@pytest.mark.parametrize("settings", [{}, {"kind": "svd-lora", "r2": 2}, {"kind": "moslora", "r1": 0}])
def test_the_loss_is_that_of_the_models(settings: dict[str, Any]) -> None:
    """Answers of different lengths in one batch, each at its own α and β; the guide has not moved yet."""
    guide = tiny_guide(**settings)
    alphas, strengths = np.array([each.alpha for each in ANSWERS]), np.array([each.strength for each in ANSWERS])
    batch, tensors = refinement._Batch.of(ANSWERS, alphas, strengths), tensors_of(guide)
    reader = refinement._Reader(guide)
    loss = refinement._loss(reader, tensors, batch, refinement._target(reader, tensors, batch), 1.0)
    assert float(loss) == pytest.approx(root_divergences(guide).mean() + EPSILON**0.5, rel=1e-3)
    held = refinement._loss(reader, tensors, batch, refinement._target(reader, tensors, batch), 3.0)
    assert float(held - loss) == pytest.approx(2 * EPSILON**0.5, rel=1e-3)


def test_what_is_measured_is_what_fidelity_measures() -> None:
    guide = tiny_guide()
    _, found = measure(guide, tensors_of(guide), ANSWERS, [1.0, 2.0])
    expected = compare_distributions(guide, 0.5, [ReadAnswer(each.prompt, each.answer, each.alpha) for each in ANSWERS])
    assert found.before == found.after == pytest.approx(expected["total_variation"], rel=1e-3)
    assert found.same == pytest.approx(expected["same_token"])
    assert found.moved == 0
    assert found.kept == pytest.approx(1)


def scaled(guide: Guide, factor: float) -> list[dict[str, mx.array]]:
    """A guide's tensors, with B in another size."""
    return [tensors | {"b": factor * tensors["b"]} for tensors in tensors_of(guide)]


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_of_a_small_update_what_is_kept_is_its_factor(factor: float) -> None:
    """Logits are linear in an update that is small enough."""
    guide = tiny_guide()
    small = scaled(guide, 1e-3)
    after = [tensors | {"b": factor * tensors["b"]} for tensors in small]
    assert share_kept(guide, small, after, ANSWERS) == pytest.approx(factor, rel=1e-2)


def test_an_adapter_that_lost_its_effect_is_refused_and_one_that_had_none_keeps_it() -> None:
    guide, nothing = tiny_guide(), scaled(tiny_guide(), 0)
    with pytest.raises(RunError, match="has lost its effect"):
        share_kept(guide, scaled(guide, 1), nothing, ANSWERS)
    assert share_kept(guide, nothing, nothing, ANSWERS) == 1


def test_training_changes_nothing_until_the_tensors_are_taken() -> None:
    guide, ids = tiny_guide(), mx.array([[5, 6, 7]])
    before, own = guide(ids), tensors_of(guide)
    tensors = train(guide, ANSWERS, 3, 2, 1e-2, 0)
    assert mx.array_equal(guide(ids), before)
    assert tensors[0].keys() == own[0].keys() == {"a", "b", "w1", "w2"}
    assert not mx.array_equal(tensors[0]["b"], own[0]["b"])


def test_an_adapter_in_16_bits_is_trained_in_32() -> None:
    guide = tiny_guide()
    for layer in guide.adapted:
        layer.update({name: layer[name].astype(mx.float16) for name in layer.tensors})
    tensors = train(guide, ANSWERS, 3, 2, 1e-2, 0)
    assert {tensor.dtype for each in tensors for tensor in each.values()} == {mx.float32}
    assert all(bool(mx.isfinite(tensor).all()) for each in tensors for tensor in each.values())


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(RunError, match=r"the loss of step \d is not finite"):
        train(tiny_guide(), ANSWERS, 9, 2, 1e30, 0)


def test_the_same_seed_gives_the_same_adapter() -> None:
    found = [train(tiny_guide(), ANSWERS, 3, 2, 1e-2, seed) for seed in (1, 1, 2)]
    assert mx.array_equal(found[0][0]["b"], found[1][0]["b"])
    assert not mx.array_equal(found[0][0]["b"], found[2][0]["b"])


def test_an_update_that_training_halved_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    session = load_session("bundled", share="on")
    guide: Any = session.model.guide
    monkeypatch.setattr(refinement, "train", lambda guide, *rest: scaled(guide, 0.5))
    found = refine(guide, session.tokenizer, held_out_prompts("bundled")[:16], max_tokens=16)
    assert [distance.kept for distance in found.values()] == pytest.approx([1, 1, 1], abs=0.05)
    assert max(distance.moved for distance in found.values()) < 0.005


def test_the_bundled_pair_in_one_pass_is_nearer_on_other_answers_and_its_guide_stays() -> None:
    session = load_session("bundled", share="on")
    guide: Any = session.model.guide
    ids = mx.array([session.tokenizer.encode("How do I bake bread?")])
    base = session.model.base(ids)
    found = refine(
        guide,
        session.tokenizer,
        held_out_prompts("bundled")[:32],
        iters=24,
        batch_size=4,
        max_tokens=16,
        learning_rate=2e-3,
    )
    for distance in found.values():
        assert distance.after < 0.9 * distance.before
        assert distance.moved < 2 * distance.before
    assert mx.array_equal(session.model.base(ids), base), "the backbone is not changed"


def test_answers_that_are_empty_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = load_session("bundled", share="on")
    guide: Any = session.model.guide
    monkeypatch.setattr(refinement, "sample_answers", lambda *_: ANSWERS[:3])
    with pytest.raises(RunError, match="3 answers are not empty, of 4 that it takes"):
        refinement.refine(guide, session.tokenizer, ["?"] * 5)
