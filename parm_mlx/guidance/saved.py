"""A conversation in a file: what was said, token for token, and the settings it was said with."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from parm_mlx.errors import DataError
from parm_mlx.files import disk_errors, expanded, read_json
from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.shard import Shard
from parm_mlx.outputs import check_new_file, new_file
from parm_mlx.ranges import BETA, TEMP

FORMAT = "parm-mlx conversation 2"
MOST_TURNS = 100_000  # each draws a random key


def save_conversation(
    path: str | Path, conversation: Conversation, models: dict[str, Any], settings: dict[str, float | None]
) -> Path:
    """Writes a conversation, and the ``beta`` and ``temp`` of its next answer, into a new file.

    Raises:
        OutputError: There is such a file, or it cannot be written.
    """
    file = check_new_file(path)
    alpha = conversation.alpha
    content = {
        "format": FORMAT,
        "models": models,
        "alpha": alpha and list(alpha),
        "settings": settings,
        **conversation.state(),
    }
    with new_file(file) as partial, disk_errors(file):
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def load_conversation(
    path: str | Path, conversation: Conversation, models: dict[str, Any], shard: Shard | None = None
) -> dict[str, float | None] | None:
    """Goes on with a conversation from a file, also under its preference, and returns the settings it was saved with.

    Of a ``shard``, rank 0 reads the file. The conversation is read again as text where it was held with other models:
    None is returned then, and the preference stays.

    Raises:
        DataError: The file is not a conversation.
    """
    file = expanded(path)
    content: dict[str, Any] = {}
    with nullcontext() if shard is None else shard.group.agreed():
        if shard is None or shard.main:
            content = read_json(file, "conversation", DataError)
    if shard is not None:
        content = shard.decide(content)
    if content.get("format") != FORMAT:
        raise DataError(f"{file} is not a conversation that /save wrote")
    alpha, same = content.get("alpha"), content.get("models") == models
    if not _is_sound(content, conversation, same):
        raise DataError(f"{file} is damaged: it does not hold a whole conversation")
    conversation.restore(content if same else {**content, "asked": None, "answer": []})
    if same:
        conversation.alpha = tuple(map(float, alpha)) if isinstance(alpha, list) else None
    settings: Any = content["settings"]
    return settings if same else None


def _is_sound(content: dict[str, Any], conversation: Conversation, same: bool) -> bool:
    """Returns True if a conversation has all its parts, and the ``same`` models know its tokens."""
    messages, asked, turns, alpha = (content.get(key) for key in ("messages", "asked", "turns", "alpha"))
    settings = content.get("settings")
    if not isinstance(settings, dict) or settings.keys() != {"beta", "temp"}:
        return False
    try:
        TEMP.read(settings["temp"])
        BETA.read(1.0 if settings["beta"] is None else settings["beta"])
    except ValueError:
        return False
    if not isinstance(messages, list) or not isinstance(turns, int) or isinstance(turns, bool):
        return False
    if not 0 <= turns <= MOST_TURNS:
        return False
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            return False
        if not all(isinstance(value, str) for value in message.values()):
            return False
    roles = [message["role"] for message in messages]
    spoken = roles[roles[:1] == ["system"] :]
    if spoken != ["user", "assistant"] * (len(spoken) // 2) or (bool(asked) and not spoken):
        return False
    if asked is not None and (not isinstance(asked, dict) or asked.keys() != {"base", "guide"}):
        return False
    if not same:
        return True
    asked = asked or {"base": [0], "guide": [0]}
    if not all(isinstance(each, list) for each in (content.get("answer"), *asked.values())):
        return False
    if not (
        conversation.reads(content["answer"] + asked["base"], "base") and conversation.reads(asked["guide"], "guide")
    ):
        return False
    if not all(asked.values()):
        return False
    return alpha is None or (
        isinstance(alpha, list)
        and len(alpha) == len(conversation.objectives)
        and all(isinstance(weight, int | float) and weight >= 0 for weight in alpha)
        and abs(sum(alpha) - 1) < 1e-6
    )
