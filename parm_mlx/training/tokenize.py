"""From texts to token sequences: the boundary between prompt and response is decided here and nowhere else.

A sequence is [BOS] prompt response EOS. Prompt and response are tokenised together, because a tokenizer may join the
last characters of the one to the first of the other; the response starts at the first token that the prompt alone does
not have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from parm_mlx.errors import ModelError
from parm_mlx.guidance.prompts import encode, render_prompt
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.training.rows import Pair, Problems

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
        where: File name and line.
    """

    rows: tuple[TokenRow, TokenRow]
    preferred: NDArray[np.int8]
    where: str

    def __len__(self) -> int:
        """Tokens of the longer row."""
        return max(len(row) for row in self.rows)


def tokenize(tokenizer: TokenizerWrapper, prompt: str, response: str) -> TokenRow:
    """Tokenises a rendered prompt with one response.

    BOS comes first if the tokenizer has one and the prompt does not begin with it; EOS is appended unless the response
    ends with it.

    Args:
        tokenizer: An mlx-lm tokenizer with an end-of-sequence token.
        prompt: As :func:`parm_mlx.guidance.prompts.render_prompt` returns it.
        response: The response, without a turn's end.
    """
    alone, ids = encode(tokenizer, prompt), encode(tokenizer, prompt + response)
    start = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    if len(ids) == start or ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    return TokenRow(np.array(ids, np.int32), start)


def tokenize_pairs(
    tokenizer: TokenizerWrapper, pairs: Iterable[Pair], objectives: Sequence[str], max_length: int
) -> tuple[list[TokenPair], str | None]:
    """Tokenises pairs and leaves out those that are too long; nothing is ever cut.

    Args:
        tokenizer: An mlx-lm tokenizer.
        pairs: What to tokenise.
        objectives: The k objectives.
        max_length: Most tokens that a prompt with its response may have, BOS and EOS included.

    Returns:
        The pairs that fit, and a note that counts the others, if there are any.

    Raises:
        DataError: Prompts do not suit the chat template; all of them are reported together.
        ModelError: The tokenizer has no end-of-sequence token, or no chat template for prompts that need one.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token: a response could not end")
    problems, kept, lengths = Problems(), [], []
    for pair in pairs:
        try:
            token_pair = _tokenize_pair(tokenizer, pair, objectives)
        except TemplateError as error:
            problems.add(pair.where, f"the chat template does not accept this prompt: {error}")
            continue
        if len(token_pair) > max_length:
            lengths.append(len(token_pair))
        elif not all(row.start for row in token_pair.rows):
            problems.add(pair.where, "'prompt' has no token before the response")
        else:
            kept.append(token_pair)
    problems.raise_any("data")
    if not lengths:
        return kept, None
    total, span = len(kept) + len(lengths), f"{min(lengths)} to {max(lengths)}"
    return kept, f"{len(lengths)} of {total} pairs are left out: {span} tokens, and the limit is {max_length}"


def _tokenize_pair(tokenizer: TokenizerWrapper, pair: Pair, objectives: Sequence[str]) -> TokenPair:
    prompt = render_prompt(tokenizer, pair.prompt)
    first, second = (tokenize(tokenizer, prompt, response) for response in pair.responses)
    preferred = np.array([pair.preferred.get(name, UNLABELLED) for name in objectives], np.int8)
    return TokenPair((first, second), preferred, pair.where)
