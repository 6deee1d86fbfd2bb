"""From rendered text to token ids.

Text of a conversation is read as text. A control token that is written out in it ("<|im_end|>", "</s>") is not read as
that token, so that nobody can end a turn or begin one from within a message; only a template writes control tokens. The
role names of templates without control tokens ("USER:", "### Response:") are text, and can be written by anybody.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

from parm_mlx.errors import InputError
from parm_mlx.mlxlm import TokenizerWrapper

T = TypeVar("T")
_NONCE = secrets.token_hex(8)  # nobody can write a mark without knowing it
_MARK = re.compile(f"\ue000{_NONCE}([0-9a-f]+)\ue001")  # a control token that is text, in hexadecimal


def escape(tokenizer: TokenizerWrapper, content: T) -> T:
    """Marks the control tokens that are written out in a text, or anywhere in messages, as text for :func:`encode`."""
    tokens = _control_tokens(tokenizer)
    if tokens is None:
        return content

    def escaped(value: Any) -> Any:
        if isinstance(value, str):
            return tokens.sub(lambda found: f"\ue000{_NONCE}{found.group().encode().hex()}\ue001", value)
        if isinstance(value, Mapping):
            return {key: escaped(each) for key, each in value.items()}
        return [*map(escaped, value)] if isinstance(value, list | tuple) else value

    return cast(T, escaped(content))


def unescape(text: str) -> str:
    """The inverse of :func:`escape`."""
    return _MARK.sub(lambda found: bytes.fromhex(found[1]).decode(), text)


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: TokenizerWrapper) -> re.Pattern[str] | None:
    """The tokens that structure a conversation: special ones, and added ones that the chat template writes.

    The marks of reasoning are not among them: templates look for them in earlier answers.
    """
    if not (added := tokenizer.added_tokens_decoder.values()):
        return None
    template = str(tokenizer.chat_template)
    tokens = {each.content for each in added if each.special or (each.content.strip() and each.content in template)}
    longest_first = sorted(tokens - {tokenizer.think_start, tokenizer.think_end}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


@lru_cache(maxsize=8)
def _strict(tokenizer: TokenizerWrapper) -> tuple[Any, dict[str, str]]:
    """The tokenizer with secret names for its control tokens, and the names: it reads the real ones as text.

    The rest is the same, so that ids differ in nothing else.
    """
    try:
        backend = tokenizer.backend_tokenizer
        content = json.loads(backend.to_str())
    except (AttributeError, ValueError):
        raise InputError(
            "a control token is written out in a message, and the tokenizer cannot read it as text",
            hint="--allow-special reads it as the token",
        ) from None
    tokens = _control_tokens(tokenizer)
    assert tokens is not None
    secret = {}
    for added in content["added_tokens"]:
        if tokens.fullmatch(text := added["content"]):
            added["content"] = secret[text] = f"\ue002{_NONCE}{text.encode().hex()}\ue003"
    model = content["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {secret.get(text, text): i for text, i in model["vocab"].items()}
    elif model.get("vocab"):  # Unigram: texts with their scores
        model["vocab"] = [[secret.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = secret.get(model["unk_token"], model["unk_token"])
    content["truncation"] = content["padding"] = None
    return type(backend).from_str(json.dumps(content)), secret


def token_ids(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """Tokenises a rendered text, whose marked control tokens are text."""
    if not _MARK.search(text):
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids
    strict, secret = _strict(tokenizer)
    tokens = _control_tokens(tokenizer)
    assert tokens is not None
    by_template = tokens.sub(lambda found: secret[found.group()], text)
    strict_ids: list[int] = strict.encode(unescape(by_template), add_special_tokens=False).ids
    return strict_ids


def encode(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """Tokenises a rendered text; BOS comes first if the tokenizer puts it there and the text does not begin with it."""
    ids, begin = token_ids(tokenizer, text), _beginning(tokenizer)
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


@lru_cache(maxsize=8)
def _beginning(tokenizer: TokenizerWrapper) -> list[int]:
    """The special tokens that a tokenizer puts before a text: BOS, or none."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


@dataclass(frozen=True)
class UnembeddedToken:
    """A token for which a model's embedding has no row: MLX would read beyond its end, without an error."""

    id: int
    text: str
    rows: int
    role: str

    def __str__(self) -> str:
        return f"token {self.text!r} (id {self.id}); the {self.role} has embeddings for ids below {self.rows} only"


def unembedded_token(
    tokenizer: TokenizerWrapper, ids: Sequence[int], rows: int | None, role: str = "model"
) -> UnembeddedToken | None:
    """Finds the first token for which an embedding of so many rows has none; None rows are not checked."""
    if rows is None or max(ids, default=0) < rows:
        return None
    number = next(token for token in ids if token >= rows)
    return UnembeddedToken(number, tokenizer.decode([number]), rows, role)


def split_response(tokenizer: TokenizerWrapper, prompt: str, response: str) -> tuple[list[int], int]:
    """Tokenises a rendered prompt with its response, in which control tokens are text, and finds where that begins.

    Both are tokenised together, because a tokenizer may join the last characters of the one to the first of the other
    (a template that ends in a space: "▁" and "▁Yes"). The response starts at the first token that the prompt alone does
    not have.

    Returns:
        The token ids of [BOS] prompt response, and the index of the first response token; the number of tokens when
        the response has none.
    """
    alone, ids = encode(tokenizer, prompt), encode(tokenizer, prompt + escape(tokenizer, response))
    start = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    return ids, start
