from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache, trim_prompt_cache
from tiny import tiny_guide
from tiny_across import BASE, GUIDE, PROMPTS, tiny_across, tiny_base, tiny_own_guide

from parm_mlx.errors import ModelError
from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.guide import Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabulary_pair import FOREIGN, Pair

TOKENS = 14
EXACT = Refinement(rounds=8, tolerance=0.0, share=0.0)


def started(model: GuidedModel, prompt: tuple[list[int], list[int]], **settings: Any) -> tuple[int, list[Any]]:
    cache = model.make_cache(**settings)
    return prefill(model, cache, *prompt), cache


def greedy(model: GuidedModel, prompt: tuple[list[int], list[int]], tokens: int = TOKENS, **settings: Any) -> list[int]:
    last, cache = started(model, prompt, **settings)
    return [int(t) for t, _ in generate_step(mx.array([last]), model, max_tokens=tokens, prompt_cache=cache)]


def logits_of(model: GuidedModel, cache: list[Any], tokens: list[int]) -> np.ndarray:
    """Logits after each token, one by one."""
    return np.concatenate([np.array(model(mx.array([[token]]), cache)[0]) for token in tokens])


@pytest.fixture(scope="module")
def model() -> AcrossModel:
    return tiny_across(how=EXACT)


def test_of_equal_vocabularies_it_is_the_ordinary_model() -> None:
    """Letters: whatever is said is in the guide's own segmentation."""
    letters = TokenBytes([*(bytes([b]) for b in range(33, 127)), None, None], [95], control={"<x>": 94})
    across = tiny_across(letters, letters)
    plain = GuidedModel(across.base, across.guide.guide, 0.7)
    prompt = [3, 14, 15, 9, 26, 5]
    last, cache = started(plain, (prompt, prompt))
    said = [int(t) for t, _ in generate_step(mx.array([last]), plain, max_tokens=40, prompt_cache=cache)]
    assert greedy(across, (prompt, prompt), 40) == said
    last, cache = started(across, (prompt, prompt))
    got = mx.softmax(mx.array(logits_of(across, cache, [last, *said])), axis=-1)
    last, cache = started(plain, (prompt, prompt))
    expected = mx.softmax(mx.array(logits_of(plain, cache, [last, *said])), axis=-1)
    assert mx.abs(got - expected).sum(axis=-1).max().item() / 2 <= 1e-4


def test_answers_of_a_batch_are_those_that_come_alone(model: AcrossModel) -> None:
    """The third joins late, and has another α and β."""
    settings: list[dict[str, Any]] = [{"alpha": [1, 0]}, {"alpha": [0, 1]}, {"alpha": [0.5, 0.5], "strength": 3.0}]
    alone = [greedy(model, prompt, **each) for prompt, each in zip(PROMPTS, settings, strict=True)]
    lasts, caches = zip(
        *(started(model, prompt, **each) for prompt, each in zip(PROMPTS, settings, strict=True)), strict=True
    )
    generator = BatchGenerator(model, max_tokens=TOKENS, stop_tokens=[])
    uids = generator.insert([[last] for last in lasts[:2]], caches=list(caches[:2]))
    got: dict[int, list[int]] = {}
    for step in range(40):
        if step == 3:
            uids += generator.insert([[lasts[2]]], caches=[caches[2]])
        for response in generator.next_generated():
            got.setdefault(response.uid, []).append(response.token)
    generator.close()
    assert [got[uid] for uid in uids] == alone
    assert len({tuple(each) for each in alone}) == 3


def test_several_tokens_read_at_once_are_those_read_one_by_one(model: AcrossModel) -> None:
    tokens = [2, 3, 1, 5, 6, 7, 4, 1, 2]
    last, cache = started(model, PROMPTS[0])
    one_by_one = logits_of(model, cache, [last, *tokens])
    last, cache = started(model, PROMPTS[0])
    at_once = np.array(model(mx.array([[last, *tokens]]), cache)[0])
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-4)
    np.testing.assert_allclose(
        logits_of(model, cache, [2]), logits_of(model, _after(model, [last, *tokens]), [2]), atol=1e-4
    )


