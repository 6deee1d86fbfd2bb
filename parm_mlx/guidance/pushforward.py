"""A guide's distribution over the tokens of a base that has another vocabulary.

After the text s, the score of a token t of the base is

    E(t) = P_guide(the base's tokenizer, reading what the guide goes on to write after s, begins with t)

the guide's distribution over texts pushed forward to the base's tokens. It takes the place of π_θ(α) in Eq. 13, and is
the same where the tokenizers are. (The guide's probability that the text goes on with t's bytes is another number: it
gives a short token the mass of all its extensions.)

The guide's tokens for s are those that its tokenizer makes: a path. What it writes next either follows the path's end,
the tip, or began on the path before the tip and overhangs s. A guide token is attributed to the base token that its
bytes begin with; where that can still change with the guide token after it, and it matters, the guide is asked on.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.vocabulary_pair import Pair, Point, Row

NEVER = -1e4  # log E of what a guide cannot write: control tokens that it does not have
FLOOR = -80.0  # log E of what it never writes here
LOOKED = 2048  # likely tokens of the base among which candidates are looked for

Floats = NDArray[np.float64]


class Score:
    """E at one place of a text.

    Args:
        pair: The tokenizers.
        point: The place.
        probabilities: The guide's distributions (V_guide,) after the committed tokens and after each token of the path.
        logits: The base's logits (V_base,), by which candidates are chosen.
        strength: 1/β.
        how: How much is refined.

    Attributes:
        bound: Share of the guided distribution that is left open; 0 where nothing is.
    """

    def __init__(
        self,
        pair: Pair,
        point: Point,
        probabilities: Sequence[Floats],
        logits: Floats,
        strength: float,
        how: Refinement,
    ) -> None:
        self._pair, self._point, self._path, self._how = pair, point, pair.path(point), how
        self._strength, self._size = strength, len(pair.base.pieces)
        self._log_base = logits[: self._size] - logits[: self._size].max()
        most = min(max(LOOKED, how.candidates), self._size)
        self._likely = np.argpartition(-self._log_base.astype(np.float32), most - 1)[:most]
        self.bound = 0.0
        self._places: set[Row] = set()  # unlikely tokens after a node that were attributed all the same
        self._rest: dict[Row, int] = {}  # where the mass of a node is that was not
        self._doubts: list[tuple[float, Row, int]] = []  # tokens after nodes that the guide cuts: mass, row, base token
        self._entries: dict[Row, tuple[float, bytes]] = {}  # overhanging tokens: their mass, and what they add to s
        self._weigh(probabilities)
        self._after_tip(probabilities[-1])
        self._overhanging(probabilities)
        self._nodes: dict[Row, tuple[float, Floats]] = {
            self._path[:j]: each for j, each in enumerate(zip(self._weights, probabilities, strict=True))
        }

    def _weigh(self, probabilities: Sequence[Floats]) -> None:
        """The weights of the path's nodes relative to that of the heaviest thing that follows from it."""
        with np.errstate(divide="ignore"):
            steps = [np.log(p[g]) for p, g in zip(probabilities, self._path, strict=False)]
        logs = [0.0, *accumulate(steps)]
        self._ranges = []
        heights = [logs[-1]]
        at = 0
        for j, g in enumerate(self._path):
            rest = self._point.tail[at:]
            found = self._pair.guide.starting_with(rest)
            ids = self._pair.guide.ids[found.start + (rest in self._pair.guide.by_bytes) : found.stop]
            self._ranges.append((at, ids))
            if ids.size and (mass := probabilities[j][ids].sum()) > 0:
                heights.append(logs[j] + np.log(mass))
            at += len(self._pair.guide.pieces[g] or b"")
        top = max(heights)
        self._weights = (
            [float(np.exp(each - top)) for each in logs] if top > -np.inf else [0.0] * (len(logs) - 1) + [1.0]
        )

    def _after_tip(self, p: Floats) -> None:
        pair, weight = self._pair, self._weights[-1]
        known = p[: len(pair.first)]
        self.mass = weight * np.bincount(pair.first[: len(known)], known, self._size + 1)
        self.end = weight * float(p[pair.guide.ends].sum())
        self.mass[self._size] = max(self.mass[self._size] - self.end, 0.0)
        self.total = weight * float(p.sum())
        self._open = weight * np.bincount(pair.first[pair.cut], p[pair.cut], self._size + 1)

    def _overhanging(self, probabilities: Sequence[Floats]) -> None:
        """Adds what began on the path before the tip.

        Tokens count that the guide's tokenizer makes there, and after which the base's still ends a token at s.
        """
        share = self._how.share
        masses = [w * p[ids] for w, p, (_, ids) in zip(self._weights, probabilities, self._ranges, strict=False)]
        if not any(mass.size for mass in masses):
            return
        heavy = 100 * share * (self.total + sum(float(mass.sum()) for mass in masses))
        for j, mass in enumerate(masses):
            self._add(j, mass, mass > heavy, whole=True)
        light, likeliest = share * self.total, [self._pair.base.pieces[t] for t in self._likeliest()]
        for j, ((at, ids), mass) in enumerate(zip(self._ranges, masses, strict=True)):
            keep = mass > light
            if mass.size > len(likeliest):
                starts = self._point.tail[at:]
                exact = [self._pair.guide.by_bytes.get(starts + piece, -1) for piece in likeliest if piece]
                keep |= np.isin(ids, exact)
            self._add(j, mass, keep & (mass <= heavy), whole=False)

    def _add(self, j: int, mass: Floats, chosen: NDArray[np.bool_], whole: bool) -> None:
        """Adds the chosen ones of the tokens that overhang from node ``j``.

        Tokenizers are asked about each in its ``whole`` context, or beside its neighbour only.
        """
        pair, (at, ids), kept = self._pair, self._ranges[j], np.flatnonzero(chosen & (mass > 0))
        if not kept.size:
            return
        pieces = [pair.guide.pieces[g] or b"" for g in ids[kept]]
        rests = [piece[len(self._point.tail) - at :] for piece in pieces]
        firsts = [found[0] if found else self._size for found in pair.base.read_all(rests)]
        made, agreed = self._made(j, at, ids[kept], pieces, whole), self._agreed(rests, whole)
        for k, rest, first, counts in zip(kept, rests, firsts, made & agreed, strict=True):
            if counts:
                this = float(mass[k])
                self.mass[first] += this
                self.total += this
                self._entries[(*self._path[:j], int(ids[k]))] = this, rest
                if rest in pair.places:
                    self._open[first] += this

    def _looked(self) -> NDArray[np.int64]:
        """The base tokens of which any can matter: likely ones of the base, and of the guide; in order."""
        looked = self.mass[: self._size] > 1e-3 * self.total
        looked[self._likely] = True
        return np.flatnonzero(looked)

    def _likeliest(self) -> NDArray[np.int64]:
        count = min(self._how.candidates, len(self._likely))
        return self._likely[np.argpartition(-self._log_base[self._likely], count - 1)[:count]]

    def _made(self, j: int, at: int, ids: NDArray[np.int64], pieces: list[bytes], whole: bool) -> NDArray[np.bool_]:
        """Which tokens the guide's tokenizer makes after the first ``j`` of the path."""
        guide = self._pair.guide
        path = self._path[:j] if whole else self._path[:j][-1:]
        before = self._point.tail[:at] if whole else guide.text(path)
        read = guide.read_all(before + piece for piece in pieces)
        return np.array([found == (*path, int(g)) for found, g in zip(read, ids, strict=True)], np.bool_)

    def _agreed(self, rests: list[bytes], whole: bool) -> NDArray[np.bool_]:
        """After which bytes the base's tokenizer ends a token at s, as the base has."""
        base, recent = self._pair.base, self._point.recent if whole else self._point.recent[-1:]
        before = base.text(recent)
        read = base.read_all(before + rest for rest in rests)
        return np.array([found[: len(recent)] == recent for found in read], np.bool_)

    def wanted(self) -> list[Row]:
        """The rows after the committed tokens to read for what is still open; none where it does not matter.

        It sets ``bound``.
        """
        pair, e, (weight, p) = self._pair, self._strength, self._nodes[self._path]
        looked, over = self._looked(), self._rows_over_tip()
        heads = pair.head[looked]
        ahead = np.where((heads >= 0) & (heads < len(p)), weight * p[np.minimum(heads, len(p) - 1)], 0.0)
        read = {
            node[len(self._path)] for node in self._nodes if len(node) > len(self._path) == _shared(node, self._path)
        }
        for k in np.flatnonzero(np.isin(heads, [*read])) if read else ():
            ahead[k] = self._waiting((*self._path, *pair.row(int(looked[k]))))
        further = {t: waiting for t, row in over.items() if (waiting := self._waiting(row)) > 0}
        for t, waiting in further.items():
            ahead[np.searchsorted(looked, t)] += waiting
        mass, reach, base = self.mass[looked], self._open[looked], self._log_base[looked]
        with np.errstate(divide="ignore"):
            height, high = base + e * np.log(mass), base + e * np.log(mass + ahead)
            low = base + e * np.log(np.maximum(mass - reach, 0))
        top = high.max()
        if not np.isfinite(top) or not (reach + ahead).any():
            self.bound = 0.0
            return []
        gaps, z = np.exp(high - top) - np.exp(low - top), np.exp(height - top).sum()
        if len(gaps) > self._how.candidates:
            gaps[np.argpartition(-high, self._how.candidates - 1)[self._how.candidates :]] = 0
        self.bound = float(gaps.sum() / (z + gaps.sum()))
        if gaps.sum() <= self._how.tolerance * z:
            return []
        rows: dict[Row, None] = {}
        for k in np.argsort(-gaps):
            if len(rows) == self._how.rows or gaps[k] <= self._how.tolerance * z / 10 / self._how.candidates:
                break
            t = int(looked[k])
            row: Row | None = over[t] if 2 * further.get(t, 0) > ahead[k] else None
            if row is None:
                row = (*self._path, *pair.row(t)) if ahead[k] >= reach[k] and heads[k] >= 0 else self._doubt(t)
            if row is not None and not any(other[: len(row)] == row for other in rows):
                rows = {**{other: None for other in rows if row[: len(other)] != other}, row: None}
        return [*rows]

    def _rows_over_tip(self) -> dict[int, Row]:
        """The rows to likely base tokens that the guide does not begin at the tip, but before it."""
        pair, tail = self._pair, self._point.tail
        heavy = [(rest, node) for node, (mass, rest) in self._entries.items() if mass > 1e-3 * self.total]
        if not heavy:
            return {}
        found = {}
        for t in self._likeliest():
            piece = pair.base.pieces[t]
            if piece and any(len(rest) < len(piece) and piece.startswith(rest) for rest, _ in heavy):
                row = pair.guide.read(tail + piece)
                if any(row[: len(node)] == node for _, node in heavy):
                    found[int(t)] = row
        return found

    def _waiting(self, row: Row) -> float:
        """The mass that waits at the first token of a row that was not read; its last one need not be."""
        for j in range(len(row) - 1):
            if row[: j + 1] not in self._nodes:
                if row[:j] not in self._nodes:
                    return 0.0
                weight, p = self._nodes[row[:j]]
                return float(weight * p[row[j]])
        return 0.0

    def _doubt(self, token: int) -> Row | None:
        """The heaviest token after the tip, or over it, that is attributed to a base token and cut by the guide."""
        pair, (weight, p) = self._pair, self._nodes[self._path]
        cut = pair.cut[pair.first[pair.cut] == token]
        found = [(weight * p[g], (*self._path, int(g))) for g in cut]
        for node, (mass, rest) in self._entries.items():
            if rest in pair.places and pair.base.read(rest)[:1] == (token,):
                found.append((mass, node))
        found += [(mass, row) for mass, row, first in self._doubts if first == token]
        mass, row = max(((m, row) for m, row in found if row not in self._nodes), default=(0.0, None))
        return row if mass > 0 else None

    def refine(self, rows: Iterable[tuple[Row, int, Sequence[Floats]]]) -> None:
        """Attributes again what the guide writes after rows, given the distributions after each of their tokens.

        They begin at the token of an index; tokens before it are on the path.
        """
        found = {row[: start + j + 1]: p for row, start, read in rows for j, p in enumerate(read)}
        for node in sorted(found, key=len):
            before = node[:-1]
            if node in self._nodes or before not in self._nodes:
                continue
            if _shared(before, self._path) == len(before) < len(self._path) and node not in self._entries:
                continue
            weight = self._nodes[before][0] * float(self._nodes[before][1][node[-1]])
            self._nodes[node] = weight, found[node]
            self._spread(node, weight, found[node], [other[-1] for other in found if other[:-1] == node])

    def _spread(self, node: Row, weight: float, p: Floats, always: list[int]) -> None:
        """Moves the mass of one node from the base token of its bytes to those of its bytes and one token more."""
        pair, size, text = self._pair, self._size, self._pair.guide.text(node)[len(self._point.tail) :]
        at, own = self._where(node), ids[0] if (ids := pair.base.read(text)) else size
        if text in pair.places:
            self._open[at] = max(self._open[at] - weight, 0.0)
        self.mass[at] = max(self.mass[at] - weight, 0.0)
        likely = p[: len(pair.guide.pieces)] > 10 * self._how.share
        likely[always] = True
        tokens = np.flatnonzero(likely & pair.spelling)
        masses, (firsts, cut) = weight * p[tokens], pair.after(text, tokens)
        np.add.at(self.mass, firsts, masses)
        np.add.at(self._open, firsts[cut], masses[cut])
        rest = weight - masses.sum()
        for k in np.flatnonzero(cut & (masses > 1e-4 * self.total)):
            self._doubts.append((float(masses[k]), (*node, int(tokens[k])), int(firsts[k])))
        self._places |= {(*node, g) for g in always}
        self._rest[node] = own
        self.mass[own] += max(rest, 0.0)

    def _where(self, node: Row) -> int:
        """The base token that the mass of a node, of which no token was told apart yet, is attributed to."""
        if node[:-1] == self._path:
            return int(self._pair.first[node[-1]])
        if node in self._entries:
            return self._pair.base.read(self._entries[node][1])[0]
        before, p = node[:-1], self._nodes[node[:-1]][1]
        if node in self._places or p[node[-1]] > 10 * self._how.share:
            text = self._pair.guide.text(before)[len(self._point.tail) :]
            return int(self._pair.after(text, np.array([node[-1]]))[0][0])
        return self._rest[before]

    def log(self) -> Floats:
        """Log E of every base token, (V_base,); all tokens that end an answer have that of an end."""
        if not np.isfinite(self.total):
            return np.full(self._size, np.nan)  # the guide's logits were not finite
        scale = max(self.total, 1e-300)
        out, least = np.full(self._size, FLOOR), np.exp(FLOOR)
        some = np.flatnonzero(self.mass[: self._size] > least * scale)
        out[some] = np.log(self.mass[some] / scale)
        out[self._pair.impossible] = NEVER
        out[self._pair.base.ends] = np.log(max(self.end / scale, least))
        return out


def _shared(a: Row, b: Row) -> int:
    """The number of tokens that two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
