r"""The formats of preference data: how a row of each becomes a pair, and everything that can be wrong with it.

``prompt`` is a text or a list of messages; ``chosen`` and ``rejected`` are texts or lists of messages that end with the
response. Beside ``preferred``, ``margins`` may say by how much the preferred response is ahead, and ``ended`` which of
the two responses came to an end (``[true, false]``): training learns the end of those alone::

    {"prompt": …, "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
    {"prompt": …, "chosen": "…", "rejected": "…", "objective": "helpful"}
    {"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": […], "objective": "helpful"}   conversations
    {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": "…", "objective": "helpful"}                   HH-RLHF
    {"prompt": …, "response_0": "…", "response_1": "…", "better_response_id": 0, "safer_response_id": 1}   PKU-SafeRLHF

In every format, the column ``system`` holds a system message that comes before the prompt.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from parm_mlx.data.pairs import Pair, RowError
from parm_mlx.errors import PreferenceError
from parm_mlx.guidance.templates import Content, Message, as_messages
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import shown

PAIRS, CHOSEN, CONVERSATIONS = "responses and preferred", "chosen and rejected", "conversations"
TRANSCRIPTS, SAFE_RLHF = "HH-RLHF", "PKU-SafeRLHF"
_FIELDS = (
    {"responses", "preferred"},
    {"chosen", "rejected"},
    {"response_0", "response_1", "better_response_id", "safer_response_id"},
)
_SAFE_OBJECTIVES = {"helpful": "better_response_id", "harmless": "safer_response_id"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
_KEYS_SHOWN = 8

Row = dict[str, Any]
Parsed = tuple[Content, tuple[str, str], dict[str, int]]  # prompt, responses, preferred


class RowReader:
    """Reads the rows of one file, which all have one format.

    Args:
        objective: What a row of chosen and rejected without the field ``objective`` judges.
    """

    def __init__(self, objective: str | None = None) -> None:
        self.format: str | None = None  # None before the first row that has one
        self._objective = objective
        self._first = ""

    def __call__(self, row: Any, where: str) -> Pair:
        """Makes a pair of a decoded row.

        Raises:
            RowError: The row cannot be used, or has another format than those before it.
        """
        if not isinstance(row, dict):
            _fail(f"a row must be a JSON object, not {_kind(row)}")
        found = format_of(row)
        if self.format is None:
            self.format, self._first = found, where
        elif found != self.format:
            _fail(f"mixed formats: this row is {found}, {self._first} is {self.format}; a file has one format")
        prompt, responses, preferred = _PARSERS[found](row, self._objective)
        ours = found == PAIRS
        margins, ended = _margins(row, preferred) if ours else {}, _ended(row) if ours else (True, True)
        return Pair(_with_system(row, prompt), responses, preferred, where, margins, ended)


def as_row(pair: Pair) -> str:
    """Returns a pair as one line of our format; it is read back as it was."""
    row: Row = {"prompt": pair.prompt, "responses": list(pair.responses), "preferred": pair.preferred}
    if pair.margins:
        row["margins"] = pair.margins
    if not all(pair.ended):
        row["ended"] = list(pair.ended)
    return json.dumps(row, ensure_ascii=False) + "\n"


def format_of(row: Row) -> str:
    """Returns the format whose fields a row has; RowError for those of none, of several, or not all of one."""
    found = [(wanted, wanted & row.keys()) for wanted in _FIELDS if wanted & row.keys()]
    if not found:
        _fail(
            "needs 'responses' and 'preferred', or 'chosen' and 'rejected', or the fields of PKU-SafeRLHF; "
            + keys_of(row)
        )
    if len(found) > 1:
        _fail(f"a row has the fields of one format, not {_names(set().union(*(fields for _, fields in found)))}")
    wanted, fields = found[0]
    if wanted != fields:
        _fail(f"{_names(wanted - fields)} is missing; {keys_of(row)}")
    if "preferred" in wanted:
        return PAIRS
    if "chosen" not in wanted:
        return SAFE_RLHF
    if "prompt" in row:
        return CHOSEN
    return CONVERSATIONS if isinstance(row["chosen"], list) else TRANSCRIPTS


def keys_of(row: Row) -> str:
    """Returns the keys of a row in words, for an error."""
    more = [f"{len(row) - _KEYS_SHOWN} more"] if len(row) > _KEYS_SHOWN else []
    keys = [shown(key) for key in list(row)[:_KEYS_SHOWN]]
    return f"the row has {', '.join(keys + more) or 'no key'}"


def parse_prompt(row: Row) -> Content:
    """Returns the prompt of a row; RowError if it is not a text or messages that an assistant can answer."""
    if "prompt" not in row:
        _fail(f"'prompt' is missing; {keys_of(row)}")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            _fail("'prompt' is empty")
        return check_text(prompt, "'prompt'")
    if not isinstance(prompt, list):
        _fail(f"'prompt' must be a text or a list of messages, not {_kind(prompt)}")
    messages = _messages(prompt, "prompt")
    if messages[-1]["role"] == "assistant":
        _fail("the last message of 'prompt' must not be the assistant's: the responses follow it")
    return messages


def check_text(value: Any, what: str) -> str:
    """Returns a text; RowError if it is not one, or holds a NUL character or half of a surrogate pair."""
    if not isinstance(value, str):
        _fail(f"{what} must be a text, not {_kind(value)}")
    if "\0" in value:
        _fail(f"{what} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _fail(f"{what} holds half of a surrogate pair, which is not a character")
    return value


def _parse_pairs(row: Row, _: str | None) -> Parsed:
    both, preferred = row["responses"], row["preferred"]
    if not isinstance(both, list) or len(both) != 2:
        size = f" of {len(both)}" if isinstance(both, list) else ""
        _fail(f"'responses' must be a list of two texts, not {_kind(both)}{size}")
    if not isinstance(preferred, dict) or not preferred:
        _fail("'preferred' must say 0 or 1 for at least one objective, as in {\"helpful\": 0}")
    labels = {_objective(name): _choice(value, f"'preferred' of {name!r}") for name, value in preferred.items()}
    if len(labels) < len(preferred):
        _fail("'preferred' names an objective twice")
    responses = (check_text(both[0], "the first response"), check_text(both[1], "the second response"))
    return parse_prompt(row), responses, labels


def _parse_chosen(row: Row, objective: str | None) -> Parsed:
    prompt, preferred = parse_prompt(row), {_judged(row, objective): 0}
    if not isinstance(row["chosen"], list):
        return prompt, (check_text(row["chosen"], "'chosen'"), check_text(row["rejected"], "'rejected'")), preferred
    asked, responses = _split_both(row, _split_conversation)
    return _same_prompt(prompt, asked) if asked else prompt, responses, preferred


def _parse_whole(row: Row, objective: str | None) -> Parsed:
    """Parses conversations or transcripts that hold the prompt."""
    prompt, responses = _split_both(row, _split_conversation if isinstance(row["chosen"], list) else _split_transcript)
    if not prompt:
        _fail(f"'prompt' is missing, and 'chosen' holds the response alone; {keys_of(row)}")
    return prompt, responses, {_judged(row, objective): 0}


def _parse_safe_rlhf(row: Row, _: str | None) -> Parsed:
    labels = {name: _choice(row[key], f"{key!r}") for name, key in _SAFE_OBJECTIVES.items()}
    responses = (check_text(row["response_0"], "'response_0'"), check_text(row["response_1"], "'response_1'"))
    return parse_prompt(row), responses, labels


_PARSERS: dict[str, Callable[[Row, str | None], Parsed]] = {
    PAIRS: _parse_pairs,
    CHOSEN: _parse_chosen,
    CONVERSATIONS: _parse_whole,
    TRANSCRIPTS: _parse_whole,
    SAFE_RLHF: _parse_safe_rlhf,
}

Split = Callable[[Row, str], tuple[list[Message], str]]


def _split_both(row: Row, split: Split) -> tuple[list[Message], tuple[str, str]]:
    """Splits chosen and rejected into the messages that both begin with, and the two last turns of the assistant."""
    (asked, chosen), (also_asked, rejected) = split(row, "chosen"), split(row, "rejected")
    if asked != also_asked:
        _fail("'chosen' and 'rejected' differ before the assistant's last turn")
    return asked, (chosen, rejected)


def _split_conversation(row: Row, field: str) -> tuple[list[Message], str]:
    if not isinstance(row[field], list):
        _fail(f"{field!r} must be a list of messages, as 'chosen' is, not {_kind(row[field])}")
    return _split_last(_messages(row[field], field), field)


def _split_transcript(row: Row, field: str) -> tuple[list[Message], str]:
    """Splits a transcript. White space around a turn belongs to the form, not to what was said."""
    before, *pieces = _TURN.split("\n\n" + check_text(row[field], f"{field!r}").lstrip())
    if before or not pieces or pieces[0] != "Human":
        _fail(f"'prompt' is missing, and {field!r} is not a transcript that begins with '\\n\\nHuman:'; {keys_of(row)}")
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return _split_last([{"role": _ROLES[name], "content": content.strip()} for name, content in turns], field)


def _split_last(messages: list[Message], field: str) -> tuple[list[Message], str]:
    *before, last = messages
    if last["role"] != "assistant":
        _fail(f"{field!r} does not end with a turn of the assistant")
    if before and before[-1]["role"] == "assistant":
        _fail(f"{field!r} ends with two turns of the assistant")
    return before, last["content"]


def _same_prompt(prompt: Content, asked: list[Message]) -> list[Message]:
    """Returns what a whole conversation asks, which must be the prompt; a system message may come before it."""
    bare, wanted = ([(m["role"], m["content"].strip()) for m in each] for each in (asked, as_messages(prompt)))
    if bare[-len(wanted) :] != wanted or any(role != "system" for role, _ in bare[: -len(wanted)]):
        _fail("'chosen' answers something else than 'prompt'")
    return asked


def _with_system(row: Row, prompt: Content) -> Content:
    """Returns the prompt with the system message of its own column, if there is one."""
    system = row.get("system")
    if system is None or system == "":
        return prompt
    message = {"role": "system", "content": check_text(system, "'system'")}
    messages = as_messages(prompt)
    if messages[0] == message:
        return messages
    if messages[0]["role"] == "system":
        _fail("'system' differs from the system message of the prompt")
    return [message, *messages]


def _margins(row: Row, preferred: dict[str, int]) -> dict[str, float]:
    margins = row.get("margins", {})
    if not isinstance(margins, dict):
        _fail(f"'margins' must be an object with a number for each objective, not {_kind(margins)}")
    found = {}
    for given, value in margins.items():
        name = _objective(given)
        if name not in preferred:
            _fail(f"'margins' has {name!r}, which 'preferred' has not")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
            _fail(f"'margins' of {name!r} must be a finite number ≥ 0, not {_as_json(value)}")
        found[name] = float(value)
    return found


def _ended(row: Row) -> tuple[bool, bool]:
    ended = row.get("ended", [True, True])
    if not isinstance(ended, list) or len(ended) != 2 or not all(isinstance(each, bool) for each in ended):
        _fail("'ended' must say true or false of both responses, as in [true, false]")
    return ended[0], ended[1]


def _judged(row: Row, objective: str | None) -> str:
    name = row.get("objective", objective)
    if name is None:
        _fail("'objective' is missing, and the file name does not tell it")
    return _objective(name)


def _objective(name: Any) -> str:
    try:
        return parse_objectives([check_text(name, "'objective'")])[0]
    except PreferenceError as error:
        raise RowError(str(error)) from None


def _choice(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1):
        _fail(f"{what} must be 0 or 1, not {_as_json(value)}")
    return value


def _messages(value: list[Any], field: str) -> list[Message]:
    if not value:
        _fail(f"{field!r} holds no message")
    return [_message(message, f"message {place} of {field!r}") for place, message in enumerate(value, 1)]


def _message(message: Any, what: str) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        _fail(f"{what} must have 'role' and 'content'")
    return {key: check_text(message[key], f"{key!r} of {what}") for key in ("role", "content")}


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a value of type {type(value).__name__}")


def _as_json(value: Any) -> str:
    return _kind(value) if isinstance(value, dict | list) else json.dumps(value, default=repr)[:40]


def _names(keys: set[str]) -> str:
    return " and ".join(f"'{key}'" for key in sorted(keys))


def _fail(reason: str) -> NoReturn:
    raise RowError(reason)
