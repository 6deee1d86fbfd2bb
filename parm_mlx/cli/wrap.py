"""Wrapping text to the width of a terminal while it is written, so that no word is broken at the edge."""

import re
from collections.abc import Callable

from rich.cells import cell_len

# A line break, other white space, a word, or one character of a script that writes no spaces.
_PARTS = re.compile(r"\n|[^\S\n]+|[\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]|\S")


class Wrap:
    """Takes text as it comes and writes it on in whole words.

    Args:
        write: Receives what is to be printed.
        width: Returns the number of columns.
        indent: What every line begins with.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[], int], indent: str = "") -> None:
        self._write, self._width, self._indent = write, width, indent
        self._column = 0
        self._space, self._word = "", ""

    def feed(self, text: str) -> None:
        """Takes more text; its last word is written with what follows it."""
        for part in _PARTS.findall(text):
            if part == "\n":
                self._end_word()
                self._end_line()
            elif part.isspace():
                self._end_word()
                self._space += part
            else:
                if cell_len(part) > 1:
                    self._end_word()
                self._word += part

    def close(self) -> None:
        """Writes the last word, and the line break that is missing after it."""
        self._end_word()
        if self._column:
            self._end_line()

    def _end_word(self) -> None:
        if not self._word:
            return
        space, room = self._space.expandtabs(), self._width() - self._column
        if self._column and cell_len(space) + cell_len(self._word) > room:
            self._end_line()
            space = ""
        text = (self._indent if not self._column else "") + space + self._word
        self._write(text)
        self._column += cell_len(text)
        self._space = self._word = ""

    def _end_line(self) -> None:
        self._write("\n")
        self._column, self._space = 0, ""
