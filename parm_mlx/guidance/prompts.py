"""From conversations to prompt tokens, for the base and for the guide, which may need different templates."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError

from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance.templates import CHAT_TEMPLATES, PLAIN, Content, Message, check_template, render
from parm_mlx.mlxlm import TokenizerWrapper

_MARK = "Answer0Mark"  # stands for an answer while its place in a rendered conversation is looked for


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Attributes:
        id: Tells prompts apart; by default made of the content.
        content: A user's text, or the messages of a conversation that an assistant is to continue.
        line: Where it stands in its file.
    """

    id: str
    content: Content
    line: int = 0


def content_id(content: Content) -> str:
    """A short name for a prompt that has none: the beginning of the SHA-256 of its content."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class PromptTokens:
    """One prompt as the base and as the guide read it; both are continued by the same tokens."""

    base: list[int]
    guide: list[int]


class Prompter:
    """Renders and tokenises prompts for a base and its guide.

    Args:
        base: The base's tokenizer.
        guide: The guide's tokenizer.
        template: Whether chat templates are applied; without, a prompt is plain text to continue.
        base_template: Name of the base's chat template. By default its tokenizer's own, or, where it has none,
            the guide's.
        guide_template: Name of the chat template that the guide was trained with; None is its tokenizer's own.
        limit: Most tokens that both models can read; None is no limit.
        rows: Rows of the embeddings of base and guide; None is not checked.
        draft_rows: Rows of the embedding of a draft model, which reads the base's prompt.

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
    ) -> None:
        check_template(guide_template)
        check_template(base_template)
        if base_template is None and not base.has_chat_template:
            base_template = guide_template
        self._readers = ((base, base_template), (guide, guide_template))
        self._rows, self._draft_rows = rows, draft_rows
        self._template = template
        self._limit = limit

    def __call__(self, prompt: Content) -> PromptTokens:
        """Tokenises a user's text, or a conversation that an assistant is to continue.

        Raises:
            InputError: The prompt is longer than the models can read, or has a token for which one of them has no row.
            ModelError: A tokenizer has no chat template for a conversation, or its template refuses this one.
        """
        base, guide = (self._encode(tokenizer, name, prompt) for tokenizer, name in self._readers)
        return self._checked(prompt, base, guide)

    def after_answer(self, messages: Sequence[Message], asked: PromptTokens, answer: Sequence[int]) -> PromptTokens:
        """Tokenises a conversation that goes on after an answer, which stays as it was generated, token for token.

        A template that shows an earlier answer in another way (without its reasoning, for instance) is followed: the
        answer is tokenised again then.

        Args:
            messages: The conversation; the answer is the last message but one.
            asked: The prompt that was answered.
            answer: The tokens of the answer, without its end.

        Raises:
            InputError: As for a prompt.
            ModelError: As for a prompt.
        """
        base, guide = (
            self._encode_after(tokenizer, name, messages, [*before, *answer])
            for (tokenizer, name), before in zip(self._readers, (asked.base, asked.guide), strict=True)
        )
        return self._checked(messages, base, guide)

    def _checked(self, prompt: Content, base: list[int], guide: list[int]) -> PromptTokens:
        length = max(len(base), len(guide))
        if self._limit is not None and length >= self._limit:
            raise InputError(f"the prompt has {length} tokens, and the model reads {self._limit} with its answer")
        (base_tokenizer, _), (guide_tokenizer, _) = self._readers
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        for tokenizer, ids, rows, role in (
            (base_tokenizer, base, self._rows[0], "model"),
            (base_tokenizer, base, self._draft_rows, "draft model"),
            (guide_tokenizer, guide, self._rows[1], "guide model"),
        ):
            if lone := lone_token(tokenizer, ids, rows, role):
                where = "the prompt" if any(lone.text in text for text in texts) else "the chat template"
                raise InputError(f"{where} has {lone}")
        return PromptTokens(base, guide)

    def _render(self, tokenizer: TokenizerWrapper, name: str | None, prompt: Content) -> str:
        try:
            as_it_is = isinstance(prompt, str) and not self._template
            return render(PLAIN, prompt) if as_it_is else render_prompt(tokenizer, prompt, name)
        except TemplateError as error:
            raise ModelError(f"the chat template does not accept this conversation: {error}") from error

    def _encode(self, tokenizer: TokenizerWrapper, name: str | None, prompt: Content) -> list[int]:
        return encode(tokenizer, self._render(tokenizer, name, prompt)) or [tokenizer.eos_token_id]

    def _encode_after(
        self, tokenizer: TokenizerWrapper, name: str | None, messages: Sequence[Message], said: list[int]
    ) -> list[int]:
        """The tokens of :meth:`after_answer` for one model; ``said`` are those up to the end of the answer."""
        *earlier, answer, question = messages
        text = self._render(tokenizer, name, messages)
        asked = self._render(tokenizer, name, earlier)
        marked = self._render(tokenizer, name, [*earlier, {**answer, "content": _MARK}, question])
        before, _, after = marked.partition(_MARK)
        as_asked = before.startswith(asked) and not before[len(asked) :].strip()
        shown = text.removeprefix(asked).removesuffix(after)
        head, whole = encode(tokenizer, before + _MARK), encode(tokenizer, marked)
        if not as_asked or shown.strip() != answer["content"].strip() or whole[: len(head)] != head:
            return encode(tokenizer, text)
        return said + whole[len(head) :]


