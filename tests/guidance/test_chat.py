from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.errors import RunError
from parm_mlx.guidance import chat
from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.generate import generate_batch, pieces
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.mlxlm import TokenizerWrapper

GREEDY = Sampling()
Loaded = tuple[GuidedModel, TokenizerWrapper, Prompter]


@pytest.fixture(scope="module", params=["base_lm", "arm_base"])
def loaded(request: pytest.FixtureRequest, official: Path, official_parm: Path) -> Loaded:
    """Two models, and one model for both."""
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / request.param, official_parm, beta=0.5)
    assert isinstance(model, SharedModel) == (request.param == "arm_base")
    return model, tokenizer, Prompter(tokenizer, guide_tokenizer)


class Counter:
    """Counts the tokens that a model reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        self.tokens = 0
        original = type(model).__call__

        def counted(this: Any, inputs: mx.array, *args: Any, **kwargs: Any) -> mx.array:
            if this is model:
                self.tokens += inputs.shape[1]
            return original(this, inputs, *args, **kwargs)

        monkeypatch.setattr(type(model), "__call__", counted)

    def take(self) -> int:
        taken, self.tokens = self.tokens, 0
        return taken


def talk(conversation: Conversation, question: str, tokens: int = 6) -> str:
    return "".join(chunk.text for chunk in conversation.ask(question, GREEDY, tokens))


def reference(loaded: Loaded, prompt: PromptTokens, alpha: tuple[float, ...], count: int = 6) -> tuple[str, list[int]]:
    """The answer of a fresh model as text and as tokens."""
    model, tokenizer, _ = loaded
    tokens = next(generate_batch(model, tokenizer, [Request(prompt, alpha, GREEDY)], count)).tokens
    return text_of(tokenizer, tokens, count), tokens


def text_of(tokenizer: TokenizerWrapper, tokens: list[int], count: int) -> str:
    """Random bytes read differently piece by piece, so the text is put together as in a conversation."""
    return "".join(
        piece.text
        for piece in pieces(iter([*tokens, *tokenizer.eos_token_ids]), tokenizer, count, PromptTokens([], []))
    )


def follow(tokenizer: TokenizerWrapper, asked: PromptTokens, answer: list[int], question: str) -> PromptTokens:
    """By the template of both models an answer is followed by its end, which is token 2, and by the next question."""
    after = [*answer, 2, *tokenizer.encode(f"USER: {question} ASSISTANT:", add_special_tokens=False)]
    return PromptTokens([*asked.base, *after], [*asked.guide, *after])


QUESTIONS = ("What is the capital of France?", "Tell me a joke.", "And another?")


def test_every_turn_answers_as_a_fresh_model_would_and_reads_only_what_is_new(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn reads what follows the last answer, and the answer itself while it is written: 6 tokens, but for one
    that is read or not, depending on how far the generator runs ahead."""
    model, tokenizer, prompter = loaded
    alpha = (0.3, 0.7)
    conversation = Conversation(model, tokenizer, prompter, alpha, system_prompt=None)
    prompt = prompter(QUESTIONS[0])
    read = Counter(monkeypatch, model)
    answered: list[int] = []
    for number, question in enumerate(QUESTIONS):
        before = len(prompt.base) + len(answered) if number else 0
        prompt = follow(tokenizer, prompt, answered, question) if number else prompt
        read.take()
        answer = talk(conversation, question)
        new = read.take()
        expected, answered = reference(loaded, prompt, alpha)
        assert answer == expected
        assert new - (len(prompt.base) - before) in (len(answered), len(answered) - 1, len(answered) + 1)


def test_a_switch_of_alpha_recomputes_the_guide_only(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (1.0, 0.0))
    talk(conversation, QUESTIONS[0])
    first = prompter(QUESTIONS[0])
    prompt = follow(tokenizer, first, reference(loaded, first, (1.0, 0.0))[1], QUESTIONS[1])
    base, guide = Counter(monkeypatch, model.base), Counter(monkeypatch, model.guide)
    conversation.alpha = (0.0, 1.0)
    assert conversation.alpha == (0.0, 1.0)
    answer = talk(conversation, QUESTIONS[1])
    base_read, guide_read = base.take(), guide.take()
    assert answer == reference(loaded, prompt, (0.0, 1.0))[0]
    assert guide_read >= len(prompt.guide) - 1, "all but the last token, which both read together"
    assert base_read < guide_read


