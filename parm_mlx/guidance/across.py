"""A base guided by a PARM of another vocabulary, as an mlx-lm model.

The guide reads symbols: its own tokens, for its prompt, and tokens of the base (plus ``FOREIGN``), of which it takes
the bytes. For the tokens of the base that follow it computes log E (:mod:`parm_mlx.guidance.pushforward`), which takes
the place of log π_θ(α) in Eq. 13. Where the vocabularies differ in their ids only
(:mod:`parm_mlx.guidance.renumbered`), log E is its own distribution in the base's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from parm_mlx.errors import ModelError
from parm_mlx.guidance.guide import Cache, Guide, Guides
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.pushforward import NEVER, Floats, Score
from parm_mlx.guidance.refinement import AcrossCount, Refinement
from parm_mlx.guidance.renumbered import ForeignGuide, RenumberedGuide
from parm_mlx.guidance.vocabulary_pair import FOREIGN, Pair, Point, Row
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import AcrossCache, ForkedEntry, PreferenceCache, ReadSequence, are_plain
from parm_mlx.preference import AlphaSpec
from parm_mlx.ranges import DRAFT_TOKENS

SCORED = DRAFT_TOKENS.high + 1  # of more positions in one call only the last is scored: so prompts are read
ROWS = 64  # most rows of one pass

_Job = tuple[int, int, Row]  # a sequence, and a row of its tokens that is read from one of them on


@dataclass
class _Place:
    """A position to score: the sequence, what it came to there, and the distributions found so far."""

    sequence: int
    row: int  # where the scores belong
    column: int
    point: Point
    tokens: Row  # committed ones, then the path
    known: dict[int, Floats] = field(default_factory=dict)

    @property
    def root(self) -> int:
        return self.point.committed - 1

    def start(self, held: Sequence[int]) -> int | None:
        """The first token that must be read, after those whose keys and values are held; None if all is known."""
        shared = _shared(self.tokens, held)
        if shared < self.root:
            return shared
        return next((i for i in range(self.root, len(self.tokens)) if i >= shared or i not in self.known), None)


class AcrossGuide(ForeignGuide):
    """A guide, seen by a base of another vocabulary.

    Args:
        guide: The guide; several of one objective each count as one, whose distribution is their weighted product.
        pair: The tokenizers of base and guide.
        how: How much is read to tell base tokens apart.

    Attributes:
        count: Passes, and what was left out.

    Raises:
        ModelError: The prompt cache of the guide is not plain keys and values.
    """

    def __init__(self, guide: Guide | Guides, pair: Pair, how: Refinement | None = None) -> None:
        super().__init__(guide)
        self._pair, self._how = pair, how or Refinement()
        self.count = AcrossCount()
        if not are_plain(guide.make_cache()[:-1]):
            raise ModelError(
                "base and guide have different vocabularies, and the guide's prompt cache is recurrent, rotating or "
                "quantised: what it would go on to write cannot be tried out",
                hint="leave out --kv-bits and --max-kv-size, or take a guide of plain attention",
            )

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return [self.guide, self]

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float = 1.0) -> Cache:
        """Makes a prompt cache for one sequence: what the guide reads of it, then the preference."""
        *entries, preference = self.guide.make_cache(alpha, strength)
        return [AcrossCache([ReadSequence(entries)]), preference]

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Reads symbols (B, L) into a cache; returns the guide's own logits (B, V_guide) after them."""
        entry, preference = self._entries(cache, inputs.shape[0])
        symbols = cast("list[list[int]]", preference.take_inputs(inputs).tolist())
        jobs: list[_Job] = []
        for i, (sequence, row) in enumerate(zip(entry.sequences, symbols, strict=True)):
            self._catch_up(sequence)
            for symbol in row:
                point = self._advance(sequence, symbol)
            tokens = (*sequence.committed, *self._pair.path(point))
            start = min(_shared(tokens, sequence.tokens), len(tokens) - 1)
            jobs.append((i, start, tokens))
        if len(jobs) == 1:
            return self._read_on(entry, preference, jobs[0])[:, -1]
        logits, forked = self._fork(entry, preference, jobs)
        for number, (i, start, tokens) in enumerate(jobs):
            self._hold(entry.sequences[i], start, tokens, forked, number)
        return mx.stack([logits[number, len(tokens) - start - 1] for number, (_, start, tokens) in enumerate(jobs)])

    def score(self, symbols: mx.array, logits: mx.array, cache: Cache | None = None) -> mx.array:
        """Log E over the base's tokens, after each of the symbols.

        Args:
            symbols: (B, L) what the guide reads where the base reads tokens: those, plus ``FOREIGN``.
            logits: (B, L, V_base) the base's own there, by which candidates are chosen.
            cache: A cache of :meth:`make_cache`.

        Returns:
            (B, L, V_base) float32, up to a constant; zeros where the base answers alone, and before the last of more
            than ``SCORED`` positions.
        """
        entry, preference = self._entries(cache, symbols.shape[0])
        mx.async_eval(logits)
        strengths = cast("list[float]", preference.strength.tolist())
        out = np.zeros(logits.shape, np.float32)
        places = []
        read = cast("list[list[int]]", preference.take_inputs(symbols).tolist())
        for i, (sequence, row) in enumerate(zip(entry.sequences, read, strict=True)):
            self._catch_up(sequence)
            for j, symbol in enumerate(row):
                point = self._advance(sequence, symbol)
                if strengths[i] > 0 and (len(row) <= SCORED or j == len(row) - 1) and point.committed:
                    places.append(_Place(i, i, j, point, (*sequence.committed, *self._pair.path(point))))
        if not places:
            return mx.array(out)
        self._read_paths(entry, preference, places)
        base = np.array(widened(logits))
        scores = []
        for place in places:
            probabilities = [place.known[i] for i in range(place.root, len(place.tokens))]
            values = base[place.row, place.column].astype(np.float64)
            scores.append(Score(self._pair, place.point, probabilities, values, strengths[place.sequence], self._how))
        self._refine(entry, preference, places, scores)
        size = min(out.shape[-1], len(self._pair.base.pieces))
        for place, score in zip(places, scores, strict=True):
            out[place.row, place.column] = NEVER
            out[place.row, place.column, :size] = score.log()[:size]
            self.count.positions += 1
            self.count.open += score.bound
            self.count.most_open = max(self.count.most_open, score.bound)
        return mx.array(out)

    def _entries(self, cache: Cache | None, rows: int) -> tuple[AcrossCache, PreferenceCache]:
        if cache:
            return cache[-2], cache[-1]
        made = [self.make_cache() for _ in range(rows)]
        return AcrossCache.merge([each[0] for each in made]), PreferenceCache.merge([each[1] for each in made])

    def _catch_up(self, sequence: ReadSequence) -> None:
        """Finds again what the symbols of a loaded sequence came to."""
        known, sequence.symbols = sequence.symbols, sequence.symbols[: len(sequence.points)]
        for symbol in known[len(sequence.points) :]:
            self._advance(sequence, symbol)

    def _advance(self, sequence: ReadSequence, symbol: int) -> Point:
        before = sequence.points[-1] if sequence.points else Point()
        point = self._pair.advance(before, symbol, sequence.committed)
        sequence.symbols.append(symbol)
        sequence.points.append(point)
        return point

    def _read_paths(self, entry: AcrossCache, preference: PreferenceCache, places: list[_Place]) -> None:
        """Finds the distributions after the committed tokens and the path of each place, in one pass.

        Sequences then hold the keys and values of their last place.
        """
        last = {place.sequence: place for place in places}
        wanted: dict[int, tuple[int, dict[Row, None]]] = {}
        for place in places:
            sequence = entry.sequences[place.sequence]
            shared = _shared(place.tokens, sequence.tokens)
            place.known = {i: p for i, p in sequence.known.items() if i < shared}
            if len(places) == len(last):
                self._take_from_fork(sequence, place)
            if (start := place.start(sequence.tokens)) is not None:
                before, rows = wanted.get(place.sequence, (start, {}))
                rows[place.tokens] = None
                wanted[place.sequence] = min(before, start), rows
        jobs = [
            (i, start, row)
            for i, (start, rows) in wanted.items()
            for row in rows
            if not any(row != other and other[: len(row)] == row for other in rows)
        ]
        found = self._pass(entry, preference, jobs, {i: place.tokens for i, place in last.items()})
        for place in places:
            for (i, start, row), distributions in zip(jobs, found, strict=True):
                if i == place.sequence:
                    end = _shared(row, place.tokens)
                    place.known |= {k: distributions[k - start] for k in range(max(start, place.root), end)}
        for i, place in last.items():
            entry.sequences[i].known = {k: p for k, p in place.known.items() if k >= place.root}

    def _take_from_fork(self, sequence: ReadSequence, place: _Place) -> None:
        """Goes on along a row that was read to tell tokens apart, where the text went on so."""
        fork: _Fork | None = sequence.fork
        start = place.start(sequence.tokens)
        if fork is None or start is None or start < fork.start:
            return
        for number, row in fork.rows:
            if row[: len(place.tokens)] == place.tokens and sequence.tokens[: fork.start] == list(row[: fork.start]):
                self._hold(sequence, fork.start, place.tokens, fork.entries, number)
                place.known |= {k: fork.found[number][k - fork.start] for k in range(fork.start, len(place.tokens))}
                return

    def _pass(
        self, entry: AcrossCache, preference: PreferenceCache, jobs: list[_Job], kept: dict[int, Row]
    ) -> list[list[Floats]]:
        """Reads rows and returns their distributions; the sequences hold ``kept`` rows, or more, afterwards."""
        if len(jobs) == 1:
            ((_, start, row),) = jobs
            return self._distributions(self._read_on(entry, preference, jobs[0]), [len(row) - start])
        found = []
        for at in range(0, len(jobs), ROWS):
            part = jobs[at : at + ROWS]
            logits, forked = self._fork(entry, preference, part)
            found += self._distributions(logits, [len(row) - start for _, start, row in part])
            for number, (i, start, row) in enumerate(part):
                if row[: len(kept[i])] == kept[i]:
                    self._hold(entry.sequences[i], start, kept[i], forked, number)
        return found

    def _read_on(self, entry: AcrossCache, preference: PreferenceCache, job: _Job) -> mx.array:
        """Reads a row into its sequence; returns the guide's logits (1, L, V_guide)."""
        i, start, row = job
        sequence = entry.sequences[i]
        sequence.keep(start)
        logits = self._run(mx.array([row[start:]]), sequence.entries, entry, preference, [i])
        sequence.tokens += row[start:]
        sequence.fork = None
        return logits

    def _fork(
        self, entry: AcrossCache, preference: PreferenceCache, jobs: list[_Job]
    ) -> tuple[mx.array, list[ForkedEntry]]:
        """Reads rows beside their sequences; returns logits (rows, L, V_guide), padded on the right."""
        longest = max(len(row) - start for _, start, row in jobs)
        ids = mx.array([[*row[start:], *[0] * (longest - len(row) + start)] for _, start, row in jobs])
        starts, sequences = [start for _, start, _ in jobs], [entry.sequences[i] for i, _, _ in jobs]
        layers = range(len(sequences[0].entries))
        forked = [ForkedEntry([each.entries[layer] for each in sequences], starts) for layer in layers]
        return self._run(ids, forked, entry, preference, [i for i, _, _ in jobs]), forked

    def _hold(
        self, sequence: ReadSequence, start: int, tokens: Row, forked: Sequence[ForkedEntry], number: int
    ) -> None:
        """Has a sequence go on along a row that was read beside it."""
        sequence.keep(start)
        for each in forked:
            each.write(number, 0, len(tokens) - start)
        sequence.tokens += tokens[start:]
        sequence.fork = None

    def _run(
        self, ids: mx.array, entries: Sequence[Any], entry: AcrossCache, preference: PreferenceCache, rows: list[int]
    ) -> mx.array:
        """The guide's logits for rows of these sequences."""
        self.count.passes += 1
        self.count.rows += len(rows)
        alphas = cast("list[list[float]]", preference.alpha.tolist())
        key = tuple(tuple(alphas[i]) for i in rows)
        key = key[:1] if len(set(key)) == 1 else key
        if key not in entry.bound:
            if len(entry.bound) > 16:
                entry.bound.clear()
            entry.bound[key] = PreferenceCache(mx.array(key, dtype=mx.float32))
        return self.guide(ids, cache=[*entries, entry.bound[key]])

    def _distributions(self, logits: mx.array, sizes: Sequence[int]) -> list[list[Floats]]:
        values, pieces = np.array(widened(logits)), len(self._pair.guide.pieces)
        return [[_softmax(values[row, k], pieces) for k in range(size)] for row, size in enumerate(sizes)]

    def _refine(
        self, entry: AcrossCache, preference: PreferenceCache, places: list[_Place], scores: list[Score]
    ) -> None:
        """Has the guide read on where base tokens take several of its own."""
        asking = list(zip(places, scores, strict=True))
        for _ in range(self._how.rounds):
            wanted = [(place, score, rows) for place, score in asking if (rows := score.wanted())]
            for at in range(0, len(wanted), at_once := max(ROWS // self._how.rows, 1)):
                self._refine_by(entry, preference, wanted[at : at + at_once])
            asking = [(place, score) for place, score, _ in wanted]
        for _, score in asking:
            score.wanted()  # tells what is left open

    def _refine_by(
        self, entry: AcrossCache, preference: PreferenceCache, wanted: list[tuple[_Place, Score, list[Row]]]
    ) -> None:
        """Reads the rows that scores want in one pass, each sequence's from one token on."""
        starts: dict[int, int] = {}
        for place, _, rows in wanted:
            held = entry.sequences[place.sequence].tokens
            for row in rows:
                whole = (*place.tokens[: place.point.committed], *row)
                start = min(_shared(whole, held), _shared(whole, place.tokens))
                starts[place.sequence] = min(start, starts.get(place.sequence, start))
        jobs = [
            (place.sequence, starts[place.sequence], (*place.tokens[: place.point.committed], *row))
            for place, _, rows in wanted
            for row in rows
        ]
        logits, forked = self._fork(entry, preference, jobs)
        found = self._distributions(logits, [len(row) - start for _, start, row in jobs])
        at = 0
        for place, score, rows in wanted:
            start = starts[place.sequence]
            numbers = range(at, at + len(rows))
            score.refine((row, start - place.point.committed, found[n]) for n, row in zip(numbers, rows, strict=True))
            entry.sequences[place.sequence].fork = _Fork(start, [(n, jobs[n][2]) for n in numbers], forked, found)
            at += len(rows)


@dataclass(frozen=True)
class _Fork:
    """Rows that were read beside a sequence, by their number in the pass."""

    start: int
    rows: list[tuple[int, Row]]
    entries: list[ForkedEntry]
    found: list[list[Floats]]


class AcrossModel(GuidedModel):
    """A base model guided by a PARM of another vocabulary."""

    guide: AcrossGuide | RenumberedGuide  # type: ignore[assignment]
    shift = FOREIGN

    def __init__(self, base: nn.Module, guide: AcrossGuide | RenumberedGuide, beta: float = 1.0) -> None:
        super().__init__(base, cast("Any", guide), beta)

    @property
    def count(self) -> AcrossCount | None:
        """Passes of the guide, and what was left out; None where the vocabularies differ in their ids only."""
        return self.guide.count if isinstance(self.guide, AcrossGuide) else None

    @property
    def vocabulary(self) -> int:
        """V, the base's tokens."""
        return int(self.base(mx.array([[0]])).shape[-1])

    def guide_logits(self, symbols: mx.array, base_logits: mx.array, cache: Cache | None) -> mx.array:
        """Log E (B, L, V_base) after symbols (B, L): see :meth:`AcrossGuide.score`."""
        return self.guide.score(symbols, base_logits, cache)

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V_base) float32."""
        base_cache, guide_cache = self.split_cache(cache) if cache else (None, None)
        base = widened(self.base(inputs, cache=base_cache))
        symbols = mx.maximum(inputs.astype(mx.int32), 0) + FOREIGN  # below 0 is what ends an answer, read once more
        log_e = self.guide.score(symbols, base, guide_cache)
        return combine_logits(base, log_e, cache[-1].strength if cache else self.strength())


def _softmax(logits: NDArray[np.float32], pieces: int) -> Floats:
    """Probabilities; 0 for those of the tokenizer's ids that the output layer has no row for."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: Floats = np.pad(shifted / shifted.sum(), (0, max(pieces - shifted.size, 0)))
    return probabilities


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two rows begin with alike."""
    if tuple(a) == tuple(b[: len(a)]):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
