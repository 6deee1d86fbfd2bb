"""Draws docs/chat.svg: a chat with SmolLM2 in a terminal, as it came.

python docs/make_chat_picture.py
"""

import shlex
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.terminals import Terminal  # noqa: E402

PICTURE = ROOT / "docs" / "chat.svg"
COMMAND = ("chat", "--alpha", "cheer=1", "--max-tokens", "60", "--seed", "1")
TURNS = ("How do I make a friend?", "/compare base cheer=0.5,formality=0.5 formality=1")
COLUMNS = 88
LINE, ADVANCE, MARGIN, TITLE = 18, 7.83, 18, 30  # px, at 13 px type
COLOURS = {"$": "#8fbcbb", ">": "#a3be8c", "[": "#ebcb8b"}  # by the first character of a line
TEXT, BACK, BUTTON = "#d8dee9", "#1f2430", "#4c566a"


def main() -> None:
    """Holds the chat and draws it."""
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal(COMMAND, COLUMNS, Path(home), keep_cache=True)
        for turns, turn in enumerate((*TURNS, "/bye")):
            while terminal.text.count(">>") <= turns:
                terminal.read(0.05)
            terminal.write(f"{turn}\r")
        terminal.finish()
    lines = [f"$ parm-mlx {shlex.join(COMMAND)}", *terminal.lines[:-1]]
    PICTURE.write_text(drawn(lines), "utf-8")
    print("\n".join(lines))


def drawn(lines: list[str]) -> str:
    """Returns the picture of a terminal's lines."""
    width, height = round(COLUMNS * ADVANCE + 2 * MARGIN), TITLE + len(lines) * LINE + MARGIN
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/>',
        *(f'<circle cx="{MARGIN + 16 * i}" cy="15" r="5" fill="{BUTTON}"/>' for i in range(3)),
    ]
    for number, line in enumerate(lines, 1):
        if line:
            shapes.append(
                f'<text x="{MARGIN}" y="{TITLE + LINE * number - 4}" textLength="{len(line) * ADVANCE:.1f}"'
                f' xml:space="preserve" fill="{COLOURS.get(line[0], TEXT)}">{escape(line)}</text>'
            )
    return "\n".join([*shapes, "</svg>\n"])


if __name__ == "__main__":
    main()
