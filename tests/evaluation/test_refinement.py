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
from parm_mlx.guidance.named import held_out_prompts
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


def divergences(guide: Guide, factors: np.ndarray) -> np.ndarray:
    """The KL divergence of one pass from exact guidance at every token, by the models themselves."""
    exact, model, found = SharedModel(guide), OnePassModel(guide), []
    model._factors = tuple(factors.tolist())
    for each, strength in ANSWERS:
        ids = mx.array([[*each.prompt, *each.answer[:-1]]])
        logits = [m(ids, cache=m.make_cache(each.alpha, strength))[0, len(each.prompt) - 1 :] for m in (exact, model)]
        p, q = (np.array(z - mx.logsumexp(z, axis=-1, keepdims=True), np.float64) for z in logits)
        found.append((np.exp(p) * (p - q)).sum(axis=-1))
    return np.concatenate(found)


def test_the_fitted_factors_are_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as numbers solve the system; then no change of a factor is better, in the weighed sum of tokens."""
    monkeypatch.setattr(refinement, "STEPS", 12)
    monkeypatch.setattr(refinement, "PRIOR", 1e3)
    guide = gentle_guide()
    factors = np.array(fit_factors(guide, ANSWERS))
    without = divergences(guide, np.zeros_like(factors))
    weights = 1 / np.sqrt(without + without.mean())

    def weighed(factors: np.ndarray) -> float:
        return float((weights * divergences(guide, factors)).sum())

    at_zero, at_fit = float((weights * without).sum()), weighed(factors)
    assert at_fit < 0.9 * at_zero
    for i in range(len(factors)):
        for step in (-0.5, 0.5):
            moved = factors.copy()
            moved[i] += step
            assert weighed(moved) > at_fit - 0.02 * at_zero
    assert weighed(-factors) > at_zero


def test_few_tokens_leave_the_factors_near_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = gentle_guide()
    sizes = []
    for prior in (1e-3, 0.5, 1e3):
        monkeypatch.setattr(refinement, "PRIOR", prior)
        sizes.append(float(np.abs(fit_factors(guide, ANSWERS)).max()))
    assert sizes[0] < 1e-2 < sizes[1] < sizes[2]


def test_the_bundled_pair_is_closer_with_factors_on_answers_that_were_not_fitted() -> None:
    session = load_session("bundled", share="on")
    guide: Any = session.model.guide
    found = refine(guide, session.tokenizer, held_out_prompts("bundled")[:24], max_tokens=20, seed=1)
    assert len(found.factors) == len(guide.adapted) == 28
    before, after = (np.mean([tv for tv, _ in each.values()]) for each in (found.before, found.after))
    assert after < before
    assert guide.config.one_pass is None, "the guide stays as it is"
