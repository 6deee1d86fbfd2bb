"""The proposal of β, by hand, and the log-probabilities under it against Eq. 13 written out."""

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guided

from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.training import strength
from parm_mlx.training.strength import BETAS, gentlest, propose_beta

ROW = TokenRow(np.array([1, 5, 9, 4, 2], np.int32), 2)


@pytest.mark.parametrize(
    ("shares", "beta"),
    [
        ((0.9, 0.9, 0.9, 0.9, 0.9), 4),  # strength changes nothing
        ((0.5, 0.6, 0.7, 0.89, 0.9), 0.5),  # a standard error of the best is 0.03
        ((0.5, 0.6, 0.88, 0.89, 0.9), 1),
        ((0.5, 0.6, 0.9, 0.7, 0.6), 1),
        ((0.0, 0.0, 0.0, 0.0, 1.0), 0.25),
    ],
)
def test_the_gentlest_that_is_as_good_as_the_best(shares: tuple[float, ...], beta: float) -> None:
    judged = np.array([[number < share * 100 for share in shares] for number in range(100)])
    assert gentlest(judged) == beta


def test_the_logprobs_are_those_of_the_guided_model() -> None:
    guided = tiny_guided()
    model, k = guided.guide.model, len(guided.objectives)
    from parm_mlx.pblora.layer import Unconditioned, conditioned

    tokens = mx.array(ROW.ids)[None]
    with conditioned(Unconditioned()):
        base = model(tokens)
    found = strength._guided_logprobs(model, ROW, range(k), k)
    for i in range(k):
        guide = guided.guide(tokens, alpha=mx.eye(k)[i])
        for j, beta in enumerate(BETAS):
            logits = base + guide / beta
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            expected = sum(logprobs[0, at - 1, int(ROW.ids[at])].item() for at in range(2, 5))
            assert found[i][j] == pytest.approx(expected, abs=1e-4)


def test_pairs_are_judged_by_the_objectives_that_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def logprobs(model: object, row: TokenRow, objectives: list[int], k: int) -> list[list[float]]:
        """The first objective prefers the second response at β ≤ 1, the second one never."""
        second = row is other
        return [[float(second and i == 0 and beta <= 1) - 0.5 * second for beta in BETAS] for i in objectives]

    other = TokenRow(ROW.ids, 2)
    monkeypatch.setattr(strength, "_guided_logprobs", logprobs)
    model = tiny_guided().guide.model
    pairs = [TokenPair((ROW, other), np.array([1, -1], np.int8), "")] * 4
    assert propose_beta(model, pairs, 2) is None  # too few
    pairs += [TokenPair((ROW, other), np.array([1, 0], np.int8), "")] * 4
    assert propose_beta(model, pairs, 2) == 1
    pairs = [TokenPair((ROW, other), np.array([-1, 0], np.int8), "")] * 8
    assert propose_beta(model, pairs, 2) == 4
