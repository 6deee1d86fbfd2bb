"""The tokenizers of a base and a guide of different vocabularies: what can be told once of both, and of a text."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from parm_mlx.guidance.token_bytes import TokenBytes

FOREIGN = 1 << 24  # added to a base token where the sequence that the guide reads holds it
REMEMBERED = 4_000_000  # numbers about the guide's tokens that are kept
UNKNOWN = -1

Row = tuple[int, ...]  # tokens of the guide


@dataclass(frozen=True)
class Point:
    """What a sequence of symbols (:data:`FOREIGN`) comes to: ``committed`` guide tokens, then the bytes of a tail.

    ``recent`` are the last base tokens, as many as the tail is made of.
    """

    committed: int = 0
    tail: bytes = b""
    recent: Row = ()


class Pair:
    """What can be told once of a base's and a guide's tokenizer.

    Attributes:
        first: (V_guide,) the base token that each guide token's bytes begin with; V_base where there is none.
        head: (V_base,) the first of several guide tokens that make a base token; −1 where it takes one or none.
        places: Bytes at which the guide cuts base tokens.
        cut: Guide tokens that are such bytes.
        spelling: (V_guide,) the guide tokens that have bytes.
    """

    def __init__(self, base: TokenBytes, guide: TokenBytes, start: int) -> None:
        self.base, self.guide, self.start = base, guide, start
        size = len(base.pieces)
        self.first = np.full(len(guide.pieces), size, np.int64)
        known = [(g, piece) for g, piece in enumerate(guide.pieces) if piece]
        for (g, _), ids in zip(known, base.read_all(piece for _, piece in known), strict=True):
            self.first[g] = ids[0] if ids else size
        self.head = np.full(size, -1, np.int64)
        self.places: set[bytes] = set()
        self.control = {t: guide.control[text] for text, t in base.control.items() if text in guide.control}
        self.first[[*self.control.values()]] = [*self.control]
        self.impossible = np.ones(size, np.bool_)
        self.impossible[[*base.ends, *self.control]] = False
        self._rows: dict[int, Row] = {}
        self._after: dict[bytes, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
        self.spelling = np.array([bool(piece) for piece in guide.pieces])
        spelt = [(t, piece) for t, piece in enumerate(base.pieces) if piece]
        for (t, piece), row in zip(spelt, guide.read_all(piece for _, piece in spelt), strict=True):
            if guide.text(row) != piece:
                continue
            self.impossible[t] = False
            if len(row) > 1 and base.read(piece) == (t,):  # others are never what the base's tokenizer begins with
                self.head[t], self._rows[t] = row[0], row
                lengths = accumulate(len(guide.pieces[g] or b"") for g in row[:-1])
                self.places.update(piece[:length] for length in lengths)
        self.mark_cuts()

    def mark_cuts(self) -> None:
        """Finds the guide tokens that are ``places``."""
        self._after.clear()
        self.cut = np.array([g for g, piece in enumerate(self.guide.pieces) if piece in self.places], np.int64)

    def after(self, text: bytes, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The base token that a text and one guide token more begin with, and if the guide cuts a base token there.

        What was asked before is kept, for the texts asked last.
        """
        if (known := self._after.pop(text, None)) is None:
            known = np.full(len(self.guide.pieces), UNKNOWN), np.zeros(len(self.guide.pieces), np.bool_)
            while len(self._after) * len(self.guide.pieces) > REMEMBERED:
                del self._after[next(iter(self._after))]
        self._after[text] = known
        new = tokens[known[0][tokens] == UNKNOWN]
        longer = [text + (self.guide.pieces[g] or b"") for g in new]
        known[0][new] = [ids[0] if ids else len(self.base.pieces) for ids in self.base.read_all(longer)]
        known[1][new] = [each in self.places for each in longer]
        return known[0][tokens], known[1][tokens]

    def row(self, token: int) -> Row:
        """The guide tokens of a base token that takes several."""
        return self._rows[token]

    def path(self, point: Point) -> Row:
        """The guide tokens of a tail."""
        return self.guide.read(point.tail)

    def advance(self, point: Point, symbol: int, tokens: list[int]) -> Point:
        """Reads a symbol: a token of the guide's own, or of the base's. Committed tokens are added to ``tokens``.

        The first token of the tail is committed when another follows it and no guide token could reach from before it
        over the whole tail: a rule of bytes alone, so that what was read one by one is what was read at once.
        """
        if not tokens and symbol >= FOREIGN:
            tokens.append(self.start)
        own = self.control.get(symbol - FOREIGN) if symbol >= FOREIGN else symbol
        if own is not None:
            tokens += [*self.path(point), own]
            return Point(len(tokens))
        token = symbol - FOREIGN
        piece = self.base.pieces[token] if token < len(self.base.pieces) else None
        if piece and self.impossible[token]:
            piece = piece.translate(None, self.guide.missing)
        if not piece:
            return Point(len(tokens), point.tail, point.recent)
        tail, recent = point.tail + piece, [*point.recent, token]
        path = self.guide.read(tail)
        while len(path) > 1 and not self._reaches_over(tail):
            tokens.append(path[0])
            tail = tail[len(self.guide.pieces[path[0]] or b"") :]
            path = self.guide.read(tail)
        while len(self.base.text(recent[1:])) >= len(tail):
            recent.pop(0)
        return Point(len(tokens), tail, tuple(recent))

    def _reaches_over(self, tail: bytes) -> bool:
        found = self.guide.starting_with(tail)
        return len(found) > (tail in self.guide.by_bytes)
