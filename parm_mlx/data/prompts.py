"""Files of prompts and of preferences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parm_mlx.errors import DataError, PreferenceError
from parm_mlx.guidance.prompts import Prompt, content_id
from parm_mlx.preference import Alpha, parse_alpha


def read_prompts(file: Path) -> list[Prompt]:
    """Reads a file of prompts: one text per line, or JSON lines with a "prompt" and, if wanted, an "id".

    Raises:
        DataError: The file cannot be read, holds no prompt, or a line is wrong; the line is named.
    """
    if file.suffix == ".json":
        raise DataError(
            f"{file} is one JSON document; prompts are one per line", hint="as text or JSON lines: .txt, .jsonl"
        )
    lines = _lines(file)
    prompts = [_prompt(line, file, number) for number, line in lines]
    if not prompts:
        raise DataError(f"{file} holds no prompt")
    return prompts


def check_distinct(prompts: Sequence[Prompt], file: Path) -> None:
    """Checks that no two prompts have the same id.

    Raises:
        DataError: Two have.
    """
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        first = seen.setdefault(prompt.id, prompt)
        if first is not prompt:
            same = "prompt" if prompt.id == content_id(prompt.content) else f"id {prompt.id!r}"
            hint = "leave one out, or give them an id each" if same == "prompt" else None
            raise DataError(f"{file}:{prompt.line}: the same {same} as on line {first.line}", hint=hint)


def read_alphas(file: Path, objectives: Sequence[str]) -> list[Alpha]:
    """Reads a file of preferences: one per line, as ``0.7,0.3``, ``helpful=0.7,harmless=0.3`` or ``[0.7, 0.3]``.

    Raises:
        DataError: The file cannot be read, holds none, or one twice.
        PreferenceError: A line is no preference.
    """
    found: dict[Alpha, int] = {}
    for number, line in _lines(file):
        try:
            alpha = parse_alpha(line.strip().strip("[]"), objectives)
        except PreferenceError as error:
            raise PreferenceError(f"{file}:{number}: {error}", hint=error.hint) from None
        if alpha in found:
            raise DataError(f"{file}:{number}: the same preference as on line {found[alpha]}")
        found[alpha] = number
    if not found:
        raise DataError(f"{file} holds no preference")
    return list(found)


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _prompt(line: str, file: Path, number: int) -> Prompt:
    if not line.startswith("{"):
        return Prompt(content_id(line.strip()), line.strip(), number)
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{number}: broken JSON: {error}") from None
    if "prompt" not in row:
        raise DataError(f'{file}:{number}: "prompt" is missing')
    content = row["prompt"]
    if not _is_content(content):
        raise DataError(f'{file}:{number}: "prompt" must be a text or a list of messages, the last one not empty')
    name = row.get("id", content_id(content))
    if not isinstance(name, str | int) or name == "":
        raise DataError(f'{file}:{number}: "id" must be a text or a number')
    return Prompt(str(name), content, number)


def _is_content(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    messages = value if isinstance(value, list) and value else [None]
    return all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
