"""Prompts are read in one thread and answers decoded in another: arrays that are not evaluated cannot cross."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from tiny import tiny_guide, tiny_guided, tiny_model, tiny_shared

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guide import Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load
from parm_mlx.guidance.prefill import PrefixCaches, prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.speculation import Drafting, Speculation
from parm_mlx.mlxlm import BatchGenerator, generate_step

ALPHA, SAMPLING, TOKENS = (0.3, 0.7), Sampling(temp=0.8, seed=3), 6
# The same for base and guide; of other lengths and with other last tokens; and with one token only.
PROMPTS = [([5, 6, 7], [5, 6, 7]), ([5, 6, 7], [9, 8, 7, 6]), ([5], [8])]


def weighed() -> GuidedModel:
    guides = [tiny_guide("llama", seed, objectives=(name,), r2=0) for seed, name in ((1, "a"), (2, "b"))]
    return GuidedModel(tiny_model(), Guides(guides))


MODELS = {"two": tiny_guided, "shared": tiny_shared, "reward models": weighed}


def elsewhere(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", MODELS)
def test_one_answer(kind: str, prompt: tuple[list[int], list[int]]) -> None:
    model = MODELS[kind]()

    def start() -> Callable[[], list[int]]:
        cache = model.make_cache(ALPHA)
        last, sampler = prefill(model, cache, *prompt), SAMPLING.sampler(2)

        def decode() -> list[int]:
            steps = generate_step(mx.array([last]), model, max_tokens=TOKENS, sampler=sampler, prompt_cache=cache)
            return [int(token) for token, _ in steps]

        return decode

    assert elsewhere(start()) == start()()


@pytest.mark.parametrize("kind", MODELS)
def test_a_batch(kind: str) -> None:
    """Three preferences of a prompt that is read once, and three prompts of one preference each."""
    model = MODELS[kind]()
    alphas = (ALPHA, (1.0, 0.0), (0.5, 0.5))
    requests = [Request(PromptTokens(*PROMPTS[1]), alpha, SAMPLING) for alpha in alphas]
    requests += [Request(PromptTokens([*base, 4], [*guide, 3]), ALPHA, SAMPLING, 1) for base, guide in PROMPTS]

    def start() -> Callable[[], list[list[int]]]:
        unread, caches = zip(*PrefixCaches(model, requests)(requests), strict=True)
        samplers = [request.sampling.sampler(request.seed_offset) for request in requests]

        def decode() -> list[list[int]]:
            generator = BatchGenerator(model, max_tokens=TOKENS)
            uids = generator.insert(list(unread), caches=list(caches), samplers=samplers)
            answers: dict[int, list[int]] = {uid: [] for uid in uids}
            while responses := generator.next_generated():
                for response in responses:
                    answers[response.uid].append(response.token)
            generator.close()
            return list(answers.values())

        return decode

    assert elsewhere(start()) == start()()


@pytest.mark.parametrize("by_model", [False, True])
@pytest.mark.parametrize("kind", ["two", "shared"])
def test_drafts(kind: str, by_model: bool) -> None:
    model, drafting = MODELS[kind](), Drafting(tiny_model(seed=5) if by_model else None, 2)
    base, guide = PROMPTS[1]

    def start() -> Callable[[], list[int]]:
        cache, draft = model.make_cache(ALPHA), drafting.make_cache()
        last = prefill(model, cache, base, guide)
        drafting.prefill(draft, base)
        speculation = Speculation(model, cache, last, drafting, SAMPLING, 2, draft)
        return lambda: list(islice(speculation, TOKENS))

    assert elsewhere(start()) == start()()


def test_loaded_models(official: Path, official_parm: Path) -> None:
    """Weights, adapters and the frequencies of positions, all loaded here and used there first."""
    request = Request(PromptTokens([5, 6, 7], [5, 6, 7]), (0.3, 0.7), SAMPLING)

    def answer(model: GuidedModel, tokenizer: Any) -> list[int]:
        return next(generate_batch(model, tokenizer, [request], TOKENS)).tokens

    for base in ("base_lm", "arm_base"):
        there, here = (load(official / base, official_parm) for _ in range(2))
        assert elsewhere(lambda there=there: answer(*there)) == answer(*here)  # type: ignore[misc]
