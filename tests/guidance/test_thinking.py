"""The marks are made up from what the base writes: its first token begins a thought, two later ones end it."""

from dataclasses import replace
from pathlib import Path

import pytest

from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.generate import Answer, generate_batch, stream
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.guidance.thinking import Thinking
from parm_mlx.mlxlm import TokenizerWrapper

ALPHA = (0.0, 1.0)
QUESTIONS = "Tell me a joke.", "What is the capital of France?"
LONGEST = 14
Loaded = tuple[GuidedModel, TokenizerWrapper, Prompter]


@pytest.fixture(scope="module", params=["base_lm", "arm_base"])
def loaded(request: pytest.FixtureRequest, official: Path, official_parm: Path) -> Loaded:
    """Two models, and one model for both; the guide is strong."""
    model, tokenizer, other = load_with_tokenizers(official / request.param, official_parm, beta=0.1)
    return model, tokenizer, Prompter(tokenizer, other)


def answer(loaded: Loaded, request: Request, tokens: int, drafting: Drafting | None = None) -> Answer:
    return next(iter(generate_batch(loaded[0], loaded[1], [request], tokens, drafting=drafting)))


def thinking(loaded: Loaded, question: str, steered: bool = False) -> tuple[PromptTokens, list[int]]:
    """A prompt whose answer begins with a thought, and that thought."""
    prompt = loaded[2](question)
    written = answer(loaded, Request(prompt, None, Sampling()), LONGEST - 4).tokens
    length = next(n for n in range(6, len(written)) if written[n - 2 : n] not in pairwise_lists(written[: n - 1]))
    thought = written[:length]
    return replace(prompt, thinking=Thinking(tuple(thought[:1]), tuple(thought[-2:]), steered)), thought


def pairwise_lists(tokens: list[int]) -> list[list[int]]:
    return [tokens[i : i + 2] for i in range(len(tokens) - 1)]


def whole(text: str) -> str:
    """Letters and digits of a text: its other bytes may read differently piece by piece."""
    return "".join(letter for letter in text if letter.isascii() and letter.isalnum())


def test_the_guide_steers_the_answer_and_not_the_thought(loaded: Loaded) -> None:
    for question in QUESTIONS:
        prompt, thought = thinking(loaded, question)
        after = Request(PromptTokens(prompt.base + thought, prompt.guide + thought), ALPHA, Sampling())
        expected = answer(loaded, after, LONGEST - len(thought))
        request = Request(prompt, ALPHA, Sampling())
        assert answer(loaded, replace(request, prompt=loaded[2](question)), 6).tokens != thought  # it would steer it
        for drafting in (None, Drafting(None, 3)):
            found = answer(loaded, request, LONGEST, drafting)
            assert found.tokens == thought + expected.tokens
            assert (found.text, found.finish_reason) == (expected.text.lstrip(), "length")
            assert found.reasoning == loaded[1].decode(thought)
            printed = list(stream(loaded[0], loaded[1], request, LONGEST, drafting))
            shown = ["".join(piece.text for piece in printed if piece.is_thought == kind) for kind in (True, False)]
            assert [*map(whole, shown)] == [whole(found.reasoning), whole(found.text)]


def test_a_batch_thinks_as_each_alone_does(loaded: Loaded) -> None:
    sampling = Sampling(temp=0.8, seed=3)
    prompts = [thinking(loaded, question)[0] for question in QUESTIONS] + [loaded[2]("Hi")]
    requests = [Request(prompt, alpha, sampling) for prompt in prompts for alpha in (ALPHA, (1.0, 0.0), None)]
    requests += [Request(thinking(loaded, question)[0], ALPHA, Sampling()) for question in QUESTIONS]
    together = sorted(generate_batch(loaded[0], loaded[1], requests, LONGEST), key=lambda found: found.index)
    assert [found.tokens for found in together] == [answer(loaded, each, LONGEST).tokens for each in requests]


def test_steered_thoughts_are_guided_as_answers_are(loaded: Loaded) -> None:
    plain = loaded[2](QUESTIONS[0])
    guided = answer(loaded, Request(plain, ALPHA, Sampling()), LONGEST).tokens
    marks = Thinking(tuple(guided[:1]), tuple(guided[3:5]), steered=True)
    found = answer(loaded, Request(replace(plain, thinking=marks), ALPHA, Sampling()), LONGEST)
    assert found.tokens == guided
    assert found.text == loaded[1].decode(guided[5:]).lstrip()


def test_a_model_that_does_not_think_is_guided_from_its_first_token(loaded: Loaded) -> None:
    prompt = loaded[2](QUESTIONS[0])
    expected = answer(loaded, Request(prompt, ALPHA, Sampling()), LONGEST)
    first = answer(loaded, Request(prompt, None, Sampling()), 2).tokens
    other = next(token for token in range(100) if token not in (*first, *expected.tokens))
    for start in ((other,), (first[0], other), (other, other, other)):
        request = Request(replace(prompt, thinking=Thinking(start, (other,))), ALPHA, Sampling())
        assert answer(loaded, request, LONGEST) == expected
        printed = "".join(piece.text for piece in stream(loaded[0], loaded[1], request, LONGEST))
        assert whole(printed) == whole(expected.text)


