"""From tokens to the text that is shown while they come."""

from collections.abc import Iterator
from dataclasses import dataclass

from parm_mlx.mlxlm import TokenizerWrapper


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, and on the last one why it ended: ``"stop"`` or ``"length"``."""

    text: str
    finish_reason: str | None


def pieces(tokens: Iterator[int], tokenizer: TokenizerWrapper, max_tokens: int) -> Iterator[Piece]:
    """Decodes tokens as they come, up to an end-of-sequence token or ``max_tokens``."""
    detokenizer = tokenizer.detokenizer
    reason = "length"
    for number, token in enumerate(tokens, 1):
        if token in tokenizer.eos_token_ids:
            reason = "stop"
            break
        detokenizer.add_token(token)
        if number == max_tokens:
            break
        yield Piece(detokenizer.last_segment, None)
    detokenizer.finalize()
    yield Piece(detokenizer.last_segment, reason)
