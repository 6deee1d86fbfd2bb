import typing

import pytest
from jinja2 import TemplateError

from parm_mlx.errors import ModelError
from parm_mlx.guidance.templates import CHAT_TEMPLATES, Message, check_template, render
from parm_mlx.settings import TemplateName

TALK = [
    {"role": "user", "content": "Hi {content}"},
    {"role": "assistant", "content": "Yes {eos}"},
    {"role": "user", "content": "Why?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

EXPECTED = {
    "beaver": (
        "BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:",
        "BEGINNING OF CONVERSATION: USER: Hi {content} ASSISTANT:Yes {eos}</s>USER: Why? ASSISTANT:",
        "BEGINNING OF CONVERSATION: Be brief. USER: Why? ASSISTANT:",
    ),
    "alpaca": (
        TASK + "\n\n### Instruction:\nWhy?\n\n### Response:",
        TASK
        + "\n\n### Instruction:\nHi {content}\n\n### Response:Yes {eos}\n\n### Instruction:\nWhy?\n\n### Response:",
        "Be brief.\n\n### Instruction:\nWhy?\n\n### Response:",
    ),
    "hh": (
        "\n\nHuman: Why?\n\nAssistant:",
        "\n\nHuman: Hi {content}\n\nAssistant: Yes {eos}\n\nHuman: Why?\n\nAssistant:",
        "Be brief.\n\nHuman: Why?\n\nAssistant:",
    ),
    "plain": ("Why?", "Hi {content}Yes {eos}\n\nWhy?", "Be brief.\n\nWhy?"),
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_text_a_conversation_and_a_system_message(name: str) -> None:
    text, talk, system = EXPECTED[name]
    assert render(name, "Why?") == text
    assert render(name, TALK, "</s>") == talk
    assert render(name, [SYSTEM, TALK[2]]) == system


@pytest.mark.parametrize("messages", [[], [SYSTEM], TALK[:2], [TALK[0], TALK[0], TALK[0]], [TALK[0], SYSTEM, TALK[0]]])
def test_another_order_of_turns_is_refused(messages: list[Message]) -> None:
    with pytest.raises(TemplateError, match="hh reads user and assistant in turns, the user first and last"):
        render("hh", messages)


def test_an_unknown_name() -> None:
    check_template(None)
    with pytest.raises(ModelError, match="unknown chat template 'bever'") as caught:
        render("bever", "Hi")
    assert caught.value.hint is not None
    assert "beaver" in caught.value.hint


def test_the_settings_offer_all_of_them() -> None:
    assert typing.get_args(TemplateName) == CHAT_TEMPLATES
