"""Speculative decoding: exact for greedy and for sampled answers. Families and caches are in test_families."""

from copy import deepcopy
from itertools import islice

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Chooser, DraftCount, Drafting, Speculation

PROMPT = [3, 1, 5, 2, 6]
VOCABULARY = 8
SMALL = {"vocab_size": VOCABULARY, "num_hidden_layers": 1}


def small(seed: int) -> GuidedModel:
    return GuidedModel(tiny_model("llama", seed, **SMALL), tiny_guide("llama", 1, changes=SMALL))


def test_counts_add_up() -> None:
    count = DraftCount()
    assert count.rate == 0
    count.add(DraftCount(6, 3, 2))
    count.add(DraftCount(4, 4, 1))
    assert (count.drafted, count.accepted, count.passes, count.rate) == (10, 7, 3, 0.7)


def test_greedy_drafts_are_kept_up_to_the_first_that_differs() -> None:
    """The target's likeliest tokens are 1, 2, 0; drafts 1, 0 agree once; drafts 1, 2 twice, and 0 comes for free."""
    target = mx.array([[0.0, 5, 1], [0, 1, 5], [5, 0, 1]])
    chooser = Chooser(Sampling(), 0, 3)
    q = mx.zeros((2, 3))
    assert chooser.judge(target, mx.array([1, 0], mx.uint32), q) == (1, [1, 2])
    assert chooser.judge(target, mx.array([1, 2], mx.uint32), q) == (2, [1, 2, 0])
    assert chooser.judge(target[:2], mx.array([1, 2], mx.uint32), q) == (2, [1, 2])


def test_a_draft_of_probability_zero_is_replaced_by_what_the_drafter_lacks() -> None:
    """p = (0, 0.5, 0.5), q = (0.5, 0.5, 0): a draft of 0 is never kept, and p − q leaves token 2 alone."""
    chooser = Chooser(Sampling(temp=1.0), 0, 3)
    target, q = mx.log(mx.array([[0.0, 0.5, 0.5]])), mx.log(mx.array([[0.5, 0.5, 0.0]]))
    for _ in range(20):
        assert chooser.judge(target, mx.array([0], mx.uint32), q) == (0, [2])
        assert chooser.judge(target, mx.array([1], mx.uint32), q) == (1, [1])


@pytest.mark.parametrize(("vocabulary", "token"), [(3, 2), (6, 5)])
def test_drafters_may_know_fewer_or_more_tokens(vocabulary: int, token: int) -> None:
    """Of V = 4: a drafter of 3 tokens never drafts the fourth; the extra ones of a drafter of 6 are not drafted."""
    for temp in (0.0, 1.0):
        chooser = Chooser(Sampling(temp=temp), 0, 4)
        draft, q = chooser.draft(mx.where(mx.arange(vocabulary) == token, 50.0, 0.0)[None])
        assert q.shape == (1, 4)
        assert draft.item() < min(4, vocabulary)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic over the outcomes that are expected at least five times; the rest is one outcome."""
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(((observed - expected) ** 2 / expected).sum() / max(len(expected) - 1, 1))


@pytest.mark.parametrize(
    ("drafter", "sampling"),
    [
        ("base", Sampling(temp=1.0)),
        ("model", Sampling(temp=0.7, top_k=5)),
        ("shared", Sampling(temp=1.3, top_p=0.9)),
    ],
)
def test_sampled_tokens_have_the_distribution_of_plain_decoding(drafter: str, sampling: Sampling) -> None:
    """The first two tokens, 64 outcomes, over 400 answers, against the exact product of conditional probabilities.

    Pearson's statistic per degree of freedom is 1 ± 0.35 for about 16 degrees; 2.2 is far beyond chance, and what a
    drafter's own distribution gives is beyond that (the test below).
    """
    model = SharedModel(tiny_guide("llama", 1, changes=SMALL)) if drafter == "shared" else small(0)
    draft_model = tiny_model("llama", 5, **SMALL) if drafter == "model" else None
    counts, expected = outcomes(model, draft_model, sampling, 400)
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts.reshape(-1), 400 * expected.reshape(-1)) < 2.2


def test_the_distribution_test_can_fail() -> None:
    """Tokens of the base alone, or of another preference, do not pass for guided ones."""
    counts, _ = outcomes(small(0), None, Sampling(temp=1.0), 400)
    base = exact(small(0), Sampling(temp=1.0), (0.9, 0.1))
    assert chi_square(counts.reshape(-1), 400 * base.reshape(-1)) > 2.2


def outcomes(
    model: GuidedModel, draft_model: object, sampling: Sampling, answers: int
) -> tuple[np.ndarray, np.ndarray]:
    """How often each pair of first tokens came, and its exact probability."""
    alpha = (0.3, 0.7)
    cache = model.make_cache(alpha)
    last = prefill(model, cache, PROMPT, PROMPT)
    draft = Drafting(draft_model).make_cache()  # type: ignore[arg-type]
    Drafting(draft_model).prefill(draft, PROMPT)  # type: ignore[arg-type]
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for number in range(answers):
        drafting = Drafting(draft_model, 1 + number % 3)  # type: ignore[arg-type]
        speculation = Speculation(
            model,
            deepcopy(cache),
            last,
            drafting,
            Sampling(**{**vars(sampling), "seed": number}),
            draft=deepcopy(draft),
        )
        first, second = islice(speculation, 2)
        counts[first, second] += 1
    return counts, exact(model, sampling, alpha)


def exact(model: GuidedModel, sampling: Sampling, alpha: tuple[float, float]) -> np.ndarray:
    def probabilities(tokens: list[int]) -> np.ndarray:
        logits = model(mx.array([tokens]), cache=model.make_cache(alpha))[:, -1]
        return np.array(mx.exp(sampling.distribution(logits))[0], np.float64)

    first = probabilities(PROMPT)
    return np.stack([p * probabilities([*PROMPT, token]) for token, p in enumerate(first)])


@pytest.mark.parametrize("by_model", [False, True])
def test_what_the_caches_have_read_is_known(by_model: bool) -> None:
    """After any number of tokens, the cache holds the prompt and ``read``, and goes on as a fresh one would."""
    model = small(0)
    draft_model = tiny_model("llama", 0, **SMALL) if by_model else None
    for taken in range(1, 8):
        cache = model.make_cache((0.3, 0.7))
        last = prefill(model, cache, PROMPT, PROMPT)
        drafting = Drafting(draft_model, 3)
        draft = drafting.make_cache()
        drafting.prefill(draft, PROMPT)
        speculation = Speculation(model, cache, last, drafting, Sampling(), draft=draft)
        tokens = list(islice(speculation, taken))
        assert speculation.read[: len(tokens)] == tokens[: len(speculation.read)]
        logits = model(mx.array([[4]]), cache=speculation.cache)[0, -1]
        whole = model(mx.array([[*PROMPT, *speculation.read, 4]]), cache=model.make_cache((0.3, 0.7)))[0, -1]
        np.testing.assert_allclose(logits, whole, rtol=1e-3, atol=1e-3)
        if draft_model is not None:
            alone = draft_model(mx.array([[*draft.tokens, 4]]))[0, -1]
            follows = draft_model(mx.array([[4]]), cache=draft.cache)[0, -1]
            np.testing.assert_allclose(follows, alone, rtol=1e-3, atol=1e-3)
