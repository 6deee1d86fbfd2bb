"""Thoughts: what a model writes between two marks of its tokenizer before an answer.

The guide was trained on answers, so the base thinks alone, and the guide reads the thought with the prompt: it steers
the answer only, and costs nothing before it. ``steered`` has it steer both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parm_mlx.mlxlm import TokenizerWrapper

_APART = 2  # tokens at most, line breaks, that a template writes after a mark


@dataclass(frozen=True)
class Thinking:
    """The marks around a thought, as token ids, and whether the guide steers thoughts too."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    steered: bool = False

    @classmethod
    def of(cls, tokenizer: TokenizerWrapper, steered: bool = False) -> "Thinking | None":
        """The marks that mlx-lm finds in a tokenizer; None where it has none."""
        if not tokenizer.has_thinking:
            return None
        return cls(tuple(tokenizer.think_start_tokens), tuple(tokenizer.think_end_tokens), steered)

    def opened(self, prompt: Sequence[int]) -> bool:
        """Returns True if the template has begun a thought at the end of a prompt."""
        tail = list(prompt[-len(self.start) - _APART :])
        return _find(tail, self.start) is not None and _find(tail, self.end) is None

    def lasts(self, opened: bool, tokens: Sequence[int]) -> bool:
        """Returns True if the next token belongs to a thought, or may turn out to begin one.

        ``tokens`` are those after the prompt; this held for all of them but the last.
        """
        if not opened and tuple(tokens[: len(self.start)]) != self.start[: len(tokens)]:
            return False
        return tuple(tokens[-len(self.end) :]) != self.end

    def think(self, tokens: Iterator[int], opened: bool) -> Iterator[int]:
        """Passes on the tokens of a thought, with its marks; nothing where the tokens begin with none."""
        thought: list[int] = []
        passed = 0
        for token in tokens:
            thought.append(token)
            going_on = self.lasts(opened, thought)
            if not opened and len(thought) < len(self.start) and going_on:
                continue
            if not opened and tuple(thought[: len(self.start)]) != self.start:
                return
            yield from thought[passed:]
            passed = len(thought)
            if not going_on:
                return

    def split(self, opened: bool, tokens: list[int]) -> tuple[list[int], list[int]]:
        """Splits what was generated into the thought, with its marks, and the answer."""
        if not opened and tuple(tokens[: len(self.start)]) != self.start:
            return [], tokens
        end = _find(tokens, self.end)
        cut = len(tokens) if end is None else end + len(self.end)
        return tokens[:cut], tokens[cut:]


def _find(tokens: Sequence[int], mark: tuple[int, ...]) -> int | None:
    places = range(len(tokens) - len(mark) + 1)
    return next((i for i in places if tuple(tokens[i : i + len(mark)]) == mark), None)
