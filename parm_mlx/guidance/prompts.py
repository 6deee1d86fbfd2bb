"""From conversations to prompt tokens, for the base and for the guide, which may need different templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import TokenizerWrapper

Message = Mapping[str, str]
Prompt = str | Sequence[Message]


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
    """

    def __init__(self, base: TokenizerWrapper, guide: TokenizerWrapper, template: bool = True) -> None:
        self._tokenizers = (base, guide)
        self._template = template

    def __call__(self, prompt: Prompt) -> PromptTokens:
        """Tokenises a user's text, or a conversation that an assistant is to continue.

        Raises:
            ModelError: A tokenizer has no chat template for a conversation, or its template refuses this one.
        """
        return PromptTokens(*(self._encode(tokenizer, prompt) for tokenizer in self._tokenizers))

    def _encode(self, tokenizer: TokenizerWrapper, prompt: Prompt) -> list[int]:
        try:
            text = prompt if isinstance(prompt, str) and not self._template else render_prompt(tokenizer, prompt)
        except TemplateError as error:
            raise ModelError(f"the chat template does not accept this conversation: {error}") from error
        return encode(tokenizer, text) or [tokenizer.eos_token_id]


def render_prompt(tokenizer: TokenizerWrapper, prompt: Prompt) -> str:
    """The text that the model continues with its response.

    Args:
        tokenizer: An mlx-lm tokenizer.
        prompt: A user's text or a list of messages. Without a chat template a text stays as it is.

    Raises:
        ModelError: The prompt is a list of messages and the tokenizer has no chat template.
        jinja2.TemplateError: The template does not accept these messages.
    """
    if isinstance(prompt, str):
        if not tokenizer.has_chat_template:
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    elif not tokenizer.has_chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template, so it cannot read a conversation",
            hint="use a chat model, or a prompt in plain text",
        )
    text: str = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
    return text


def encode(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """Tokenises a rendered text; BOS comes first if the tokenizer has one and the text does not begin with it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
