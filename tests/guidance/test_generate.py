from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from tiny import tiny_guided

from parm_mlx.guidance import prefill
from parm_mlx.guidance.generate import Answer, generate_batch, in_order
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.loading import load_base, load_with_tokenizers
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.mlxlm import TokenizerWrapper

Loaded = tuple[object, TokenizerWrapper, Prompter]


@pytest.fixture(scope="module")
def loaded(official: Path, official_parm: Path) -> Loaded:
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / "base_lm", official_parm)
    return model, tokenizer, Prompter(tokenizer, guide_tokenizer)


def run(loaded: Loaded, requests: list[Request], tokens: int = 12) -> list[Answer]:
    model, tokenizer, _ = loaded
    return sorted(generate_batch(model, tokenizer, requests, tokens), key=lambda answer: answer.index)  # type: ignore[arg-type]


def test_sampled_answers_depend_on_prompt_preference_and_seed_alone(loaded: Loaded) -> None:
    _, _, prompter = loaded
    sampling = Sampling(temp=1.0, top_p=0.95, top_k=50, min_p=0.01, seed=5)
    requests = [
        Request(prompter(text), alpha, sampling, number)
        for number, text in enumerate(("Tell me a joke.", "What is the capital of France?", "Hi"))
        for alpha in ((1.0, 0.0), (0.5, 0.5), None)
    ]
    together = run(loaded, requests)
    assert [answer.tokens for answer in together] == [run(loaded, [request])[0].tokens for request in requests]
    other = [Request(r.prompt, r.alpha, Sampling(temp=1.0, seed=6), r.seed_offset) for r in requests]
    assert [a.tokens for a in run(loaded, other)] != [a.tokens for a in together]


@pytest.mark.parametrize("base", ["base_lm", "arm_base"])
def test_drafted_answers_are_the_batched_ones(official: Path, official_parm: Path, base: str) -> None:
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / base, official_parm)
    prompter = Prompter(tokenizer, guide_tokenizer)
    requests = [
        Request(prompter(text), alpha, Sampling(), number)
        for number, text in enumerate(("Tell me a joke.", "What is the capital of France?"))
        for alpha in ((1.0, 0.0), (0.3, 0.7), None)
    ]
    batched = run((model, tokenizer, prompter), requests, 30)
    for drafting in (Drafting(None, 3), Drafting(load_base(official / "base_lm")[0], 2)):
        drafted = sorted(
            generate_batch(model, tokenizer, requests, 30, drafting=drafting), key=lambda answer: answer.index
        )
        assert [(a.text, a.tokens, a.finish_reason) for a in drafted] == [
            (a.text, a.tokens, a.finish_reason) for a in batched
        ]
        assert [answer.drafts is None for answer in drafted] == [request.alpha is None for request in requests]
    asked = iter([False, False, True])
    stopped = generate_batch(model, tokenizer, requests[:1], 12, stopped=lambda: next(asked), drafting=Drafting(None))
    assert list(stopped) == []


def test_a_model_that_cannot_be_batched_answers_one_after_the_other(loaded: Loaded) -> None:
    _, tokenizer, _ = loaded
    model = tiny_guided("llama4")
    prompts = [PromptTokens([5, 6, 7], [5, 6, 7]), PromptTokens([9, 8], [9, 8])]
    requests = [Request(prompt, (0.3, 0.7), Sampling()) for prompt in prompts] + [Request(prompts[0], None, Sampling())]
    answers = sorted(generate_batch(model, tokenizer, requests, 8), key=lambda answer: answer.index)
    for request, answer in zip(requests, answers, strict=True):
        runs = model if request.alpha else model.base
        cache = model.make_cache(request.alpha) if request.alpha else model.base.make_cache()
        steps = generate_step(mx.array(request.prompt.base), runs, max_tokens=8, prompt_cache=cache)
        expected = [token for token, _ in steps]
        assert answer.tokens == expected[: len(answer.tokens)]
        assert len(answer.tokens) == 8 or expected[len(answer.tokens)] in tokenizer.eos_token_ids


