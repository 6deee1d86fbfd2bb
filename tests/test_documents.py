"""Every command of parm-mlx in the documents is one that parm-mlx takes: its name, its options and their values."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from parm_mlx.cli.app import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "_template" not in path.name
]
GENERATED = ("cli.md",)  # by the commands themselves
UNFINISHED = ("Missing argument", "requires an argument", "Missing option", "Missing command")


def commands(text: str) -> list[tuple[list[str], bool]]:
    """The arguments of every ``parm-mlx …`` in a document's code, and whether it is whole: prose may name a part.

    Lines that end in a backslash go on. What stands before the command (``$``, ``mlx.launch … --``, ``VAR=x``) and
    after it (a comment, a pipe, a redirection) is not part of it, and … stands for a value or for something left out.
    """
    fence = r"^ *```\w*\n(.*?)^ *```"
    blocks = re.findall(fence, text, flags=re.S | re.M)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    whole = [line for line in lines if re.match(r"(\$ |mlx\.launch .* |\w+=\S* )*(\S*/)?parm-mlx ", line)]
    prose = re.findall(r"`([^`]*)`", re.sub(fence, "", text, flags=re.S | re.M))
    parts = [" ".join(code.split()) for code in prose if re.search(r"\bparm-mlx (-|[a-z])", code)]
    return [(arguments(line), True) for line in whole] + [(arguments(line), False) for line in parts]


def arguments(line: str) -> list[str]:
    """What a shell would give to parm-mlx."""
    command = re.search(r"(?:^|[\s/])parm-mlx(?=\s)(.*)", line)
    assert command is not None, line
    words = shlex.split(command[1], comments=True)
    end = next((i for i, word in enumerate(words) if word in ("|", ">", "2>", "&&", ";", "<")), len(words))
    return [word for i, word in enumerate(words[:end]) if word != "…" or words[i - 1].startswith("--")]


def refusal(words: list[str]) -> str:
    """Why parm-mlx would refuse the words before it looks at any file; nothing if it would not."""
    program: Any = get_command(app)
    for option in program.params:
        if "completion" in option.name:
            option.callback = None  # it would be installed
    for command in program.commands.values():
        for inner in getattr(command, "commands", {"": command}).values():
            inner.callback = lambda **values: None
    try:
        program(words, standalone_mode=False)
    except SystemExit as end:  # of --help and --version
        return f"exit code {end.code}" if end.code else ""
    except Exception as error:
        if not hasattr(error, "format_message"):  # the command-line parser's
            raise
        return str(error.format_message())
    return ""


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name not in GENERATED], ids=lambda path: path.name)
def test_every_command_of_a_document_parses(path: Path) -> None:
    found = commands(path.read_text(encoding="utf-8"))
    refused = {" ".join(words): (refusal(words), whole) for words, whole in found}
    wrong = {
        words: reason
        for words, (reason, whole) in refused.items()
        if reason and (whole or not any(said in reason for said in UNFINISHED))
    }
    assert wrong == {}


def test_the_page_of_large_models_has_commands_for_every_way() -> None:
    found = [words for words, _ in commands((ROOT / "docs" / "large.md").read_text(encoding="utf-8"))]
    named = {words[0] for words in found if "--shard" in words}
    assert named >= {"doctor", "generate", "chat", "serve", "evaluate"}
    ways = {words[words.index("--shard") + 1] for words in found if "--shard" in words and words[-1] != "--shard"}
    assert ways >= {"tensor", "pipeline", "apart"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$ parm-mlx generate 'a b' --temp 0 | head   # first", ["generate", "a b", "--temp", "0"]),
        ("mlx.launch -n 2 -- /x/.venv/bin/parm-mlx doctor --json > out", ["doctor", "--json"]),
        ("parm-mlx chat --model m …", ["chat", "--model", "m"]),
        ("parm-mlx chat --model …", ["chat", "--model", "…"]),
    ],
)
def test_what_belongs_to_the_command(line: str, words: list[str]) -> None:
    assert arguments(line) == words


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("parm-mlx genrate hi", "No such command 'genrate'"),
        ("parm-mlx doctor --jsn", "No such option"),
        ("parm-mlx chat --speculation maybe", "'maybe' is not one of"),
        ("parm-mlx chat --model", "requires an argument"),
        ("parm-mlx doctor now", "unexpected extra argument"),
    ],
)
def test_what_it_refuses_is_found(line: str, reason: str) -> None:
    assert reason in refusal(arguments(line))
