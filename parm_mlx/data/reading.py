"""From a file to decoded rows, one at a time: JSON lines or a JSON list, as they are or compressed with gzip."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from parm_mlx.data.formats import decode
from parm_mlx.data.pairs import Problems, RowError

MAX_LINE = 16 * 2**20
CHUNK = 2**20
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SPACE = " \t\r\n"


def read_rows(path: Path, problems: Problems, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (``name:line``, decoded row); what cannot be decoded goes to ``problems``.

    Memory is that of one row. In a list, nothing can be read after a row that is broken JSON.

    Args:
        path: The file.
        problems: Where bad rows go.
        name: What to call the file; its own name, when left out.

    Raises:
        OSError: The file cannot be read.
    """
    name = name or path.name
    where = f"{name}:1"
    with path.open("rb") as raw:
        packed = raw.peek(2).startswith(_GZIP)
        file = cast(io.BufferedReader, gzip.GzipFile(fileobj=raw) if packed else raw)
        try:
            start = file.peek(256)
            if start.startswith(_UTF_16):
                problems.add(where, "the file is UTF-16; save it as UTF-8")
                return
            is_list = ".json" in path.suffixes and start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
            for where, row in _read_list(file, name, problems) if is_list else _read_lines(file, name, problems):
                yield where, row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            problems.add(where, f"the compressed file is broken here or soon after: {error}")


def _read_lines(file: BinaryIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        where = f"{name}:{number}"
        if len(raw) > MAX_LINE:
            problems.add(where, f"the line is longer than {MAX_LINE // 2**20} MiB")
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE)
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield where, decode(text)
        except UnicodeDecodeError as error:
            problems.add(where, f"not UTF-8 text (byte {error.start + 1} of the line)")
        except RowError as error:
            problems.add(where, error)


def _read_list(file: BinaryIO, name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    text = _Text(file)
    try:
        text.take("[")
        if text.take("]"):
            return
        while True:
            text.skip_space()
            where = f"{name}:{text.line}"
            yield where, text.value()
            if text.take("]"):
                break
            if not text.take(","):
                raise RowError(
                    "broken JSON: rows of a list are separated by ','" if text.left() else "the list has no end"
                )
        if text.left():
            raise RowError("broken JSON: something follows the end of the list")
    except RowError as error:
        problems.add(f"{name}:{text.line}", error)
    except UnicodeDecodeError:
        problems.add(f"{name}:{text.line}", "not UTF-8 text, here or soon after")


class _Text:
    """A text that is read piece by piece, and the line that reading has come to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer, self._position = "", 0
        self._decoder = json.JSONDecoder()
        self.line = 1

    def left(self) -> bool:
        """Whether there is more than white space."""
        self.skip_space()
        return self._position < len(self._buffer)

    def take(self, character: str) -> bool:
        """Moves over a character if it is the next one after white space."""
        found = self.left() and self._buffer[self._position] == character
        self._position += found
        return found

    def skip_space(self) -> None:
        """Moves to the next character that is no white space."""
        while True:
            start = self._position
            while self._position < len(self._buffer) and self._buffer[self._position] in _SPACE:
                self._position += 1
            self.line += self._buffer.count("\n", start, self._position)
            if self._position < len(self._buffer) or not self._more():
                return

    def value(self) -> Any:
        """The JSON value that begins here.

        Raises:
            RowError: It is broken, or longer than the limit.
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._position > MAX_LINE:
                    raise RowError(f"broken JSON, or a row longer than {MAX_LINE // 2**20} MiB") from None
                if not self._more():
                    self.line += self._buffer.count("\n", self._position, error.pos)
                    raise RowError(f"broken JSON: {error.msg} at column {error.colno}") from None
            except (ValueError, RecursionError):
                raise RowError("broken JSON: a number or a nesting that is too large") from None
            else:
                self.line += self._buffer.count("\n", self._position, end)
                self._position = end
                return value

    def _more(self) -> bool:
        """Reads on, doubling what is held, so that a long row is not tried too often."""
        rest = self._buffer[self._position :]
        piece, data = "", b"begin"
        while data and not piece:
            data = self._file.read(max(CHUNK, len(rest)))
            piece = self._utf8.decode(data, final=not data)
        self._buffer, self._position = rest + piece, 0
        return bool(piece)