def test_a_thought_that_ends_at_the_limit_leaves_no_room_for_an_answer(loaded: Loaded) -> None:
    prompt, thought = thinking(loaded, QUESTIONS[0])
    for drafting in (None, Drafting(None)):
        for tokens in (1, 4, len(thought)):
            found = answer(loaded, Request(prompt, ALPHA, Sampling()), tokens, drafting)
            assert (found.text, found.tokens, found.finish_reason) == ("", thought[:tokens], "length")


def test_a_template_may_begin_the_thought(loaded: Loaded) -> None:
    prompt, thought = thinking(loaded, QUESTIONS[0])
    marks = prompt.thinking
    assert marks is not None
    begun = PromptTokens(prompt.base + thought[:1], prompt.guide + thought[:1], marks, marks.opened(thought[:1]))
    assert begun.opened
    entire = answer(loaded, Request(prompt, ALPHA, Sampling()), LONGEST)
    rest = answer(loaded, Request(begun, ALPHA, Sampling()), LONGEST - 1)
    assert (rest.tokens, rest.text) == (entire.tokens[1:], entire.text)


class Thinks(Prompter):
    """Has these marks in every prompt."""

    def __init__(self, prompter: Prompter, marks: Thinking | None) -> None:
        self.__dict__ |= vars(prompter) | {"_thinking": marks}


def test_a_conversation_keeps_its_caches_over_thoughts(loaded: Loaded) -> None:
    model, tokenizer, prompter = loaded
    prompt, _ = thinking(loaded, QUESTIONS[0])
    talk = Conversation(model, tokenizer, Thinks(prompter, prompt.thinking), ALPHA)
    pieces = list(talk.ask(QUESTIONS[0], Sampling(), LONGEST))
    found = answer(loaded, Request(prompt, ALPHA, Sampling()), LONGEST)
    assert whole("".join(piece.text for piece in pieces if not piece.is_thought)) == whole(found.text)
    second = "".join(piece.text for piece in talk.ask("And now?", Sampling(), LONGEST))
    assert talk.last_question is not None
    assert talk.last_question.base[: len(prompt.base) + LONGEST] == prompt.base + found.tokens
    again = answer(loaded, Request(talk.last_question, ALPHA, Sampling()), LONGEST)
    assert whole(second) == whole(again.reasoning + again.text)


def test_the_marks_are_those_of_the_tokenizer() -> None:
    class Marked:
        has_thinking, think_start_tokens, think_end_tokens = True, (7,), (8, 9)

    class Plain:
        has_thinking = False

    marks = Thinking.of(Marked())  # type: ignore[arg-type]
    assert marks == Thinking((7,), (8, 9))
    assert Thinking.of(Plain()) is None  # type: ignore[arg-type]
    assert [marks.opened(prompt) for prompt in ([1, 7], [7, 3, 3], [7, 8, 9, 3], [7, 3, 3, 3], [])] == [
        True,
        True,
        False,
        False,
        False,
    ]

    assert list(marks.think(iter([7, 1, 8, 9, 2]), False)) == [7, 1, 8, 9]
    assert list(marks.think(iter([1, 8, 9, 2]), False)) == []
    assert list(marks.think(iter([1, 8, 9, 2]), True)) == [1, 8, 9]
    assert list(marks.think(iter([7, 1, 8]), False)) == [7, 1, 8]


def test_a_tokenizer_with_marks_and_a_template_that_knows_them(official: Path, official_parm: Path) -> None:
    model, tokenizer, other = load_with_tokenizers(official / "base_lm", official_parm, beta=0.1)
    plain = Prompter(tokenizer, other)
    _, thought = thinking((model, tokenizer, plain), QUESTIONS[0])
    tokenizer._think_start, tokenizer._think_end = "<think>", "</think>"
    tokenizer._think_start_tokens, tokenizer._think_end_tokens = thought[:1], thought[-2:]
    prompt = Prompter(tokenizer, other)(QUESTIONS[0])
    assert prompt.thinking == Thinking(tuple(thought[:1]), tuple(thought[-2:]))
    assert not prompt.opened
    found = answer((model, tokenizer, plain), Request(prompt, ALPHA, Sampling()), LONGEST)
    bare = PromptTokens(prompt.base + thought, prompt.guide + thought)
    assert (
        found.tokens[len(thought) :]
        == answer((model, tokenizer, plain), Request(bare, ALPHA, Sampling()), LONGEST - len(thought)).tokens
    )
    steered = Prompter(tokenizer, other, steer_thinking=True)(QUESTIONS[0])
    assert answer((model, tokenizer, plain), Request(steered, ALPHA, Sampling()), LONGEST).tokens[:3] != thought[:3]
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking %} on{% else %} off{% endif %}"
    texts = [
        tokenizer.decode(Prompter(tokenizer, other, enable_thinking=told)("Hi").base).strip()
        for told in (True, False, None)
    ]
    assert [text.split()[-1] for text in texts] == ["on", "off", "on"]