@pytest.mark.parametrize("base", ["base_lm", "arm_base"])
def test_a_prompt_asked_at_several_preferences_is_read_once_by_the_base(
    official: Path, official_parm: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three preferences and one more prompt; the answers are those of each alone. One backbone needs no pass for it."""
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / base, official_parm)
    prompter = Prompter(tokenizer, guide_tokenizer)
    first, second = prompter("Tell me a joke."), prompter("What is the capital of France?")
    own = PromptTokens(second.base, [*first.guide[:-1], 7])
    requests = [
        Request(prompt, alpha, Sampling())
        for prompt, alpha in ((first, (1.0, 0.0)), (second, (0.5, 0.5)), (first, (0.0, 1.0)), (own, (0.3, 0.7)))
    ]
    expected = [run((model, tokenizer, prompter), [request])[0].tokens for request in requests]
    lengths: list[int] = []
    original = type(model.base).__call__

    def counted(this: object, inputs: mx.array, *args: object, **kwargs: object) -> mx.array:
        if this is model.base:
            lengths.append(inputs.shape[1])
        return original(this, inputs, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.base), "__call__", counted)
    together = run((model, tokenizer, prompter), requests)
    assert [answer.tokens for answer in together] == expected
    assert lengths.count(len(first.base) - 1) == (base == "base_lm")
    assert len({tuple(tokens) for tokens in expected}) == 4


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_holds_no_more_caches_than_its_size(
    loaded: Loaded, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven preferences of one prompt: the guide never reads for more of them at once, and the answers are the same."""
    model, tokenizer, prompter = loaded
    prompt = prompter("Tell me a joke.")
    requests = [Request(prompt, (i / 6, 1 - i / 6), Sampling()) for i in range(7)]
    expected = [answer.tokens for answer in run(loaded, requests)]
    rows: list[int] = []
    original = Guide.__call__

    def counted(this: Guide, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        rows.append(inputs.shape[0])
        return original(this, inputs, *args, **kwargs)

    monkeypatch.setattr(Guide, "__call__", counted)
    answers = list(generate_batch(model, tokenizer, requests, 12, batch_size))  # type: ignore[arg-type]
    assert [answer.tokens for answer in sorted(answers, key=lambda answer: answer.index)] == expected
    assert max(rows) == batch_size


def test_prefill_returns_its_buffers_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tokens before the last one, two at a time, by base and guide each: two pauses each; a short one has none."""
    cleared: list[int] = []
    monkeypatch.setattr(prefill, "STEP", 2)
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(1))
    model = tiny_guided()
    assert prefill.prefill(model, model.make_cache(), [1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]) == 7
    assert len(cleared) == 4
    prefill.prefill(model, model.make_cache(), [1, 2, 3], [3, 2, 1])
    assert len(cleared) == 4


def test_unguided_requests_ask_the_base_alone(loaded: Loaded) -> None:
    model, _, prompter = loaded
    prompt = prompter("Tell me a joke.")
    expected = [t for t, _ in generate_step(mx.array(prompt.base), model.base, max_tokens=12)]  # type: ignore[attr-defined]
    assert run(loaded, [Request(prompt, None, Sampling())])[0].tokens == expected


def test_guide_prompts_of_their_own_run_in_the_same_batch(loaded: Loaded) -> None:
    _, _, prompter = loaded
    plain = prompter("Tell me a joke.")
    own = PromptTokens(plain.base, [*prompter("What is the capital of France?").guide[:-1], 7])
    requests = [Request(prompt, (0.3, 0.7), Sampling()) for prompt in (plain, own, plain)]
    together = [answer.tokens for answer in run(loaded, requests)]
    assert together[0] == together[2] != together[1]
    assert together == [run(loaded, [request])[0].tokens for request in requests]


def test_a_stop_drops_what_is_not_finished(loaded: Loaded) -> None:
    model, tokenizer, prompter = loaded
    requests = [Request(prompter("Tell me a joke."), (0.3, 0.7), Sampling())]
    asked = iter([False, False, True])
    assert list(generate_batch(model, tokenizer, requests, 12, stopped=lambda: next(asked))) == []  # type: ignore[arg-type]
    assert next(asked, None) is None


def test_answers_in_the_order_of_their_requests() -> None:
    ended = [Answer(index, "", [], "stop") for index in (2, 0, 3, 1)]
    read: list[int] = []
    ordered = in_order(read.append(answer.index) or answer for answer in ended)  # type: ignore[func-returns-value]
    assert next(ordered).index == 0
    assert read == [2, 0], "an answer waits only for those before it"
    assert [answer.index for answer in ordered] == [1, 2, 3]


def test_answers_end_at_the_limit_or_at_the_end_token(loaded: Loaded) -> None:
    """The answer has two tokens before its end."""
    _, tokenizer, prompter = loaded
    request = Request(prompter("Can you help me?"), (0.0, 1.0), Sampling())
    ended, cut = run(loaded, [request], 40)[0], run(loaded, [request], 1)[0]
    assert (ended.finish_reason, len(ended.tokens)) == ("stop", 2)
    assert (cut.finish_reason, cut.tokens) == ("length", ended.tokens[:1])
    assert not set(ended.tokens) & set(tokenizer.eos_token_ids)
    assert ended.text == tokenizer.decode(ended.tokens)
