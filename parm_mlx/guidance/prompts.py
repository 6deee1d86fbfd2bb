"""From conversations to prompt tokens, for the base and for the guide, which may need different templates."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from parm_mlx.errors import InputError, ModelError, ParmError, first_line
from parm_mlx.guidance.encoding import encode, escape, unembedded_token, unescape
from parm_mlx.guidance.templates import CHAT_TEMPLATES, PLAIN, Content, Message, as_messages, check_template, render
from parm_mlx.guidance.thinking import Thinking
from parm_mlx.mlxlm import TokenizerWrapper

_ANSWER = "Answer0Mark"  # stands for an answer while its place in a rendered conversation is looked for
_DATE = re.compile(r"""strftime_now\(\s*(['"])(?P<format>.*?)\1\s*\)""")
_STARTED = datetime.now()  # the date that templates write, the same all through a run


@dataclass(frozen=True)
class Prompt:
    """A question: a user's text, or the messages of a conversation, under an id; and its line in its file."""

    id: str
    content: Content
    line: int = 0


def content_id(content: Content) -> str:
    """A short name for a prompt that has none: the beginning of the SHA-256 of its content."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class PromptTokens:
    """One prompt as the base and as the guide read it; both are continued by the same tokens.

    Attributes:
        base: The base's token ids.
        guide: What the guide reads: token ids of its own, and tokens of the base with ``shift`` added.
        thinking: The marks of a thought that may come before the answer; None where the tokenizer has none.
        opened: The template has begun the thought.
        shift: That of the guided model.
    """

    base: list[int]
    guide: list[int]
    thinking: Thinking | None = None
    opened: bool = False
    shift: int = 0

    @property
    def is_one(self) -> bool:
        """True if base and guide read the same tokens."""
        return self.shift == 0 and self.base == self.guide

    def for_guide(self, tokens: Sequence[int]) -> list[int]:
        """What the guide reads where the base reads tokens."""
        return [token + self.shift for token in tokens]

    def room(self, limit: int | None, most: int) -> int:
        """Tokens that may follow: at most as many as models of this context length were made for, and one at least."""
        return most if limit is None else max(min(most, limit - max(len(self.base), len(self.guide))), 1)

    def after(self, tokens: Sequence[int]) -> "PromptTokens":
        """The prompt and the first tokens that continue it."""
        return replace(self, base=[*self.base, *tokens], guide=[*self.guide, *self.for_guide(tokens)], opened=False)


class TooLongError(InputError):
    """A prompt is longer than the models can read."""


class Prompter:
    """Renders and tokenises prompts for a base and its guide.

    Args:
        base: The base's tokenizer.
        guide: The guide's tokenizer.
        template: Applies chat templates; without, a prompt is plain text to continue.
        base_template: Name of the base's chat template. By default its tokenizer's own, or, where it has none,
            the guide's.
        guide_template: Name of the chat template that the guide was trained with. By default its tokenizer's own, or,
            where it has none, the base's.
        limit: Most tokens that both models can read; None is no limit.
        rows: Rows of the embeddings of base and guide; None is not checked.
        draft_rows: Rows of the embedding of a draft model, which reads the base's prompt.
        allow_special: Reads control tokens that are written out in a prompt as those tokens.
        enable_thinking: What templates of thinking models are told; None leaves it to them.
        steer_thinking: The guide steers thoughts as well as answers.
        one_prompt: Base and guide are read in one pass, and so the guide reads the base's prompt.
        shift: That of the guided model.

    Attributes:
        note: What is used in place of a chat template that a tokenizer does not have, or that the guide was trained
            with, for the user; None where all have their own.

    Raises:
        ModelError: There is no chat template of such a name.
    """

    def __init__(
        self,
        base: TokenizerWrapper,
        guide: TokenizerWrapper,
        template: bool = True,
        *,
        base_template: str | None = None,
        guide_template: str | None = None,
        limit: int | None = None,
        rows: tuple[int | None, int | None] = (None, None),
        draft_rows: int | None = None,
        allow_special: bool = False,
        enable_thinking: bool | None = None,
        steer_thinking: bool = False,
        one_prompt: bool = False,
        shift: int = 0,
    ) -> None:
        check_template(guide_template)
        check_template(base_template)
        base_lacks = base_template is None and not base.has_chat_template
        guide_lacks = guide_template is None and not guide.has_chat_template
        if base_lacks:
            base_template = guide_template
        elif guide_lacks:
            guide_template = base_template
        self.note: str | None = None
        if template and (base_lacks or guide_lacks):
            whose = "base's tokenizer has" if base_lacks else "guide's tokenizer has"
            whose = "tokenizers of base and guide have" if base_lacks and guide_lacks else whose
            self.note = no_template(whose, base_template or guide_template)
        self._readers = ((base, base_template), (guide, guide_template))
        if one_prompt:
            self._readers = ((base, base_template), (base, base_template))
            if template and guide_template not in (None, base_template):
                self.note = (
                    f"one pass reads the base's prompt; the adapter was trained with another chat template "
                    f"(--chat-template {guide_template})"
                )
        self._rows, self._draft_rows = rows, draft_rows
        self._template, self._allow_special = template, allow_special
        self._limit, self._shift = limit, shift
        self.enable_thinking = enable_thinking
        self._tools: Sequence[Mapping[str, Any]] = ()
        self._thinking = Thinking.of(base, steer_thinking) if template else None

    def asking(
        self, enable_thinking: bool | None = None, tools: Sequence[Mapping[str, Any]] = (), template: bool = True
    ) -> "Prompter":
        """The prompter of one request: told whether to think, with tools for the templates, or without templates."""
        other = copy(self)
        other.enable_thinking = self.enable_thinking if enable_thinking is None else enable_thinking
        other._tools = tools
        if not template:
            other._template, other._thinking = False, None
        return other

    def __call__(self, prompt: Content) -> PromptTokens:
        """Tokenises a user's text, or a conversation that an assistant is to continue.

        Raises:
            TooLongError: The prompt is longer than the models can read.
            InputError: It has a token for which one of them has no row.
            ModelError: A tokenizer has no chat template for a conversation, or its template refuses this one.
        """
        base, guide = (
            encode(tokenizer, self._render(tokenizer, name, prompt)) or [tokenizer.eos_token_id]
            for tokenizer, name in self._readers
        )
        return self._checked(prompt, base, guide)

    def after_answer(self, messages: Sequence[Message], asked: PromptTokens, answer: Sequence[int]) -> PromptTokens:
        """Tokenises a conversation that goes on after an answer, which stays as it was generated, token for token.

        A template that shows an earlier answer in another way (without its reasoning, for instance) is followed: the
        answer is tokenised again then.

        Args:
            messages: The conversation; the answer is the last message but one.
            asked: The prompt that was answered.
            answer: The tokens of the answer, without its end.
        """
        answered = asked.after(answer)
        base, guide = (
            self._encode_after(tokenizer, name, messages, said)
            for (tokenizer, name), said in zip(self._readers, (answered.base, answered.guide), strict=True)
        )
        return self._checked(messages, base, guide)

    def _checked(self, prompt: Content, base: list[int], guide: list[int]) -> PromptTokens:
        length = max(len(base), len(guide))
        if self._limit is not None and length >= self._limit:
            raise TooLongError(f"the prompt has {length} tokens, and the model reads {self._limit} with its answer")
        (base_tokenizer, _), (guide_tokenizer, _) = self._readers
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        for tokenizer, ids, rows, role in (
            (base_tokenizer, base, self._rows[0], "model"),
            (base_tokenizer, base, self._draft_rows, "draft model"),
            (
                guide_tokenizer,
                [id for id in guide if not self._shift or id < self._shift],
                self._rows[1],
                "guide model",
            ),
        ):
            if unembedded := unembedded_token(tokenizer, ids, rows, role):
                where = "the prompt" if any(unembedded.text in text for text in texts) else "the chat template"
                raise InputError(f"{where} has {unembedded}")
        return self.tokens(base, guide)

    def tokens(self, base: list[int], guide: list[int]) -> PromptTokens:
        """A prompt from its token ids."""
        opened = bool(self._thinking and self._thinking.opened(base))
        return PromptTokens(base, guide, self._thinking, opened, self._shift)

    def _render(self, tokenizer: TokenizerWrapper, name: str | None, prompt: Content) -> str:
        try:
            name = PLAIN if isinstance(prompt, str) and not self._template else name
            return render_prompt(tokenizer, prompt, name, self._allow_special, self.enable_thinking, self._tools)
        except TemplateError as error:
            raise ModelError(f"the chat template does not accept this conversation: {error}") from error

    def _encode_after(
        self, tokenizer: TokenizerWrapper, name: str | None, messages: Sequence[Message], said: list[int]
    ) -> list[int]:
        """The tokens of :meth:`after_answer` for one model; ``said`` are those up to the end of the answer."""
        *earlier, answer, question = messages
        text = self._render(tokenizer, name, messages)
        asked = self._render(tokenizer, name, earlier)
        marked = self._render(tokenizer, name, [*earlier, {**answer, "content": _ANSWER}, question])
        before, _, after = marked.partition(_ANSWER)
        as_asked = before.startswith(asked) and not before[len(asked) :].strip()
        shown = text.removeprefix(asked).removesuffix(after)
        head, whole = encode(tokenizer, before + _ANSWER), encode(tokenizer, marked)
        if not as_asked or unescape(shown).strip() != answer["content"].strip() or whole[: len(head)] != head:
            return encode(tokenizer, text)
        return said + whole[len(head) :]


def no_template(whose: str, used: str | None = None) -> str:
    """The note on a tokenizer without a chat template, which says what is used in its place."""
    how = f"with the template {used}" if used else "as plain text (--chat-template names a template)"
    return f"the {whose} no chat template: prompts are read {how}"


def render_prompt(
    tokenizer: TokenizerWrapper,
    prompt: Content,
    chat_template: str | None = None,
    allow_special: bool = False,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text that the model continues with its response, for :func:`parm_mlx.guidance.encoding.encode`.

    ``chat_template`` is a built-in one, by default the tokenizer's own; where there is none, a text stays as it is.
    ``allow_special`` lets control tokens that are written out in the prompt be those tokens; the tokenizer's
    template is told ``enable_thinking`` and ``tools``.

    Raises:
        ModelError: The prompt is a list of messages and there is no chat template, or none of that name.
        jinja2.TemplateError: The template does not accept these messages.
    """
    if not allow_special:
        prompt, tools = escape(tokenizer, prompt), escape(tokenizer, tools)
    if chat_template is not None:
        return render(chat_template, prompt, tokenizer.eos_token or "")
    if isinstance(prompt, str):
        if not tokenizer.has_chat_template:
            return prompt
        prompt = as_messages(prompt)
    elif not tokenizer.has_chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template, so it cannot read a conversation",
            hint=f"name one with --chat-template: {', '.join(CHAT_TEMPLATES)}",
        )
    return apply_template(tokenizer, prompt, enable_thinking=enable_thinking, tools=tools)


def apply_template(
    tokenizer: TokenizerWrapper,
    messages: Sequence[Message],
    answered: bool = False,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of a conversation by the tokenizer's own chat template, before the answer or with it.

    Raises:
        jinja2.TemplateError: The template does not accept these messages.
    """
    last = messages[-1]["content"].strip() if messages else ""
    text = _apply(tokenizer, messages, answered, enable_thinking, tools)
    if last not in text:  # templates of models that also see images read content in parts
        parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        in_parts = _apply(tokenizer, parts, answered, enable_thinking, tools)
        text = in_parts if last in in_parts else text
    return text


def _apply(
    tokenizer: TokenizerWrapper,
    messages: Sequence[dict[str, Any]],
    answered: bool,
    enable_thinking: bool | None,
    tools: Sequence[Mapping[str, Any]],
) -> str:
    settings: dict[str, Any] = {"add_generation_prompt": not answered, "tokenize": False}
    if tools:
        settings["tools"] = list(tools)
    if enable_thinking is not None:
        settings["enable_thinking"] = enable_thinking
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template and _DATE.search(template):
        settings["chat_template"] = _DATE.sub(lambda call: repr(_STARTED.strftime(call["format"])), template)
    try:
        text: str = tokenizer.apply_chat_template(list(messages), **settings)
    except (TemplateError, ParmError):
        raise
    except Exception as error:  # a template is a program, and may fail as one
        raise TemplateError(f"{type(error).__name__}: {first_line(error)}") from error
    return text
