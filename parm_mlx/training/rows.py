"""One row of preference data: what it may look like, and everything that can be wrong with it.

Two forms are read (``prompt`` is a text or a list of chat messages)::

    {"prompt": …, "responses": ["…", "…"], "preferred": {"helpful": 0, "harmless": 1}}
    {"prompt": …, "chosen": "…", "rejected": "…", "objective": "helpful"}
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from parm_mlx.errors import DataError, PreferenceError
from parm_mlx.preference import parse_objectives

Message = dict[str, str]
Prompt = str | list[Message]

MAX_LINE = 16 * 2**20
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt.

    Attributes:
        prompt: A user's text, or a conversation that ends before the response.
        responses: The two responses.
        preferred: For each objective that judged this pair, the index (0 or 1) of the response it prefers.
        where: File name and line, ``pairs.jsonl:12``.
    """

    prompt: Prompt
    responses: tuple[str, str]
    preferred: dict[str, int]
    where: str

    @property
    def prompt_key(self) -> str:
        """Equal for equal prompts, whether given as text or as one user message."""
        messages = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        return json.dumps([[m["role"], m["content"].strip()] for m in messages])


class RowError(Exception):
    """What is wrong with one row; collected in :class:`Problems`, never shown to a user by itself."""


@dataclass
class Problems:
    """Bad rows, counted all and remembered some, so that one error can report them together."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, reason: object) -> None:
        """Notes that a row cannot be used."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def raise_any(self, source: str | Path) -> None:
        """Raises when there is anything to report.

        Raises:
            DataError: With the number of bad rows and the first 20 of them.
        """
        if self.count == 1:
            raise DataError(self.shown[0])
        if self.count:
            more = [f"… and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
            raise DataError("\n  ".join([f"{source}: {self.count} rows cannot be used", *self.shown, *more]))


def read_lines(path: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """Yields (``file:line``, text) of every line that is not blank; lines that are no text go to ``problems``."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path.name}:{number}"
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                problems.add(where, "the file is UTF-16; save it as UTF-8")
                return
            if len(raw) > MAX_LINE:
                problems.add(where, f"the line is longer than {MAX_LINE // 2**20} MiB")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                continue
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.add(where, f"not UTF-8 text (byte {error.start + 1} of the line)")
                continue
            if text.strip():
                yield where, text


def parse_row(text: str, where: str, objective: str | None = None) -> Pair:
    """Reads one row.

    Args:
        text: A line of JSON.
        where: File name and line, for the pair.
        objective: What a chosen/rejected row without the field ``objective`` judges.

    Raises:
        RowError: The row cannot be used.
    """
    if "\0" in text:
        raise RowError("the line holds a NUL character")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise RowError("broken JSON: a number or a nesting that is too large") from None
    if not isinstance(row, dict):
        raise RowError(f"a row must be a JSON object, not {_kind(row)}")
    responses, preferred = _judgements(row, objective)
    prompt = _prompt(row)
    if responses[0] == responses[1]:
        raise RowError("both responses are equal")
    return Pair(prompt, responses, preferred, where)


def _judgements(row: dict[str, Any], objective: str | None) -> tuple[tuple[str, str], dict[str, int]]:
    shared, single = {"responses", "preferred"} & row.keys(), {"chosen", "rejected"} & row.keys()
    if shared and single:
        _fail(f"a row has either 'responses' and 'preferred' or 'chosen' and 'rejected', not {_names(shared | single)}")
    if len(shared) == 1 or len(single) == 1:
        wanted = {"responses", "preferred"} if shared else {"chosen", "rejected"}
        _fail(f"{_names(wanted - row.keys())} is missing")
    if single:
        responses = (_text(row["chosen"], "'chosen'"), _text(row["rejected"], "'rejected'"))
        name = row.get("objective", objective)
        if name is None:
            _fail("'objective' is missing, and the file name does not tell it")
        return responses, {_objective(name): 0}
    if not shared:
        _fail("needs 'responses' and 'preferred', or 'chosen' and 'rejected'")
    both = row["responses"]
    if not isinstance(both, list) or len(both) != 2:
        size = f" of {len(both)}" if isinstance(both, list) else ""
        _fail(f"'responses' must be a list of two texts, not {_kind(both)}{size}")
    preferred = row["preferred"]
    if not isinstance(preferred, dict) or not preferred:
        _fail("'preferred' must say 0 or 1 for at least one objective, as in {\"helpful\": 0}")
    for name, choice in preferred.items():
        _objective(name)
        if isinstance(choice, bool) or not isinstance(choice, int) or choice not in (0, 1):
            _fail(f"'preferred' of {name!r} must be 0 or 1, not {json.dumps(choice)[:40]}")
    return (_text(both[0], "the first response"), _text(both[1], "the second response")), dict(preferred)


def _prompt(row: dict[str, Any]) -> Prompt:
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