@pytest.mark.parametrize("by_model", [False, True])
def test_drafts_change_no_answer_of_a_conversation(loaded: Loaded, by_model: bool) -> None:
    """Over turns, switches of α and an answer that is stopped in the middle of what was checked."""
    model, tokenizer, prompter = loaded
    drafting = Drafting(model.base if by_model else None, 4)
    conversation = Conversation(model, tokenizer, prompter, (0.3, 0.7), drafting=drafting)
    prompt = prompter(QUESTIONS[0])
    for question, following in pairwise((*QUESTIONS[:2], "Hi")):
        answer = talk(conversation, question, 9)
        expected, tokens = reference(loaded, prompt, (0.3, 0.7), 9)
        assert answer == expected
        prompt = follow(tokenizer, prompt, tokens, following)
    stream = conversation.ask("Hi", GREEDY, 20)
    next(stream), next(stream)
    stream.close()
    conversation.alpha = (1.0, 0.0)
    part = reference(loaded, prompt, (0.3, 0.7), 2)[1]
    prompt = follow(tokenizer, prompt, part, "Go on.")
    assert talk(conversation, "Go on.") == reference(loaded, prompt, (1.0, 0.0))[0]
    assert conversation.drafts.drafted > conversation.drafts.accepted > 0


def test_an_answer_that_is_stopped_stays_in_the_conversation(loaded: Loaded) -> None:
    model, tokenizer, prompter = loaded
    alpha = (0.5, 0.5)
    conversation = Conversation(model, tokenizer, prompter, alpha)
    stream = conversation.ask("Tell me a joke about cats.", GREEDY, 20)
    next(stream), next(stream)
    stream.close()
    asked = prompter("Tell me a joke about cats.")
    prompt = follow(tokenizer, asked, reference(loaded, asked, alpha, 2)[1], "Go on.")
    assert talk(conversation, "Go on.") == reference(loaded, prompt, alpha)[0]
    assert conversation.last_question == prompt


def test_reset_forgets(loaded: Loaded) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5))
    assert conversation.last_question is None
    first = talk(conversation, "Tell me a joke.")
    assert conversation.last_question == prompter("Tell me a joke.")
    talk(conversation, "Another.")
    conversation.reset()
    assert conversation.last_question is None
    assert talk(conversation, "Tell me a joke.") == first


def test_an_error_drops_the_question_and_leaves_a_usable_conversation(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5))
    with monkeypatch.context() as patch:
        patch.setattr(type(model.guide), "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            talk(conversation, "Tell me a joke.")
    assert conversation.last_question is None
    assert talk(conversation, "Hi") == reference(loaded, prompter("Hi"), (0.5, 0.5))[0]


def test_a_turn_whose_prompt_cannot_be_read_leaves_the_turns_before_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5))
    talk(conversation, "Hi")
    with monkeypatch.context() as patch:
        patch.setattr(chat, "prefill", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            talk(conversation, "Tell me a joke.")
    assert conversation.last_question == prompter("Hi")
    prompt = follow(tokenizer, prompter("Hi"), reference(loaded, prompter("Hi"), (0.5, 0.5))[1], "More.")
    assert talk(conversation, "More.") == reference(loaded, prompt, (0.5, 0.5))[0]
    assert conversation.last_question == prompt


@pytest.mark.parametrize("drafting", [None, Drafting(None, 3)])
def test_logits_that_are_not_finite_end_the_turn_and_not_the_conversation(
    loaded: Loaded, drafting: Drafting | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5), drafting=drafting)
    first = talk(conversation, "Hi")
    original = type(model.guide).run
    with monkeypatch.context() as patch:
        patch.setattr(type(model.guide), "run", lambda *a, **k: original(*a, **k) * mx.nan)
        with pytest.raises(RunError, match="not finite: an answer ended after 0 tokens"):
            talk(conversation, "Tell me a joke.")
    prompt = follow(tokenizer, prompter("Hi"), reference(loaded, prompter("Hi"), (0.5, 0.5))[1], "More.")
    assert first
    assert talk(conversation, "More.") == reference(loaded, prompt, (0.5, 0.5))[0]


def test_templates_of_base_and_guide_may_differ(official: Path, official_parm: Path) -> None:
    """The guide's puts a name before an answer that its prompt for one does not have: the answer is read again."""
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / "base_lm", official_parm)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    guide_tokenizer._tokenizer.chat_template = template
    prompter = Prompter(tokenizer, guide_tokenizer)
    loaded = (model, tokenizer, prompter)
    asked = prompter("Tell me a joke.")
    assert asked.base != asked.guide
    conversation = Conversation(model, tokenizer, prompter, (0.2, 0.8))
    answer = talk(conversation, "Tell me a joke.")
    expected, tokens = reference(loaded, asked, (0.2, 0.8))
    assert answer == expected
    text = f"[user] Tell me a joke.\n[assistant] {answer}\n[user] More.\n"
    guide = [1, *guide_tokenizer.encode(text, add_special_tokens=False)]
    prompt = PromptTokens(follow(tokenizer, asked, tokens, "More.").base, guide)
    assert talk(conversation, "More.") == reference(loaded, prompt, (0.2, 0.8))[0]
    assert conversation.last_question == prompt
