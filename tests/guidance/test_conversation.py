from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.guidance.batch import generate_batch
from parm_mlx.guidance.conversation import Conversation
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.model import GuidedModel
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.requests import Request
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.guidance.stream import pieces
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


def reference(loaded: Loaded, messages: list[dict[str, str]], alpha: tuple[float, ...], tokens: int = 6) -> str:
    model, tokenizer, prompter = loaded
    answer = next(generate_batch(model, tokenizer, [Request(prompter(messages), alpha, GREEDY)], tokens))
    # Random bytes read differently piece by piece, so the text is put together as in a conversation.
    return "".join(piece.text for piece in pieces(iter([*answer.tokens, *tokenizer.eos_token_ids]), tokenizer, tokens))


def test_every_turn_answers_as_a_fresh_model_would_and_reads_only_what_is_new(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, prompter = loaded
    alpha = (0.3, 0.7)
    conversation = Conversation(model, tokenizer, prompter, alpha, system_prompt=None)
    messages: list[dict[str, str]] = []
    read = Counter(monkeypatch, model)
    for number, question in enumerate(("What is the capital of France?", "Tell me a joke.", "And another?")):
        messages.append({"role": "user", "content": question})
        read.take()
        answer = talk(conversation, question)
        new = read.take()
        assert answer == reference(loaded, messages, alpha)
        messages.append({"role": "assistant", "content": answer})
        whole = len(prompter(messages[:-1]).base)
        if number:
            assert new < whole, "the cached turns were read again"


def test_a_switch_of_alpha_recomputes_the_guide_only(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (1.0, 0.0))
    first = talk(conversation, "What is the capital of France?")
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Tell me a joke."},
    ]
    base, guide = Counter(monkeypatch, model.base), Counter(monkeypatch, model.guide)
    conversation.alpha = (0.0, 1.0)
    assert conversation.alpha == (0.0, 1.0)
    answer = talk(conversation, "Tell me a joke.")
    base_read, guide_read = base.take(), guide.take()
    assert answer == reference(loaded, messages, (0.0, 1.0))
    assert guide_read >= len(prompter(messages).guide) - 1, "all but the last token, which both read together"
    assert base_read < guide_read


@pytest.mark.parametrize("by_model", [False, True])
def test_drafts_change_no_answer_of_a_conversation(loaded: Loaded, by_model: bool) -> None:
    """Over turns, switches of α and an answer that is stopped in the middle of what was checked."""
    model, tokenizer, prompter = loaded
    drafting = Drafting(model.base if by_model else None, 4)
    conversation = Conversation(model, tokenizer, prompter, (0.3, 0.7), drafting=drafting)
    messages: list[dict[str, str]] = []
    for question, alpha in (("What is the capital of France?", (0.3, 0.7)), ("Tell me a joke.", (0.3, 0.7))):
        messages.append({"role": "user", "content": question})
        answer = talk(conversation, question, 9)
        assert answer == reference(loaded, messages, alpha, 9)
        messages.append({"role": "assistant", "content": answer})
    stream = conversation.ask("Hi", GREEDY, 20)
    part = next(stream).text + next(stream).text
    stream.close()
    conversation.alpha = (1.0, 0.0)
    messages += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": part}]
    messages.append({"role": "user", "content": "Go on."})
    assert talk(conversation, "Go on.") == reference(loaded, messages, (1.0, 0.0))
    assert conversation.drafts.drafted > conversation.drafts.accepted > 0


def test_an_answer_that_is_stopped_stays_in_the_conversation(loaded: Loaded) -> None:
    model, tokenizer, prompter = loaded
    alpha = (0.5, 0.5)
    conversation = Conversation(model, tokenizer, prompter, alpha)
    stream = conversation.ask("Tell me a joke about cats.", GREEDY, 20)
    part = next(stream).text + next(stream).text
    stream.close()
    messages = [
        {"role": "user", "content": "Tell me a joke about cats."},
        {"role": "assistant", "content": part},
        {"role": "user", "content": "Go on."},
    ]
    assert talk(conversation, "Go on.") == reference(loaded, messages, alpha)


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


def test_an_error_while_reading_leaves_a_usable_conversation(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, prompter = loaded
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5))
    with monkeypatch.context() as patch:
        patch.setattr(type(model.guide), "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            talk(conversation, "Tell me a joke.")
    conversation.reset()
    assert talk(conversation, "Hi") == reference(loaded, [{"role": "user", "content": "Hi"}], (0.5, 0.5))


def test_templates_of_base_and_guide_may_differ(official: Path, official_parm: Path) -> None:
    model, tokenizer, guide_tokenizer = load_with_tokenizers(official / "base_lm", official_parm)
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    guide_tokenizer._tokenizer.chat_template = template
    prompter = Prompter(tokenizer, guide_tokenizer)
    loaded = (model, tokenizer, prompter)
    tokens = prompter("Tell me a joke.")
    assert tokens.base != tokens.guide
    conversation = Conversation(model, tokenizer, prompter, (0.2, 0.8))
    messages = [{"role": "user", "content": "Tell me a joke."}]
    answer = talk(conversation, "Tell me a joke.")
    assert answer == reference(loaded, messages, (0.2, 0.8))
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "More."}]
    assert talk(conversation, "More.") == reference(loaded, messages, (0.2, 0.8))