def _after(model: AcrossModel, tokens: list[int]) -> list[Any]:
    _, cache = started(model, PROMPTS[0])
    model(mx.array([tokens]), cache)
    return cache


@pytest.mark.parametrize("kept", range(9))
def test_tokens_taken_back_were_never_read(model: AcrossModel, kept: int) -> None:
    tokens, others = [2, 3, 1, 5, 6, 7, 4, 1], [5, 4, 2]
    last, cache = started(model, PROMPTS[1])
    logits_of(model, cache, [last, *tokens])
    assert trim_prompt_cache(cache, len(tokens) - kept) == len(tokens) - kept
    got = logits_of(model, cache, others)
    last, cache = started(model, PROMPTS[1])
    expected = logits_of(model, cache, [last, *tokens[:kept], *others])[kept + 1 :]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_tokens_of_the_prompt_can_be_taken_back(model: AcrossModel) -> None:
    prompt = [0, 6, 4, 4, 2, 5]
    cache = model.guide.make_cache()
    model.guide(mx.array([prompt]), cache=cache)
    trim_prompt_cache(cache, 3)
    symbols, base = mx.array([[FOREIGN + 2]]), mx.zeros((1, 1, len(BASE.pieces)))
    got = model.guide.score(symbols, base, cache)
    fresh = model.guide.make_cache()
    model.guide(mx.array([prompt[:3]]), cache=fresh)
    np.testing.assert_allclose(got, model.guide.score(symbols, base, fresh), atol=1e-4)


def test_a_cache_goes_on_from_a_file_or_a_copy(model: AcrossModel, tmp_path: Path) -> None:
    last, cache = started(model, PROMPTS[0])
    logits_of(model, cache, [last, 2, 3, 1])
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    copied, loaded = deepcopy(cache), load_prompt_cache(str(tmp_path / "cache.safetensors"))
    expected = logits_of(model, cache, [5, 4, 2])
    np.testing.assert_allclose(logits_of(model, copied, [5, 4, 2]), expected, atol=1e-4)
    np.testing.assert_allclose(logits_of(model, loaded, [5, 4, 2]), expected, atol=1e-4)


def test_rows_that_were_read_before_change_nothing(model: AcrossModel) -> None:
    """Greedy decoding goes along rows that were read to tell tokens apart; a cleared memory reads them again."""
    last, cache = started(model, PROMPTS[2])
    said = greedy(model, PROMPTS[2])
    remembered, forgetful, used = [], [], 0
    other = deepcopy(cache)
    for token in [last, *said]:
        used += cache[-2].sequences[0].fork is not None
        remembered.append(np.array(model(mx.array([[token]]), cache)))
        sequence = other[-2].sequences[0]
        sequence.fork, sequence.known = None, {}
        forgetful.append(np.array(model(mx.array([[token]]), other)))
    assert used > 3
    np.testing.assert_allclose(remembered, forgetful, atol=1e-4)


def test_drafted_tokens_change_nothing(model: AcrossModel) -> None:
    expected = greedy(model, PROMPTS[0])
    draft = tiny_base(seed=13)
    last, cache = started(model, PROMPTS[0])
    steps = speculative_generate_step(
        mx.array([last]),
        model,
        draft,
        max_tokens=TOKENS,
        num_draft_tokens=3,
        prompt_cache=[*cache, *make_prompt_cache(draft)],
    )
    assert [int(token) for token, _, _ in steps] == expected


