r"""Conversations written as one text, as in HH-RLHF: ``\n\nHuman: …\n\nAssistant: …``."""

import re

from parm_mlx.data.pairs import RowError
from parm_mlx.guidance.templates import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def split_transcript(text: str, field: str) -> tuple[list[Message], str]:
    """Takes a transcript apart.

    Spaces and line ends around a turn belong to the form, not to what was said.

    Args:
        text: The transcript.
        field: Name of the field that holds it, for the error.

    Returns:
        The messages before the assistant's last turn, and that turn.

    Raises:
        RowError: The text is no transcript, or the assistant does not have the last turn.
    """
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before or not parts or parts[0] != "Human":
        raise RowError(f"'prompt' is missing, and '{field}' is no transcript that begins with '\\n\\nHuman:'")
    turns = [
        {"role": _ROLES[name], "content": content.strip()}
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    *messages, last = turns
    if last["role"] != "assistant":
        raise RowError(f"'{field}' does not end with a turn of the assistant")
    if messages[-1]["role"] == "assistant":
        raise RowError(f"'{field}' ends with two turns of the assistant")
    return messages, last["content"]
