from functools import cache
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers_of_kinds import CORPUS, END, KINDS, byte_level, changed, sentencepiece, tokenizer_of, wrapped

from parm_mlx.errors import ModelError
from parm_mlx.guidance.renumbered import base_order
from parm_mlx.guidance.token_bytes import TokenBytes

TEXTS = [
    *CORPUS,
    "",
    " ",
    "a",
    "  leading and trailing  ",
    "\n\n\t\n",
    "👩‍👩‍👧 family, 🇫🇷",
    "</s> and <|x|> are text here, <unk> too",
    "x" * 100,
    " " * 60,
    "ﬁ é ½ ①",
    "<think>a strawberry</think>",
]


@cache
def taken(kind: str) -> TokenBytes:
    return TokenBytes.of(tokenizer_of(kind), "base")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_read_spells_the_text_again(kind: str, text: str) -> None:
    tokens = taken(kind)
    ids = tokens.read(text.encode())
    assert tokens.text(ids) == text.encode()
    assert not set(ids) & {*tokens.ends, *tokens.control.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_as_the_tokenizer_does(kind: str) -> None:
    """After a line break, before which nothing is put; a text without control tokens."""
    tokenizer, tokens = tokenizer_of(kind), taken(kind)
    for text in CORPUS:
        theirs = tokenizer.encode("\n" + text, add_special_tokens=False)
        assert tokens.text(theirs).lstrip(b" ") == b"\n" + text.encode()
        ours = tokens.read(("\n" + text).encode())
        assert tuple(theirs[-len(ours) + 2 :]) == ours[2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letter", "é今😀")
def test_parts_of_a_letter_are_spelt(kind: str, letter: str) -> None:
    tokens, whole = taken(kind), f"a {letter}b".encode()
    for start in range(len(whole)):
        for end in range(start, len(whole) + 1):
            assert tokens.spells(whole[start:end])


def test_several_tokens_of_the_same_bytes_are_the_one_that_is_made() -> None:
    tokens = taken("SentencePiece")
    twice = [piece for piece in tokens.by_bytes if tokens.pieces.count(piece) > 1]
    assert len(twice) > 20
    for piece in twice:
        assert tokens.read(piece) == (tokens.by_bytes[piece],)


@pytest.mark.parametrize("start", [b"", b"a", b" ", b"th", b"\xff", b"\xf0\x9f", b"nothing begins so"])
def test_tokens_that_begin_with_bytes_are_found(start: bytes) -> None:
    tokens = taken("byte level")
    expected = {piece for piece in tokens.pieces if piece and piece.startswith(start)}
    assert {tokens.sorted[i] for i in tokens.starting_with(start)} == expected


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, END: 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), (END, -2.0)], 0))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def without_question_mark(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [pair for pair in content["model"]["merges"] if "?" not in "".join(pair)]
    content["model"]["vocab"] = {text: i for text, i in vocabulary.items() if "?" not in text}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (word_piece, r"does not decode its tokens byte by byte \(WordPiece, decoder WordPiece\)"),
        (unigram, r"does not decode its tokens byte by byte \(Unigram, decoder Metaspace\)"),
        (lambda: changed(byte_level(300), lower_case), r"changes text before it reads it \(Lowercase\)"),
        (
            lambda: changed(byte_level(300), lambda c: c.update(normalizer={"type": "NFKC"})),
            r"changes text before it reads it \(NFKC\)",
        ),
        (lambda: changed(byte_level(300), without_question_mark), r"cannot spell '\?'"),
    ],
)
def test_tokenizers_that_do_not_keep_bytes_are_refused_in_one_line(make: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"the guide's tokenizer {reason}") as caught:
        TokenBytes.of(wrapped(make()), "guide")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = wrapped(byte_level(300))
    tokenizer.eos_token_ids = set()
    with pytest.raises(ModelError, match="has no end-of-sequence token"):
        TokenBytes.of(tokenizer, "base")


def test_a_normaliser_that_composes_letters_is_no_obstacle() -> None:
    """It is left out: e and an accent stay two letters."""
    tokens = TokenBytes.of(wrapped(changed(byte_level(300), lambda c: c.update(normalizer={"type": "NFC"}))), "base")
    assert tokens.text(tokens.read("e\u0301".encode())) == "e\u0301".encode()


def test_the_same_tokens_under_other_ids_are_found() -> None:
    """The vocabulary is turned around, and each token is found under its new id."""
    base = byte_level(400)
    size = base.get_vocab_size()

    def turn(content: dict[str, Any]) -> None:
        content["model"]["vocab"] = {text: size - 1 - i for text, i in content["model"]["vocab"].items()}
        for each in content["added_tokens"]:
            each["id"] = size - 1 - each["id"]

    other = changed(base, turn)
    order = base_order(TokenBytes.of(wrapped(base), "base"), TokenBytes.of(wrapped(other), "guide"))
    assert order is not None
    end = base.token_to_id(END)
    assert order.read.tolist() == [other.token_to_id(END) if i == end else size - 1 - i for i in range(size)]
    assert order.never.tolist() == [i == end for i in range(size)]
    fewer = base_order(TokenBytes.of(wrapped(base), "base"), TokenBytes.of(wrapped(other), "guide"), size - 2)
    assert fewer is not None
    assert fewer.never.tolist() == [i == end or i < 2 for i in range(size)]


def test_other_rules_are_other_tokens() -> None:
    base = TokenBytes.of(wrapped(byte_level(400)), "base")
    for other in (byte_level(401), byte_level(400, digits=True), sentencepiece(400)):
        assert base_order(base, TokenBytes.of(wrapped(other), "guide")) is None
