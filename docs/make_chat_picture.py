"""Draws docs/chat.svg: a conversation with SmolLM2 in a terminal, as it comes.

python docs/make_chat_picture.py
"""

import sys
import tempfile
from html import escape
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from terminals import Terminal

PICTURE = Path(__file__).parent / "chat.svg"
COLUMNS, SIZE, LINE = 96, 13, 18
WIDTH = 0.602 * SIZE  # of a character
TURNS = (
    ("What should I do on a rainy Sunday?", ">> What"),
    ("/alpha cheer=1", "preference: cheer=1"),
    ("/reset", "starts again"),
    ("What should I do on a rainy Sunday?", ""),
)


def main() -> None:
    """Runs the conversation and draws its screen."""
    command = ("chat", "--alpha", "base", "--model", "smollm2", "--parm", "smollm2", "--max-tokens", 60, "--seed", 7)
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal(command, COLUMNS, Path(home), keep_cache=True)
        terminal.wait_for(">>")
        for turn, text in TURNS:
            before = terminal.text.count(">>")
            terminal.write(f"{turn}\r")
            while terminal.text.count(">>") == before:
                terminal.wait_for(text)
                terminal.read(0.1)
        terminal.write("/bye\r")
        terminal.finish()
    rows = [row for row in range(len(terminal.lines)) if terminal.lines[row].strip() != ">> /bye"]
    height = LINE * (len(rows) + 1)
    shapes = [f'<rect width="{COLUMNS * WIDTH + 24:.0f}" height="{height}" rx="8" fill="#1e1e1e"/>']
    for y, row in enumerate(rows, 1):
        cells = [terminal.screen.buffer[row][column] for column in range(COLUMNS)]
        for column, text, dim in _runs(cells):
            colour = "#8a8a8a" if dim else "#e4e4e4"
            x = 12 + column * WIDTH
            shapes.append(
                f'<text x="{x:.1f}" y="{y * LINE}" fill="{colour}" xml:space="preserve">{escape(text)}</text>'
            )
    style = f'font-family="ui-monospace, Menlo, DejaVu Sans Mono, monospace" font-size="{SIZE}"'
    box = f'viewBox="0 0 {COLUMNS * WIDTH + 24:.0f} {height}"'
    body = "\n".join(shapes)
    PICTURE.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {box} {style}>\n{body}\n</svg>\n', encoding="utf-8")
    print(PICTURE)


def _runs(cells: list) -> list[tuple[int, str, bool]]:
    """Pieces of a line in one style: the column, the text and whether it is a note, which rich writes dimmed."""
    found, column = [], 0
    line = "".join(cell.data for cell in cells).rstrip()
    is_note = line.startswith(("preference:", "the conversation", "cut at", "smollm2 is"))
    for _, group in groupby(cells[: len(line)], key=lambda cell: cell.fg):
        text = "".join(cell.data for cell in group)
        found.append((column, text, is_note))
        column += len(text)
    return found


if __name__ == "__main__":
    main()
