"""Speculative decoding: exact for greedy and for sampled answers. Families and caches are in test_families."""

from copy import deepcopy
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.guide import Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.sampling import Sampler, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Chooser, DraftCount, Drafting, Speculation, sharpness

PROMPT = [3, 1, 5, 2, 6]
VOCABULARY = 8
SMALL = {"vocab_size": VOCABULARY, "num_hidden_layers": 1}


def small(seed: int) -> GuidedModel:
    return GuidedModel(tiny_model("llama", seed, **SMALL), tiny_guide("llama", 1, changes=SMALL))


def test_counts_add_up() -> None:
    count = DraftCount()
    assert count.rate == 0
    count.add(DraftCount(6, 3, 2, 5, 2, 6))
    count.add(DraftCount(4, 4, 1, 4, 1, 4))
    assert count == DraftCount(10, 7, 3, 9, 3, 10)
    assert count.rate == 0.7


def test_greedy_drafts_are_kept_up_to_the_first_that_differs() -> None:
    """The target's likeliest tokens are 1, 2, 0; drafts 1, 0 agree once; drafts 1, 2 twice, and 0 comes for free."""
    target = mx.array([[0.0, 5, 1], [0, 1, 5], [5, 0, 1]])
    chooser = Chooser(Sampling(), 0, 3)
    assert chooser.judge(target, mx.array([1, 0], mx.uint32)) == (1, [1, 2])
    assert chooser.judge(target, mx.array([1, 2], mx.uint32)) == (2, [1, 2, 0])
    assert chooser.judge(target[:2], mx.array([1, 2], mx.uint32)) == (2, [1, 2])


def test_a_draft_from_the_target_itself_is_always_kept() -> None:
    """The same noise chooses the same token; tokens of probability zero are never drawn."""
    chooser = Chooser(Sampling(temp=1.0), 0, 3)
    logits = mx.log(mx.array([[0.0, 0.5, 0.5]]))
    drawn = set()
    for _ in range(40):
        drafts = mx.concatenate([chooser.draft(logits, ahead)[0] for ahead in range(2)])
        kept, tokens = chooser.judge(mx.concatenate([logits] * 3), drafts)
        assert (kept, tokens[:2]) == (2, drafts.tolist())
        drawn |= set(tokens)
    assert drawn == {1, 2}


def test_noise_that_no_token_has_used_is_kept_for_the_next_one() -> None:
    """Three places are drafted and all drafts are wrong: one token is drawn, and the next has the second noise."""
    sampler = Sampler(Sampling(temp=1.0), 0)
    noise = [sampler.noise(3) for _ in range(3)]
    chooser, logits = Chooser(Sampling(temp=1.0), 0, 3), mx.zeros((1, 3))
    for place in range(3):
        right = mx.argmax(noise[place]).item()
        for ahead in range(3):
            chooser.draft(logits, ahead)
        wrong = mx.array([(right + 1) % 3] * 3, mx.uint32)
        assert chooser.judge(mx.zeros((3, 3)), wrong) == (0, [right])


@pytest.mark.parametrize(("vocabulary", "token"), [(3, 2), (6, 5)])
def test_drafters_may_know_fewer_or_more_tokens(vocabulary: int, token: int) -> None:
    """Of V = 4: a drafter of 3 tokens never drafts the fourth; the extra ones of a drafter of 6 are not drafted."""
    for temp in (0.0, 1.0):
        chooser = Chooser(Sampling(temp=temp), 0, 4)
        draft, _ = chooser.draft(mx.where(mx.arange(vocabulary) == token, 50.0, 0.0)[None], 0)
        assert draft.item() < min(4, vocabulary)


@pytest.mark.parametrize("confidence", [0, 0.5])
@pytest.mark.parametrize("drafter", ["base", "guide", "model", "shared base", "shared guide", "several guides"])
@pytest.mark.parametrize(
    "sampling", [Sampling(temp=1.0), Sampling(temp=0.7, top_k=5), Sampling(temp=1.3, top_p=0.9, min_p=0.05)]
)
def test_a_seed_gives_the_tokens_that_it_gives_without_drafts(
    drafter: str, sampling: Sampling, confidence: float
) -> None:
    kinds = {"shared": lambda: SharedModel(tiny_guide("llama", 1, changes=SMALL))}
    kinds["several"] = lambda: GuidedModel(tiny_model("llama", 0, **SMALL), genarm())
    model = kinds.get(drafter.split()[0], lambda: small(0))()
    draft_model = tiny_model("llama", 5, **SMALL) if drafter == "model" else None
    drafting = Drafting(draft_model, 4, "guide" in drafter, confidence)
    for seed in range(3):
        seeded = Sampling(**{**vars(sampling), "seed": seed})
        speculation = begun(model, drafting, seeded, seed)
        cache = model.make_cache((0.3, 0.7))
        last = prefill(model, cache, PROMPT, PROMPT)
        plain = generate_step(mx.array([last]), model, max_tokens=20, sampler=seeded.sampler(seed), prompt_cache=cache)
        assert list(islice(speculation, 20)) == [int(token) for token, _ in plain]


