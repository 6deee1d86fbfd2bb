"""Factors of one-pass guidance: what is fitted is a minimum, and it helps on other answers."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guide

from parm_mlx.evaluation import refinement
from parm_mlx.evaluation.fidelity import ReadAnswer
from parm_mlx.evaluation.refinement import fit_factors, refine
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.session import load_session
from parm_mlx.guidance.shared import SharedModel

ANSWERS = [
    (ReadAnswer([3, 14, 15], [9, 26, 5, 40], (0.3, 0.7)), 1.0),
    (ReadAnswer([7, 8], [41, 12, 13], (1.0, 0.0)), 2.0),
    (ReadAnswer([20, 21, 22, 23], [24, 25], (0.0, 1.0)), 0.5),
]


def gentle_guide() -> Guide:
    """A guide whose update is small enough for one Gauss-Newton step."""
    guide = tiny_guide()
    for layer in guide.adapted:
        layer.b = 0.1 * layer.b
    return guide


def divergence(guide: Guide, factors: np.ndarray) -> float:
    """The mean KL divergence of one pass from exact guidance, by the models themselves."""
    exact, model, total = SharedModel(guide), OnePassModel(guide), 0.0
    model._factors = tuple(factors.tolist())
    for each, strength in ANSWERS:
        ids = mx.array([[*each.prompt, *each.answer[:-1]]])
        logits = [m(ids, cache=m.make_cache(each.alpha, strength))[0, len(each.prompt) - 1 :] for m in (exact, model)]
        p, q = (np.array(z - mx.logsumexp(z, axis=-1, keepdims=True), np.float64) for z in logits)
        total += float((np.exp(p) * (p - q)).sum())
    return total / sum(len(each.answer) for each, _ in ANSWERS)


def test_the_fitted_factors_are_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as numbers solve the system; then no change of a factor is better."""
    monkeypatch.setattr(refinement, "STEPS", 12)
    monkeypatch.setattr(refinement, "DAMPING", 1e-9)
    guide = gentle_guide()
    factors = np.array(fit_factors(guide, ANSWERS))
    at_zero, at_fit = divergence(guide, np.zeros_like(factors)), divergence(guide, factors)
    assert at_fit < 0.9 * at_zero
    for i in range(len(factors)):
        for step in (-0.5, 0.5):
            moved = factors.copy()
            moved[i] += step
            assert divergence(guide, moved) > at_fit - 0.02 * at_zero
    assert divergence(guide, -factors) > at_zero


def test_the_bundled_pair_is_closer_with_factors_on_answers_that_were_not_fitted() -> None:
    session = load_session("bundled", share="on")
    guide: Any = session.model.guide
    prompts = [f"How do I {what}?" for what in ("bake bread", "plant a tree", "clean a window", "mend a shirt")] * 2
    found = refine(guide, session.tokenizer, prompts, max_tokens=16, seed=1)
    assert len(found.factors) == len(guide.adapted) == 28
    before, after = (np.mean([tv for tv, _ in each.values()]) for each in (found.before, found.after))
    assert after < before
    assert guide.config.one_pass is None, "the guide stays as it is"
