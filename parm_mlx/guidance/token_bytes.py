"""The bytes of every token of a tokenizer, and its reading of bytes: what two tokenizers have in common.

A text is read as it stands: without normaliser, without a space in front, and with control tokens that are written out
in it as text. Bytes that are not (yet) text, as in the middle of a character, are read by longest match.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import TokenizerWrapper

LETTERS = {chr(b): b for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}  # GPT-2's letters for bytes
LETTERS |= {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - {*LETTERS.values()}))}
SPACE = "▁"  # SentencePiece's letter for a space
REMEMBERED = 200_000  # readings that are kept
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_PROBES = ("Ab", "ﬁ", "x  y", "a\nb")  # lower case, NFKC, collapsed space and lost lines change one of them
_ROUND_TRIP = "Hello, World!\n  x = 1; y = 'é'\n\n\tThe end."


class TokenBytes:
    """A tokenizer as bytes.

    Args:
        pieces: The bytes of each id; None for control tokens and ids without a token.
        ends: Ids that end an answer.
        backend: A ``tokenizers.Tokenizer`` that reads text as it stands; None reads by longest match.
        spaces: The backend reads "▁" for a space.
        control: Ids of other control tokens by their text.
        rules: How it makes tokens, whatever their ids; "" where that is not known.
        names: Ids of its tokens, control tokens aside, by its own names for them.

    Attributes:
        by_bytes: The id of each string of bytes; of several, the one that the tokenizer itself makes.
        sorted: All strings of bytes in order, and ``ids`` their ids.
        missing: Bytes that no token spells alone.
    """

    def __init__(
        self,
        pieces: Sequence[bytes | None],
        ends: Iterable[int],
        backend: Any = None,
        spaces: bool = False,
        control: dict[str, int] | None = None,
        rules: str = "",
        names: dict[str, int] | None = None,
    ) -> None:
        self.rules, self.names = rules, names or {}
        self.pieces, self.ends, self.control = list(pieces), sorted(ends), dict(control or {})
        self._backend, self._spaces = backend, spaces
        self._readings: dict[bytes, tuple[int, ...]] = {}
        self.by_bytes: dict[bytes, int] = {}
        twice: set[bytes] = set()
        for i, piece in enumerate(self.pieces):
            if piece and self.by_bytes.setdefault(piece, i) != i:
                twice.add(piece)
        self.longest = max(map(len, self.by_bytes), default=0)
        for piece in twice:
            whole = self.read(piece)
            if len(whole) == 1:
                self.by_bytes[piece] = whole[0]
        self._readings.clear()
        self.sorted = sorted(self.by_bytes)
        self.ids = np.array([self.by_bytes[piece] for piece in self.sorted], np.int64)
        self.missing = bytes(b for b in range(256) if bytes([b]) not in self.by_bytes)

    @classmethod
    def of(cls, tokenizer: TokenizerWrapper, role: str) -> "TokenBytes":
        """Takes a tokenizer apart; ``role`` is whose it is, for errors.

        Raises:
            ModelError: Its tokens have no bytes, its normaliser loses text, it cannot spell ASCII, or it has no end
                token.
        """
        return _of_tokenizer(tokenizer, role)

    def text(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens; control tokens have none."""
        return b"".join(self.pieces[i] or b"" for i in ids)

    def starting_with(self, start: bytes) -> range:
        """Indices in ``sorted`` of the tokens whose bytes begin with these."""
        bare = start.rstrip(b"\xff")
        end = bisect_left(self.sorted, bare[:-1] + bytes([bare[-1] + 1])) if bare else len(self.sorted)
        return range(bisect_left(self.sorted, start), end)

    def read(self, data: bytes) -> tuple[int, ...]:
        """The ids of the tokens that the tokenizer reads bytes as; they end before bytes that it cannot spell."""
        if data not in self._readings:
            self.read_all([data])
        return self._readings[data]

    def read_all(self, several: Iterable[bytes]) -> list[tuple[int, ...]]:
        """:meth:`read` for several strings of bytes at once."""
        several = list(several)
        new = [data for data in dict.fromkeys(several) if data not in self._readings]
        if len(self._readings) + len(new) > REMEMBERED:
            wanted = set(several)
            self._readings = {data: ids for data, ids in self._readings.items() if data in wanted}
        parts = [_text_inside(data) for data in new] if self._backend else []
        encoded = self._encode([text for _, text, _ in parts]) if parts else [()] * len(new)
        for k, data in enumerate(new):
            ids: tuple[int, ...] = ()
            if parts:
                head, text, tail = parts[k]
                if encoded[k] and self.text(encoded[k]) == text.encode():
                    before = self._longest_match(head)
                    ids = (*before, *encoded[k]) if self.text(before) == head else ()
                if tail:
                    ids = self._as_if_complete(head, text, tail) or ids
            self._readings[data] = (*ids, *self._longest_match(data[len(self.text(ids)) :]))
        return [self._readings[data] for data in several]

    def _as_if_complete(self, head: bytes, text: str, tail: bytes) -> tuple[int, ...]:
        """Reads the beginning of a character as in whole ones, if a token ends where the bytes do; else nothing."""
        before, wanted = self._longest_match(head), text.encode() + tail
        found = [
            whole[:n]
            for whole in self._encode([text + letter for letter in _completions(tail)])
            for n in range(1, len(whole))
            if self.text(whole[:n]) == wanted
        ]
        return (*before, *min(found, key=len)) if found and self.text(before) == head else ()

    def spells(self, data: bytes) -> bool:
        """Returns True if the tokenizer has tokens for all of these bytes."""
        return self.text(self.read(data)) == data

    def _encode(self, texts: list[str]) -> list[tuple[int, ...]]:
        if self._spaces:
            texts = [text.replace(" ", SPACE) for text in texts]
        if len(texts) == 1:
            return [tuple(self._backend.encode(texts[0], add_special_tokens=False).ids)]
        return [tuple(each.ids) for each in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _longest_match(self, data: bytes) -> list[int]:
        found, at = [], 0
        while at < len(data):
            sizes = range(min(len(data) - at, self.longest), 0, -1)
            size = next((n for n in sizes if data[at : at + n] in self.by_bytes), 0)
            if not size:
                break
            found.append(self.by_bytes[data[at : at + size]])
            at += size
        return found


def _text_inside(data: bytes) -> tuple[bytes, str, bytes]:
    """Splits bytes into the end of a character, text, and the beginning of one; if there is no text, all is an end."""
    start = 0
    while start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    for cut in range(min(4, len(data) - start + 1)):
        end = len(data) - cut
        try:
            return data[:start], data[start:end].decode(), data[end:]
        except UnicodeDecodeError:
            continue
    return data, "", b""


def _completions(start: bytes) -> list[str]:
    """A few characters that begin with these bytes."""
    size = 2 if start[0] < 0xE0 else 3 if start[0] < 0xF0 else 4
    found = []
    for each in range(0x80, 0xC0, 4):
        with suppress(UnicodeDecodeError):
            found.append((start + bytes([each]) * (size - len(start))).decode())
    return found


def _of_tokenizer(tokenizer: TokenizerWrapper, role: str) -> TokenBytes:
    try:
        backend = tokenizer.backend_tokenizer
        content = json.loads(backend.to_str())
    except (AttributeError, ValueError):
        raise _refused(role, "is not one of the tokenizers library") from None
    decoders, model = _kinds(content["decoder"]), content["model"]
    byte_level, spaces = "ByteLevel" in decoders, "ByteFallback" in decoders
    if not byte_level and not spaces:
        raise _refused(role, f"does not decode its tokens byte by byte ({model['type']}, decoder {_named(decoders)})")
    normalizer = backend.normalizer
    for probe in _PROBES if normalizer else ():
        if normalizer.normalize_str(probe).replace(SPACE, " ").strip() != probe:
            raise _refused(role, f"changes text before it reads it ({_named(_kinds(content['normalizer']))})")
    added = {each["id"]: each for each in content["added_tokens"]}
    vocabulary = (
        model["vocab"] if isinstance(model["vocab"], dict) else {t: i for i, (t, _) in enumerate(model["vocab"])}
    )
    pieces: list[bytes | None] = [None] * (1 + max([*vocabulary.values(), *added]))
    for token, i in vocabulary.items():
        pieces[i] = _spaced(token) if spaces else _lettered(token)
    for i, each in added.items():
        pieces[i] = None if each["special"] else each["content"].replace(SPACE if spaces else "\0", " ").encode()
    unknown = vocabulary.get(model.get("unk_token") or "")
    if unknown is not None:
        pieces[unknown] = None
    ends = {i for i in tokenizer.eos_token_ids if i < len(pieces)}
    if not ends:
        raise _refused(role, "has no end-of-sequence token")
    control = {each["content"]: i for i, each in added.items() if each["special"] and i not in ends}
    ends_alone = [None if i in ends else piece for i, piece in enumerate(pieces)]
    names = {each["content"]: i for i, each in added.items()} | vocabulary
    names = {name: i for name, i in names.items() if i not in ends and not (i in added and added[i]["special"])}
    found = TokenBytes(ends_alone, ends, _plain(content), spaces, control, _rules(content), names)
    if lost := [chr(b) for b in [*range(32, 127), 10] if b in found.missing]:
        raise _refused(role, f"cannot spell {', '.join(map(repr, lost[:3]))}")
    if found.text(found.read(_ROUND_TRIP.encode())) != _ROUND_TRIP.encode():
        raise _refused(role, "does not give back the text that it reads")
    return found


def _rules(content: dict[str, Any]) -> str:
    model = {key: value for key, value in content["model"].items() if key not in ("vocab", "unk_token")}
    added = sorted(each["content"] for each in content["added_tokens"] if not each["special"])
    return json.dumps([model, content["pre_tokenizer"], content["normalizer"], added], sort_keys=True)


def _refused(role: str, reason: str) -> ModelError:
    return ModelError(
        f"base and guide have different vocabularies, and the {role}'s tokenizer {reason}",
        hint="guidance across vocabularies needs byte-level BPE, or SentencePiece with byte fallback, on both sides",
    )


def _kinds(part: Any) -> list[str]:
    """The types of a part of a tokenizer, and of the parts that it consists of."""
    if not isinstance(part, dict):
        return []
    inside = next((value for value in part.values() if isinstance(value, list)), [])
    return [part["type"], *(kind for each in inside for kind in _kinds(each))]


def _named(kinds: Sequence[str]) -> str:
    return ", ".join(kind for kind in kinds if kind != "Sequence") or "none"


def _spaced(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()


def _lettered(token: str) -> bytes | None:
    return bytes(LETTERS[c] for c in token) if all(c in LETTERS for c in token) else None


def _plain(content: dict[str, Any]) -> Any:
    """A tokenizer that reads text as it stands."""
    from tokenizers import Tokenizer

    plain = {**content, "normalizer": None, "post_processor": None, "truncation": None, "padding": None}
    plain["pre_tokenizer"] = _without_prefix(content["pre_tokenizer"])
    backend = Tokenizer.from_str(json.dumps(plain))
    backend.encode_special_tokens = True
    return backend


def _without_prefix(part: Any) -> Any:
    """A pre-tokenizer that puts no space before a text."""
    if isinstance(part, list):
        return [_without_prefix(each) for each in part]
    if not isinstance(part, dict):
        return part
    part = {key: _without_prefix(value) for key, value in part.items()}
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    if part.get("type") == "Metaspace":
        part["prepend_scheme"] = "never"
    return part
