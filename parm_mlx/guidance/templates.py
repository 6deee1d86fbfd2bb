"""Chat templates by name, for models whose tokenizer has none or that were trained with another one."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from parm_mlx.errors import ModelError

Message = dict[str, str]
Content = str | Sequence[Message]

PLAIN = "plain"


def as_messages(prompt: Content) -> list[Message]:
    """Returns a prompt as messages; a text is one of the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces that a conversation is put together from."""

    begin: str
    user: str
    assistant: str  # before an answer
    answer: str  # with its end; {eos} is the end-of-sequence token
    lead: str = ""  # before an answer that does not begin with white space itself
    system: str = ""  # the system message where the conversation has none, after begin
    system_end: str = ""


_INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
_TEMPLATES = {
    "beaver": ChatTemplate(
        begin="BEGINNING OF CONVERSATION: ",
        user="USER: {content} ",
        assistant="ASSISTANT:",
        answer="{content}{eos}",
        system_end=" ",
    ),
    "alpaca": ChatTemplate(
        begin="",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:",
        answer="{content}\n\n",
        system=_INSTRUCTION,
        system_end="\n\n",
    ),
    "hh": ChatTemplate(begin="", user="\n\nHuman: {content}", assistant="\n\nAssistant:", answer="{content}", lead=" "),
    PLAIN: ChatTemplate(begin="", user="{content}", assistant="", answer="{content}\n\n", system_end="\n\n"),
}

CHAT_TEMPLATES = tuple(_TEMPLATES)


def check_template(name: str | None) -> None:
    """Checks that there is a chat template of this name; None, the tokenizer's own, always passes."""
    if name is not None and name not in _TEMPLATES:
        raise ModelError(
            f"unknown chat template {name!r}", hint=f"there are {', '.join(CHAT_TEMPLATES)}, and the tokenizer's own"
        )


def render(name: str, prompt: Content, eos: str = "") -> str:
    """The text that the assistant continues; ``eos`` is the end-of-sequence token as text.

    A conversation is a system message, if any, then user and assistant in turns, the user last.

    Raises:
        ModelError: There is no such template.
        jinja2.TemplateError: The conversation has another order.
    """
    check_template(name)
    template = _TEMPLATES[name]
    messages = as_messages(prompt)
    system = template.system
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(messages))]
    if len(messages) % 2 == 0 or [message["role"] for message in messages] != expected:
        raise TemplateError(f"{name} reads user and assistant in turns, the user first and last")
    text = template.begin + (system + template.system_end if system else "")
    for message in messages:
        if message["role"] == "user":
            text += template.user.replace("{content}", message["content"]) + template.assistant
        else:
            answer = render_answer(name, message["content"])
            text += template.answer.replace("{eos}", eos).replace("{content}", answer)
    return text


def render_answer(name: str, answer: str) -> str:
    """An answer as it follows the text of :func:`render`: the same in training, in a conversation and for a reward."""
    bare = answer and not answer[0].isspace()
    return _TEMPLATES[name].lead + answer if bare else answer


def render_answered(name: str, prompt: Content, answer: str, eos: str = "") -> str:
    """The text of :func:`render` and its answer, as a reward model reads it: nothing follows the answer's end."""
    text = render(name, prompt, eos)
    end = _TEMPLATES[name].answer.rstrip()
    return text + end.replace("{eos}", eos).replace("{content}", render_answer(name, answer))
