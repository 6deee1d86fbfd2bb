"""A guide's distribution pushed forward to another vocabulary, beside enumerations of all that a guide may write."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from tokenizers_of_kinds import CORPUS, KINDS, tokenizer_of

from parm_mlx.guidance.pushforward import FLOOR, Floats, Score
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabulary_pair import FOREIGN, Pair, Point, Row

EXACT = Refinement(candidates=100, rows=100, rounds=100, tolerance=0.0, share=0.0)
GUIDE = TokenBytes([b"a", b"b", b"ab", b"ba", b"aab", b"bb", None], [6])
BASES = {
    "long": TokenBytes([None, b"a", b"b", b"bab", b"abba", b"aa"], [0]),
    "overlapping": TokenBytes([b"b", b"a", b"abb", b"ba", None], [4]),
    "bytes": TokenBytes([b"a", b"b", None], [2]),
}
Reader = Callable[[Row], Floats]


def random_guide(seed: int, size: int, order: int = 2) -> Reader:
    """Distributions that depend on the last tokens."""

    @cache
    def after(last: Row) -> Floats:
        return np.random.default_rng([seed, *(token + 1 for token in last)]).dirichlet([0.5] * size)

    return lambda context: after(context[-order:])


def read(pair: Pair, symbols: Sequence[int]) -> tuple[list[int], Point]:
    tokens, point = [pair.start], Point(1)
    for symbol in symbols:
        point = pair.advance(point, symbol, tokens)
    return tokens, point


def scored(
    pair: Pair, reader: Reader, tokens: Sequence[int], point: Point, how: Refinement, logits: Floats | None = None
) -> Score:
    path = pair.path(point)
    before = [reader((*tokens, *path[:j])) for j in range(len(path) + 1)]
    size = len(pair.base.pieces)
    return Score(pair, point, before, np.zeros(size) if logits is None else logits, 1.0, how)


def refined(score: Score, reader: Reader, tokens: Sequence[int], rounds: int) -> Score:
    for _ in range(rounds):
        if not (rows := score.wanted()):
            break
        score.refine([(row, 0, [reader((*tokens, *row[: j + 1])) for j in range(len(row))]) for row in rows])
    return score


def enumerated(pair: Pair, reader: Reader, tokens: Sequence[int], point: Point, depth: int) -> Floats:
    """E by all that the guide may write after the committed tokens: (V_base,), not normalised, ends together."""
    guide, base, tail = pair.guide, pair.base, point.tail
    own, out = pair.path(point), np.zeros(len(base.pieces) + 1)
    (end,) = guide.ends

    def follow(path: Row, text: bytes, mass: float, rest: bytes | None) -> None:
        """``rest`` is what comes after the tail, once the path has covered it."""
        if rest is None and len(text) >= len(tail):
            if not text.startswith(tail):
                return
            rest = text[len(tail) :]
            if not rest and path != own:
                return
            if rest:  # it overhangs
                said = base.text(point.recent)
                read_on = base.read(said + rest)[: len(point.recent)] == point.recent
                if guide.read(text) != path or not read_on:
                    return
        if rest is None and not tail.startswith(text):
            return
        if len(path) == depth:
            assert rest, "enumerate deeper"
            out[base.read(rest)[0]] += mass
            return
        p = reader((*tokens, *path))
        if rest is not None:
            if rest:
                out[base.read(rest)[0]] += mass * p[end]
            else:
                out[base.ends[0]] += mass * p[end]
        for g, piece in enumerate(guide.pieces):
            if piece:
                follow((*path, g), text + piece, mass * p[g], None if rest is None else rest + piece)

    follow((), b"", 1.0, None)
    return out[:-1]


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_all_that_a_guide_may_write_comes_to(name: str, seed: int) -> None:
    """Every sequence of guide tokens, up to six or to an end, that is longer than the tail and a token of the base."""
    pair = Pair(BASES[name], GUIDE, start=6)
    reader = random_guide(seed, 7)
    prefixes = {piece[:n] for piece in pair.base.by_bytes for n in range(1, len(piece))}
    every = [row for length in range(1, 6) for row in itertools.product(range(6), repeat=length)]
    rng, states = np.random.default_rng(seed), 0
    for _ in range(3):
        symbols: list[int] = []
        while len(pair.base.text(s - FOREIGN for s in symbols)) < 4:
            tokens, point = read(pair, symbols)
            score = scored(pair, reader, tokens, point, EXACT)
            rows = [row for row in every if GUIDE.text(row).startswith(point.tail)]
            rows = [row for row in rows if GUIDE.text(row)[len(point.tail) :] in prefixes]
            score.refine([(row, 0, [reader((*tokens, *row[: j + 1])) for j in range(len(row))]) for row in rows])
            expected = enumerated(pair, reader, tokens, point, len(point.tail) + 4)
            np.testing.assert_allclose(np.exp(score.log()), expected / expected.sum(), atol=1e-9)
            states += 1
            symbols.append(FOREIGN + int(rng.choice([t for t, piece in enumerate(pair.base.pieces) if piece])))
    assert states > 5


def canonical_guide(seed: int, guide: TokenBytes, letters: bytes, longest: int) -> tuple[Reader, dict[bytes, float]]:
    """A guide that writes only what its tokenizer makes, from random probabilities of texts of a few letters."""
    rng, texts = np.random.default_rng(seed), {b"": 1.0}
    after = {context: rng.dirichlet([0.5] * len(letters) + [0.1]) for context in _contexts(letters, 3)}
    whole: dict[bytes, float] = {}
    for length in range(longest + 1):
        for text in [text for text in texts if len(text) == length]:
            mass, p = texts.pop(text), after[text[-3:]]
            if length == longest:
                whole[text] = mass
                continue
            whole[text] = mass * p[-1]
            texts |= {text + bytes([letter]): mass * p[i] for i, letter in enumerate(letters)}
    reached: dict[Row, float] = defaultdict(float)
    for text, mass in whole.items():
        tokens = (*guide.read(text), guide.ends[0])
        for n in range(len(tokens) + 1):
            reached[tokens[:n]] += mass

    def reader(context: Row) -> Floats:
        said = context[1:]  # after the start
        return np.array([reached.get((*said, g), 0.0) for g in range(len(guide.pieces))]) / max(reached[said], 1e-300)

    return reader, whole


def _contexts(letters: bytes, order: int) -> list[bytes]:
    return [bytes(each) for n in range(order + 1) for each in itertools.product(letters, repeat=n)]


def test_of_a_guide_that_writes_what_its_tokenizer_makes_it_is_the_base_s_reading_of_its_texts() -> None:
    """Texts of up to nine letters, read by two tokenizers. What comes after s is read by the base from s on."""
    base = TokenBytes([None, b"a", b"b", b"bab", b"abba", b"aa", b"abb"], [0])
    pair, states = Pair(base, GUIDE, start=6), 0
    for seed in range(6):
        reader, texts = canonical_guide(seed, GUIDE, b"ab", 9)
        rng = np.random.default_rng(seed)
        for _ in range(8):
            symbols: list[int] = []
            while True:
                said = base.text(s - FOREIGN for s in symbols)
                if len(said) >= 5:
                    break
                tokens, point = read(pair, symbols)
                point = Point(point.committed, point.tail)  # whatever the base's tokenizer had made of the whole
                score = scored(pair, reader, tokens, point, EXACT)
                got = np.exp(refined(score, reader, tokens, EXACT.rounds).log())
                expected = np.zeros(len(base.pieces))
                for text, mass in texts.items():
                    if text.startswith(said):
                        expected[base.read(text[len(said) :])[0] if text != said else 0] += mass
                expected /= expected.sum()
                np.testing.assert_allclose(got, expected, atol=1e-6)
                states += 1
                token = int(rng.choice(len(expected), p=expected))
                if token == 0:
                    break
                symbols.append(token + FOREIGN)
    assert states > 100


@cache
def bytes_of(kind: str) -> TokenBytes:
    return TokenBytes.of(tokenizer_of(kind), "base")


def likely_guide(seed: int, tokens: TokenBytes, text: bytes) -> Callable[[Row], Floats]:
    """A guide that mostly writes what its tokenizer makes of a text, and otherwise anything that it makes alone."""
    alone = np.zeros(len(tokens.pieces))
    alone[[i for piece, i in tokens.by_bytes.items() if tokens.read(piece) == (i,)]] = 1
    alone[tokens.ends] = 1

    @cache
    def after(context: Row) -> Floats:
        rng = np.random.default_rng([seed, len(context), *context[-2:]])
        p = alone * rng.exponential(size=len(alone)) ** 4
        p /= p.sum()
        said = tokens.text(context)
        if text.startswith(said) and said != text:
            p = 0.4 * p
            p[tokens.read(text[len(said) :])[0]] += 0.6
        return p

    return after


@pytest.mark.parametrize("guide", KINDS)
@pytest.mark.parametrize("base", KINDS)
def test_no_mass_is_lost_between_tokenizers(base: str, guide: str) -> None:
    """Every place of five texts, before and after refinement; what the base cannot spell is counted apart."""
    pair, states = Pair(bytes_of(base), bytes_of(guide), bytes_of(guide).ends[0]), 0
    size = len(pair.base.pieces)
    for seed, text in enumerate([CORPUS[0], "👩‍👧 12 345 <|x|>", "      x", "ÀI'm", "\n\n"]):
        said = text.encode()[:16]
        reader = likely_guide(seed, pair.guide, text.encode())
        tokens, point = read(pair, [])
        for token in pair.base.read(said):
            point = pair.advance(point, token + FOREIGN, tokens)
            assert (
                pair.guide.text([*tokens[1:], *pair.path(point)])
                == said[: len(pair.guide.text(tokens)) + len(point.tail)]
            )
            logits = np.random.default_rng(states).normal(size=size) * 3
            score = scored(pair, reader, tokens, point, Refinement(), logits)
            for _ in range(2):
                assert score.mass.sum() + score.end == pytest.approx(score.total, rel=1e-9)
                assert score.mass.min() >= 0
                refined(score, reader, tokens, 2)
            log_e = score.log()
            possible = [t for t in range(size) if t not in pair.base.ends and log_e[t] > FLOOR]
            lost = score.mass[size] + score.mass[:size][pair.impossible].sum()
            whole = np.exp(log_e[possible]).sum() + np.exp(log_e[pair.base.ends[0]])
            assert whole == pytest.approx(1 - lost / score.total, abs=1e-6)
            assert score.bound <= 1
            states += 1
    assert states > 15


@pytest.mark.parametrize("kind", KINDS)
def test_between_equal_tokenizers_it_is_the_guide_s_own_distribution(kind: str) -> None:
    """The history is the tokenizer's own, so that Eq. 13 is what it was."""
    tokens_of = bytes_of(kind)
    pair = Pair(tokens_of, tokens_of, tokens_of.ends[0])
    for seed, text in enumerate(CORPUS[:4]):
        reader = likely_guide(seed, tokens_of, text.encode())
        tokens, point = read(pair, [])
        for token in tokens_of.read(text.encode())[:40]:
            point = pair.advance(point, token + FOREIGN, tokens)
            score = refined(scored(pair, reader, tokens, point, Refinement()), reader, tokens, 2)
            p = reader((*tokens, *pair.path(point)))
            assert np.abs(np.exp(score.log()) - p).sum() / 2 <= 1e-4