def begun(model: GuidedModel, drafting: Drafting, sampling: Sampling, seed_offset: int = 0) -> Speculation:
    cache = model.make_cache((0.3, 0.7))
    last = prefill(model, cache, PROMPT, PROMPT)
    draft = drafting.make_cache()
    drafting.prefill(draft, PROMPT)
    return Speculation(model, cache, last, drafting, sampling, seed_offset, draft)


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
        ("guide", Sampling(temp=0.7, min_p=0.1)),
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
    counts, expected = outcomes(model, draft_model, sampling, 400, drafter == "guide")
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts.reshape(-1), 400 * expected.reshape(-1)) < 2.2


def test_the_distribution_test_can_fail() -> None:
    """Tokens of the base alone, or of another preference, do not pass for guided ones."""
    counts, _ = outcomes(small(0), None, Sampling(temp=1.0), 400)
    base = exact(small(0), Sampling(temp=1.0), (0.9, 0.1))
    assert chi_square(counts.reshape(-1), 400 * base.reshape(-1)) > 2.2


def outcomes(
    model: GuidedModel, draft_model: object, sampling: Sampling, answers: int, by_guide: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """How often each pair of first tokens came, and its exact probability; drafting ends at several confidences."""
    alpha = (0.3, 0.7)
    cache = model.make_cache(alpha)
    last = prefill(model, cache, PROMPT, PROMPT)
    draft = Drafting(draft_model).make_cache()  # type: ignore[arg-type]
    Drafting(draft_model).prefill(draft, PROMPT)  # type: ignore[arg-type]
    counts = np.zeros((VOCABULARY, VOCABULARY))
    for number in range(answers):
        confidence = (0, 0.3, 0.6)[number // 3 % 3]
        drafting = Drafting(draft_model, 1 + number % 3, by_guide, confidence)  # type: ignore[arg-type]
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


def test_drafting_pauses_where_the_drafter_is_unsure_and_the_last_draft_counts() -> None:
    """Top probabilities of 0.9 and 0.5: 0.9 is above 0.5, 0.9 · 0.5 = 0.45 is not, so that two are drafted."""
    tops = iter([0.9, 0.5, 0.9])

    class Drafter:
        def __call__(self, inputs: mx.array, cache: object) -> mx.array:
            top = next(tops)
            return mx.log(mx.array([[[top, *[(1 - top) / (VOCABULARY - 1)] * (VOCABULARY - 1)]]]))

    model = small(0)
    cache = model.make_cache((0.3, 0.7))
    speculation = Speculation(model, cache, 1, Drafting(None, 5, confidence=0.5), Sampling())
    _, drafts = speculation._drafts(Drafter(), cache, mx.array([1]), 1.0)  # type: ignore[arg-type]
    assert drafts.tolist() == [0, 0]


def test_drafts_are_sharpened_to_where_base_and_guide_agree() -> None:
    """At β = 0.5, Eq. 13 has p_base · p_guide²: a base like the guide is cubed, a guide raised to (1 + 2) / 1.

    Two guides with β_i = 0.5 and α = (1, 0) give p_1²: base³ and, as the guide is squared already, guide^(3/2).
    """
    one = GuidedModel(tiny_model("llama", 0, **SMALL), tiny_guide("llama", 1, changes=SMALL), 0.5)
    assert sharpness(one, one.make_cache((0.3, 0.7))) == {"base": 3, "guide": 3}
    several = GuidedModel(one.base, genarm(), 1.0)
    assert sharpness(several, several.make_cache((1, 0))) == {"base": 3, "guide": 1.5}


def genarm() -> Guides:
    guides = [tiny_guide("llama", seed, changes=SMALL, objectives=(name,)) for seed, name in ((1, "a"), (2, "b"))]
    return Guides(guides, betas=[0.5, 0.5])


class Counted(nn.Module):
    """A model that counts its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = 0

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        self.passes += 1
        return self.model(inputs, cache=cache)


@pytest.mark.parametrize("confidence", [0, 0.5])
@pytest.mark.parametrize("by_guide", [False, True])
def test_passes_of_base_and_guide_are_counted(by_guide: bool, confidence: float) -> None:
    """The checker runs once for a check, the drafter once for a draft; several guides count as one."""
    model = GuidedModel(tiny_model("llama", 0, **SMALL), genarm())
    cache = model.make_cache((0.3, 0.7))
    last = prefill(model, cache, PROMPT, PROMPT)
    speculation = Speculation(model, cache, last, Drafting(None, 4, by_guide, confidence), Sampling())
    model.base, model.guide = base, guide = Counted(model.base), Counted(model.guide)  # type: ignore[assignment]
    tokens = list(islice(speculation, 30))
    count = speculation.count
    assert count.tokens >= len(tokens)
    assert (count.base_passes, count.guide_passes) == (base.passes, guide.passes)
    drafter, checker = (guide, base) if by_guide else (base, guide)
    assert (count.drafted, count.checks) == (drafter.passes, checker.passes)


@pytest.mark.parametrize("by_model", [False, True, "guide"])
def test_what_the_caches_have_read_is_known(by_model: bool | str) -> None:
    """After any number of tokens, the cache holds the prompt and ``read``, and goes on as a fresh one would."""
    model = small(0)
    draft_model = tiny_model("llama", 0, **SMALL) if by_model is True else None
    for taken in range(1, 8):
        cache = model.make_cache((0.3, 0.7))
        last = prefill(model, cache, PROMPT, PROMPT)
        drafting = Drafting(draft_model, 3, by_model == "guide", confidence=0)
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