def test_several_guides_of_one_objective_each_are_one_distribution() -> None:
    """With letters as tokens it is the ordinary weighing."""
    letters = TokenBytes([*(bytes([b]) for b in range(33, 127)), None, None], [95], control={"<x>": 94})
    guides = Guides([tiny_own_guide(96, seed, [name]) for seed, name in ((1, "warm"), (2, "brief"))], [0.3, 0.7])
    across = tiny_across(letters, letters, model=guides)
    prompt = [3, 14, 15]
    assert greedy(across, (prompt, prompt)) == greedy(GuidedModel(across.base, guides, 0.7), (prompt, prompt))


def test_without_strength_the_base_answers_alone(model: AcrossModel) -> None:
    last, cache = started(model, PROMPTS[0], strength=0.0)
    base = make_prompt_cache(model.base)
    model.base(mx.array([PROMPTS[0][0][:-1]]), cache=base)
    tokens = [last, 2, 3]
    expected = np.concatenate([np.array(model.base(mx.array([[t]]), cache=base)[0]) for t in tokens])
    np.testing.assert_allclose(logits_of(model, cache, tokens), expected, atol=1e-5)
    assert GUIDE.pieces[7] is None


def test_a_call_after_the_end_is_accepted(model: AcrossModel) -> None:
    last, cache = started(model, PROMPTS[0])
    before = logits_of(model, cache, [last, 2])[-1]
    after = logits_of(model, cache, [0])[0]
    assert np.isfinite(after).all()
    assert before.shape == after.shape


def test_a_token_takes_three_passes_of_the_guide_at_most() -> None:
    """One for the path, and one for each of two rounds of refinement."""
    model = tiny_across()
    last, cache = started(model, PROMPTS[0])
    assert isinstance(model.guide, AcrossGuide)
    for token in [last, 2, 3, 1, 5, 6, 7, 4, 1, 2, 3, 3]:
        before = model.guide.count.passes
        model(mx.array([[token]]), cache)
        assert model.guide.count.passes - before <= 1 + Refinement.rounds
    assert model.guide.count.positions == 12


def test_logits_of_the_guide_that_are_not_finite_are_seen() -> None:
    model = tiny_across()
    assert isinstance(model.guide, AcrossGuide)
    norm = model.guide.guide.model.model.norm
    norm.weight = norm.weight * mx.nan
    last, cache = started(model, PROMPTS[0])
    assert np.isnan(logits_of(model, cache, [last])).all()


def test_caches_that_cannot_go_back_are_refused() -> None:
    """Recurrent states, and windows."""
    for family in ("mamba", "gemma3_text"):
        guide = tiny_guide(family, 1)
        with pytest.raises(ModelError, match="the guide's prompt cache is recurrent, rotating or quantised"):
            AcrossGuide(guide, Pair(BASE, GUIDE, 7))


def test_a_guide_with_fewer_rows_than_its_tokenizer_has_ids() -> None:
    """A control token without a row is one that the guide never writes."""
    longer = TokenBytes([*GUIDE.pieces, None, b"bbb"], GUIDE.ends)
    own = tiny_own_guide()
    found, expected = (
        AcrossModel(tiny_base(), AcrossGuide(own, Pair(BASE, tokens, 7), EXACT), 0.7) for tokens in (longer, GUIDE)
    )
    for prompt in PROMPTS:
        assert greedy(found, prompt) == greedy(expected, prompt)


def test_an_answer_that_leaves_the_batch_takes_nothing_of_others_along(model: AcrossModel) -> None:
    """What was computed beside its own tokens is not part of its cache."""
    generator = BatchGenerator(model, max_tokens=4, stop_tokens=[])
    prompts = [started(model, prompt) for prompt in PROMPTS]
    generator.insert([[last] for last, _ in prompts], caches=[cache for _, cache in prompts])
    caches = []
    while responses := generator.next_generated():
        caches += [each.prompt_cache for each in responses if each.prompt_cache is not None]
    assert len(caches) == len(PROMPTS)
    for cache in caches:
        entry: Any = model.split_cache(cache)[1][0]
        assert all(sequence.fork is None and not sequence.known for sequence in entry.sequences)
