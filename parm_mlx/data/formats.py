r"""The formats of preference data: how each is recognised and read, and everything that can be wrong with a row.

``prompt`` is a text or a list of chat messages. Beside ``preferred``, ``margins`` may say by how much the preferred
response is ahead::

    {"prompt": …, "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
    {"prompt": …, "chosen": "…", "rejected": "…", "objective": "helpful"}
    {"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": "…", "objective": "helpful"}        HH-RLHF
    {"prompt": …, "response_0": "…", "response_1": "…", "better_response_id": 0, "safer_response_id": 1}   PKU-SafeRLHF
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from parm_mlx.data.pairs import Pair, RowError
from parm_mlx.data.transcripts import split_transcript
from parm_mlx.errors import PreferenceError
from parm_mlx.guidance.templates import Content, Message
from parm_mlx.preference import parse_objectives

PAIRS, CHOSEN, TRANSCRIPTS, SAFE_RLHF = "responses and preferred", "chosen and rejected", "HH-RLHF", "PKU-SafeRLHF"
_FIELDS = (
    {"responses", "preferred"},
    {"chosen", "rejected"},
    {"response_0", "response_1", "better_response_id", "safer_response_id"},
)
_SAFE_OBJECTIVES = {"helpful": "better_response_id", "harmless": "safer_response_id"}

Body = tuple[Content, tuple[str, str], dict[str, int]]


class RowReader:
    """Reads the rows of one file, which all have one format.

    Args:
        objective: What a row of chosen and rejected without the field ``objective`` judges.

    Attributes:
        format: Name of the format, None before the first row that has one.
    """

    def __init__(self, objective: str | None = None) -> None:
        self._objective = objective
        self.format: str | None = None
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
        return Pair(prompt, responses, preferred, where, _margins(row, preferred) if found == PAIRS else {})


def as_row(pair: Pair) -> str:
    """A pair as one line of our format; it is read back as it was."""
    row: dict[str, Any] = {"prompt": pair.prompt, "responses": list(pair.responses), "preferred": pair.preferred}
    if pair.margins:
        row["margins"] = pair.margins
    return json.dumps(row, ensure_ascii=False) + "\n"


def decode(text: str) -> Any:
    """Decodes one line of JSON.

    Raises:
        RowError: It is no JSON.
    """
    if "\0" in text:
        _fail("the line holds a NUL character")
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise RowError("broken JSON: a number or a nesting that is too large") from None


def format_of(row: dict[str, Any]) -> str:
    """The format whose fields a row has.

    Raises:
        RowError: It has the fields of none, of several, or not all of one.
    """
    found = [(wanted, wanted & row.keys()) for wanted in _FIELDS if wanted & row.keys()]
    if not found:
        _fail("needs 'responses' and 'preferred', or 'chosen' and 'rejected', or the fields of PKU-SafeRLHF")
    if len(found) > 1:
        _fail(f"a row has the fields of one format, not {_names(set().union(*(fields for _, fields in found)))}")
    wanted, fields = found[0]
    if wanted != fields:
        _fail(f"{_names(wanted - fields)} is missing")
    if "chosen" in wanted:
        return CHOSEN if "prompt" in row else TRANSCRIPTS
    return PAIRS if "preferred" in wanted else SAFE_RLHF


def _parse_pairs(row: dict[str, Any], _: str | None) -> Body:
    both, preferred = row["responses"], row["preferred"]
    if not isinstance(both, list) or len(both) != 2:
        size = f" of {len(both)}" if isinstance(both, list) else ""
        _fail(f"'responses' must be a list of two texts, not {_kind(both)}{size}")
    if not isinstance(preferred, dict) or not preferred:
        _fail("'preferred' must say 0 or 1 for at least one objective, as in {\"helpful\": 0}")
    labels = {_objective(name): _choice(value, f"'preferred' of {name!r}") for name, value in preferred.items()}
    responses = (_text(both[0], "the first response"), _text(both[1], "the second response"))
    return _prompt(row), responses, labels


def _margins(row: dict[str, Any], preferred: dict[str, int]) -> dict[str, float]:
    margins = row.get("margins", {})
    if not isinstance(margins, dict):
        _fail(f"'margins' must be an object with a number for each objective, not {_kind(margins)}")
    found = {}
    for given, value in margins.items():
        name = _objective(given)
        if name not in preferred:
            _fail(f"'margins' has {name!r}, which 'preferred' has not")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
            _fail(f"'margins' of {name!r} must be a finite number ≥ 0, not {json.dumps(value)[:40]}")
        found[name] = float(value)
    return found


def _parse_chosen(row: dict[str, Any], objective: str | None) -> Body:
    responses = (_text(row["chosen"], "'chosen'"), _text(row["rejected"], "'rejected'"))
    return _prompt(row), responses, {_judged(row, objective): 0}


def _parse_transcripts(row: dict[str, Any], objective: str | None) -> Body:
    chosen, rejected = (split_transcript(_text(row[key], f"{key!r}"), key) for key in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        _fail("'chosen' and 'rejected' differ before the assistant's last turn")
    return chosen[0], (chosen[1], rejected[1]), {_judged(row, objective): 0}


def _parse_safe_rlhf(row: dict[str, Any], _: str | None) -> Body:
    labels = {name: _choice(row[key], f"{key!r}") for name, key in _SAFE_OBJECTIVES.items()}
    responses = (_text(row["response_0"], "'response_0'"), _text(row["response_1"], "'response_1'"))
    return _prompt(row), responses, labels


_PARSERS: dict[str, Callable[[dict[str, Any], str | None], Body]] = {
    PAIRS: _parse_pairs,
    CHOSEN: _parse_chosen,
    TRANSCRIPTS: _parse_transcripts,
    SAFE_RLHF: _parse_safe_rlhf,
}


def _judged(row: dict[str, Any], objective: str | None) -> str:
    name = row.get("objective", objective)
    if name is None:
        _fail("'objective' is missing, and the file name does not tell it")
    return _objective(name)


def _choice(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in (0, 1):
        _fail(f"{what} must be 0 or 1, not {json.dumps(value)[:40]}")
    return value


def _prompt(row: dict[str, Any]) -> Content:
    if "prompt" not in row:
        _fail("'prompt' is missing")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if not prompt.strip():
            _fail("'prompt' is empty")
        return _text(prompt, "'prompt'")
    if not isinstance(prompt, list):
        _fail(f"'prompt' must be a text or a list of messages, not {_kind(prompt)}")
    messages = [_message(message, number) for number, message in enumerate(prompt, 1)]
    if not messages:
        _fail("'prompt' holds no message")
    if messages[-1]["role"] == "assistant":
        _fail("the last message of 'prompt' must not be the assistant's: the responses follow it")
    return messages


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        _fail(f"message {number} of 'prompt' must have 'role' and 'content'")
    return {key: _text(message[key], f"{key!r} of message {number}") for key in ("role", "content")}


def _objective(name: Any) -> str:
    try:
        return parse_objectives([_text(name, "'objective'")])[0]
    except PreferenceError as error:
        raise RowError(str(error)) from None


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        _fail(f"{what} must be a text, not {_kind(value)}")
    if "\0" in value:
        _fail(f"{what} holds a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _fail(f"{what} holds half of a surrogate pair, which is no character")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _names(keys: set[str]) -> str:
    return " and ".join(f"'{key}'" for key in sorted(keys))


def _fail(reason: str) -> NoReturn:
    raise RowError(reason)