def render_prompt(tokenizer: TokenizerWrapper, prompt: Content, chat_template: str | None = None) -> str:
    """The text that the model continues with its response.

    Args:
        tokenizer: An mlx-lm tokenizer.
        prompt: A user's text or a list of messages.
        chat_template: Name of a built-in chat template; by default the tokenizer's own. Where there is none, a text
            stays as it is.

    Raises:
        ModelError: The prompt is a list of messages and there is no chat template, or none of that name.
        jinja2.TemplateError: The template does not accept these messages.
    """
    if chat_template is not None:
        return render(chat_template, prompt, tokenizer.eos_token or "")
    if isinstance(prompt, str):
        if not tokenizer.has_chat_template:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    elif not tokenizer.has_chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template, so it cannot read a conversation",
            hint=f"name one with --chat-template: {', '.join(CHAT_TEMPLATES)}",
        )
    text: str = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
    return text


def encode(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """Tokenises a rendered text; BOS comes first if the tokenizer puts it there and the text does not begin with it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    begin = _beginning(tokenizer)
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


@lru_cache(maxsize=8)
def _beginning(tokenizer: TokenizerWrapper) -> list[int]:
    """The special tokens that a tokenizer puts before a text: BOS, or none."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


@dataclass(frozen=True)
class LoneToken:
    """A token for which a model's embedding has no row: MLX would read beyond its end, without an error.

    Attributes:
        id: The token's id.
        text: The token as text.
        rows: Rows of the embedding.
        role: The model.
    """

    id: int
    text: str
    rows: int
    role: str

    def __str__(self) -> str:
        return f"token {self.text!r} (id {self.id}); the {self.role} has embeddings for ids below {self.rows} only"


def lone_token(
    tokenizer: TokenizerWrapper, ids: Sequence[int], rows: int | None, role: str = "model"
) -> LoneToken | None:
    """The first token for which an embedding of so many rows has none, if there is any; None rows are not checked."""
    if rows is None or max(ids, default=0) < rows:
        return None
    lone = next(token for token in ids if token >= rows)
    return LoneToken(lone, tokenizer.decode([lone]), rows, role)


def split_response(tokenizer: TokenizerWrapper, prompt: str, response: str) -> tuple[list[int], int]:
    """The boundary between prompt and response; it is decided here and nowhere else.

    Both are tokenised together, because a tokenizer may join the last characters of the one to the first of the other
    (a template that ends in a space: "▁" and "▁Yes"). The response starts at the first token that the prompt alone does
    not have.

    Args:
        tokenizer: An mlx-lm tokenizer.
        prompt: As :func:`render_prompt` returns it.
        response: The response, without a turn's end.

    Returns:
        The token ids of [BOS] prompt response, and the index of the first response token; the number of tokens when
        the response has none.
    """
    alone, ids = encode(tokenizer, prompt), encode(tokenizer, prompt + response)
    start = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    return ids, start
