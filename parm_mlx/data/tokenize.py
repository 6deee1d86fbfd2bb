"""Pairs → token sequences: [BOS] prompt response EOS, and where the response starts; without EOS where it goes on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.errors import ModelError
from parm_mlx.guidance.encoding import split_response, unembedded_token
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.guidance.templates import render_answer
from parm_mlx.mlxlm import TokenizerWrapper

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One prompt with one response: [BOS] prompt response EOS."""

    ids: NDArray[np.int32]  # (L,)
    start: int  # the response is ``ids[start:]``, EOS included

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A tokenised pair: the prompt with the first and with the second response."""

    rows: tuple[TokenRow, TokenRow]
    preferred: NDArray[np.int8]  # (k,): 0 or 1, the response that each objective prefers; -1 where it did not judge
    where: str  # file name and line, or hub data set and row

    def __len__(self) -> int:
        """Tokens of the longer row."""
        return max(len(row) for row in self.rows)


def tokenize(tokenizer: TokenizerWrapper, prompt: str, response: str, ended: bool = True) -> TokenRow:
    """Tokenises a prompt, as ``render_prompt`` returns it, with one response, without a turn's end.

    BOS comes first if the tokenizer has one and the prompt does not begin with it. EOS is appended to a response that
    has ended, unless it is there.
    """
    ids, start = split_response(tokenizer, prompt, response.removesuffix(tokenizer.eos_token or ""))
    if len(ids) == start or (ended and ids[-1] != tokenizer.eos_token_id):
        ids = [*ids, tokenizer.eos_token_id]
    return TokenRow(np.array(ids, np.int32), start)


def tokenize_pairs(
    tokenizer: TokenizerWrapper,
    pairs: Iterable[Pair],
    objectives: Sequence[str],
    max_length: int,
    chat_template: str | None = None,
    rows: int | None = None,
    *,
    skip_bad: bool = False,
) -> tuple[list[TokenPair], str | None]:
    """Tokenises pairs and leaves out those that are too long; nothing is ever cut.

    The length counts a prompt with its response, BOS and EOS included. The chat template is a built-in one, or by
    default the tokenizer's own. ``rows`` are those of the model's embedding; None is not checked. With ``skip_bad``,
    pairs that cannot be tokenised are left out, as long as there are others.

    Returns:
        The pairs that fit, and a note that counts the others, if there are any.

    Raises:
        DataError: Prompts do not suit the chat template, or rows have tokens for which the model has no embedding; all
            of them are reported together.
        ModelError: The tokenizer has no end-of-sequence token, or no chat template for prompts that need one.
    """
    check_eos(tokenizer)
    problems, fitting, too_long = Problems(), list[TokenPair](), list[int]()
    for pair in pairs:
        try:
            token_pair = tokenize_pair(tokenizer, pair, objectives, chat_template, rows)
        except RowError as error:
            problems.add(pair.where, error)
            continue
        if len(token_pair) > max_length:
            too_long.append(len(token_pair))
        else:
            fitting.append(token_pair)
    if not (skip_bad and fitting):
        problems.raise_any("data")
    notes = [problems.note()] if problems.count else []
    if too_long:
        total, span = len(fitting) + len(too_long), f"{min(too_long)} to {max(too_long)}"
        notes.insert(0, f"{len(too_long)} of {total} pairs are left out: {span} tokens, and the limit is {max_length}")
    return fitting, "; ".join(notes) or None


def check_eos(tokenizer: TokenizerWrapper) -> None:
    """Raises ModelError where the tokenizer has no end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token: a response could not end")


def tokenize_pair(
    tokenizer: TokenizerWrapper,
    pair: Pair,
    objectives: Sequence[str],
    chat_template: str | None = None,
    rows: int | None = None,
) -> TokenPair:
    """Tokenises one pair; see :func:`tokenize_pairs`.

    Raises:
        RowError: The chat template does not accept the prompt, no token is left of the prompt, or the model has no
            embedding for a token.
        ModelError: The tokenizer has no chat template for a prompt that needs one.
    """
    try:
        prompt = render_prompt(tokenizer, pair.prompt, chat_template)
    except TemplateError as error:
        raise RowError(f"the chat template does not accept this prompt: {error}") from None
    responses = pair.responses if chat_template is None else [render_answer(chat_template, r) for r in pair.responses]
    first, second = (tokenize(tokenizer, prompt, *each) for each in zip(responses, pair.ended, strict=True))
    if not (first.start and second.start):
        raise RowError("'prompt' has no token before the response")
    for row in (first, second):
        if unembedded := unembedded_token(tokenizer, row.ids.tolist(), rows):
            raise RowError(str(unembedded))
    preferred = np.array([pair.preferred.get(name, UNLABELLED) for name in objectives], np.int8)
    return TokenPair((first, second), preferred, pair.where)
