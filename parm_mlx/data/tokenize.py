"""From pairs to token sequences: [BOS] prompt response EOS, and where the response starts."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from parm_mlx.data.pairs import Pair, Problems, RowError
from parm_mlx.errors import ModelError
from parm_mlx.guidance.encoding import lone_token, split_response
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.guidance.templates import render_answer
from parm_mlx.mlxlm import TokenizerWrapper

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One prompt with one response.

    Attributes:
        ids: [BOS] prompt response EOS, int32 (L,).
        start: Index of the first response token. The response is ``ids[start:]``, EOS included.
    """

    ids: NDArray[np.int32]
    start: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair as the trainer sees it.

    Attributes:
        rows: Prompt with the first and with the second response.
        preferred: int8 (k,): 0 or 1, the response that each objective prefers; -1 where it did not judge.
        where: Where it comes from: file name and line, or hub data set and row.
    """

    rows: tuple[TokenRow, TokenRow]
    preferred: NDArray[np.int8]
    where: str

    def __len__(self) -> int:
        """Tokens of the longer row."""
        return max(len(row) for row in self.rows)


class TokenPairs(Sequence[TokenPair]):
    """Many pairs in the memory of their tokens, 4 bytes for each: one array, and where each row of it ends.

    Args:
        k: Number of objectives.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._ids, self._ends, self._starts = array("i"), array("q", [0]), array("q")
        self._preferred = bytearray()
        self._where: list[str] = []

    def append(self, pair: TokenPair) -> None:
        """Adds a pair."""
        for row in pair.rows:
            self._ids.frombytes(row.ids.tobytes())
            self._ends.append(len(self._ids))
            self._starts.append(row.start)
        self._preferred += pair.preferred.tobytes()
        self._where.append(pair.where)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._where)

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...

    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        """The pair of a number, or those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        preferred = np.frombuffer(bytes(self._preferred[i * self._k : (i + 1) * self._k]), np.int8)
        return TokenPair((self._row(2 * i), self._row(2 * i + 1)), preferred, self._where[i])

    def _row(self, i: int) -> TokenRow:
        return TokenRow(np.array(self._ids[self._ends[i] : self._ends[i + 1]], np.int32), self._starts[i])


def tokenize(tokenizer: TokenizerWrapper, prompt: str, response: str) -> TokenRow:
    """Tokenises a rendered prompt with one response.

    BOS comes first if the tokenizer has one and the prompt does not begin with it; EOS is appended unless the response
    ends with it.

    Args:
        tokenizer: An mlx-lm tokenizer with an end-of-sequence token.
        prompt: As :func:`parm_mlx.guidance.prompts.render_prompt` returns it.
        response: The response, without a turn's end.
    """
    ids, start = split_response(tokenizer, prompt, response.removesuffix(tokenizer.eos_token or ""))
    if len(ids) == start or ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return TokenRow(np.array(ids, np.int32), start)


def tokenize_pairs(
    tokenizer: TokenizerWrapper,
    pairs: Iterable[Pair],
    objectives: Sequence[str],
    max_length: int,
    chat_template: str | None = None,
    rows: int | None = None,
) -> tuple[TokenPairs, str | None]:
    """Tokenises pairs and leaves out those that are too long; nothing is ever cut.

    Args:
        tokenizer: An mlx-lm tokenizer.
        pairs: What to tokenise.
        objectives: The k objectives.
        max_length: Most tokens that a prompt with its response may have, BOS and EOS included.
        chat_template: Name of a built-in chat template; by default the tokenizer's own.
        rows: Rows of the model's embedding; None is not checked.

    Returns:
        The pairs that fit, and a note that counts the others, if there are any.

    Raises:
        DataError: Prompts do not suit the chat template, or rows have tokens for which the model has no embedding; all
            of them are reported together.
        ModelError: The tokenizer has no end-of-sequence token, or no chat template for prompts that need one.
    """
    check_eos(tokenizer)
    problems, kept, lengths = Problems(), TokenPairs(len(objectives)), list[int]()
    for pair in pairs:
        try:
            token_pair = tokenize_pair(tokenizer, pair, objectives, chat_template, rows)
        except RowError as error:
            problems.add(pair.where, error)
            continue
        if len(token_pair) > max_length:
            lengths.append(len(token_pair))
        else:
            kept.append(token_pair)
    problems.raise_any("data")
    if not lengths:
        return kept, None
    total, span = len(kept) + len(lengths), f"{min(lengths)} to {max(lengths)}"
    return kept, f"{len(lengths)} of {total} pairs are left out: {span} tokens, and the limit is {max_length}"


def check_eos(tokenizer: TokenizerWrapper) -> None:
    """Checks that responses can end.

    Raises:
        ModelError: The tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token: a response could not end")


def tokenize_pair(
    tokenizer: TokenizerWrapper,
    pair: Pair,
    objectives: Sequence[str],
    chat_template: str | None = None,
    rows: int | None = None,
) -> TokenPair:
    """Tokenises one pair.

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
    first, second = (tokenize(tokenizer, prompt, response) for response in responses)
    if not (first.start and second.start):
        raise RowError("'prompt' has no token before the response")
    for row in (first, second):
        if lone := lone_token(tokenizer, row.ids.tolist(), rows):
            raise RowError(str(lone))
    preferred = np.array([pair.preferred.get(name, UNLABELLED) for name in objectives], np.int8)
    return TokenPair((first, second), preferred, pair.where)
