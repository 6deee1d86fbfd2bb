"""Files of prompts and of preferences."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.data.formats import check_text, parse_prompt
from parm_mlx.data.pairs import Problems, RowError
from parm_mlx.data.sources import check_regular, read_rows
from parm_mlx.errors import DataError, PreferenceError
from parm_mlx.files import expanded, read_text
from parm_mlx.guidance.prompts import Prompt, content_id
from parm_mlx.preference import Alpha, parse_alpha


def read_prompts(file: Path) -> list[Prompt]:
    """Reads a file of prompts, by its suffix.

    ``.txt``, like a file without suffix, has a prompt on each line. ``.jsonl`` (a row on each line) and ``.json`` (a
    list of rows) have texts, or objects with ``prompt`` and optionally ``id`` or ``uid``. ``.csv`` has a column
    ``prompt``, and optionally ``id``.

    Raises:
        DataError: The file cannot be read, has another suffix or no prompt, or rows are wrong; all are named.
    """
    file, problems, prompts = expanded(file, DataError), Problems(), list[Prompt]()
    if file.suffix == ".txt" or (file.suffix == "" and not _text(file).lstrip().startswith('{"')):
        rows: Iterator[tuple[int, Any]] = _lines(file)
    elif file.suffix == ".csv":
        rows = _csv_rows(file, problems)
    elif file.suffix in (".jsonl", ".json"):
        rows = read_rows(file, problems, str(file))
    else:
        raise DataError(f"{file}: a file of prompts must end with .txt, .jsonl, .json or .csv")
    for line, row in rows:
        try:
            prompts.append(_prompt(row, line))
        except RowError as error:
            problems.add(f"{file}:{line}", error)
    problems.raise_any(file)
    if not prompts:
        raise DataError(f"{file} holds no prompt")
    return prompts


def check_distinct(prompts: Sequence[Prompt], file: Path) -> None:
    """Raises DataError where two prompts have the same id."""
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
        PreferenceError: A line is not a preference.
    """
    file, found = expanded(file, DataError), dict[Alpha, int]()
    for number, line in _lines(file):
        try:
            alpha = parse_alpha(line.strip("[]"), objectives)
        except PreferenceError as error:
            raise PreferenceError(f"{file}:{number}: {error}", hint=error.hint) from None
        if alpha in found:
            raise DataError(f"{file}:{number}: the same preference as on line {found[alpha]}")
        found[alpha] = number
    if not found:
        raise DataError(f"{file} holds no preference")
    return list(found)


def _text(file: Path) -> str:
    check_regular(file)
    return read_text(file, "input", DataError)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def _csv_rows(file: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    rows = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        if "prompt" not in (rows.fieldnames or ()):
            raise DataError(f"{file}: the first line must name the columns, one of them 'prompt'")
        for row in rows:
            yield rows.line_num, {key: value for key, value in row.items() if value and key in ("prompt", "id", "uid")}
    except csv.Error as error:
        problems.add(f"{file}:{rows.line_num}", f"broken CSV: {error}")


def _prompt(row: Any, line: int) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise RowError("a prompt is a text, or an object with 'prompt'")
    content = parse_prompt(row)
    name = row.get("id", row.get("uid", content_id(content)))
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise RowError("'id' must be a text or a number")
    return Prompt(check_text(str(name), "'id'"), content, line)
