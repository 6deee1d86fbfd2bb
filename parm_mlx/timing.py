"""Times of generations that take turns, so that a machine whose speed drifts slows them all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import generate_step, generation_stream

TURN = 8  # tokens


class Generation(Protocol):
    """A generation of one or several sequences that can be paused between tokens.

    Attributes:
        sequences: The tokens of each sequence so far.
    """

    sequences: list[list[int]]

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were accepted; None without drafts."""
        ...

    def read(self) -> None:
        """Reads the prompts, up to the first token of each sequence."""
        ...

    def decode(self, steps: int) -> int:
        """Decodes at least ``steps`` tokens of each sequence, and returns their number over all sequences."""
        ...

    def close(self) -> None:
        """Frees what the generation holds."""
        ...


Start = Callable[[], Generation]


class SingleGeneration:
    """One sequence, by mlx-lm's generate_step.

    Args:
        model: An mlx-lm model.
        prompt: Token ids.
        cache: A fresh prompt cache.
    """

    acceptance: float | None = None

    def __init__(self, model: nn.Module, prompt: Sequence[int], cache: list[Any]) -> None:
        self.sequences: list[list[int]] = [[]]
        self._tokens = generate_step(mx.array(list(prompt)), model, max_tokens=-1, prompt_cache=cache)

    def read(self) -> None:
        """Reads the prompt, up to the first token."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes ``steps`` tokens."""
        self.sequences[0] += (int(token) for token, _ in islice(self._tokens, steps))
        return steps

    def close(self) -> None:
        """Ends the generator."""
        self._tokens.close()


@dataclass(frozen=True)
class Sample:
    """Times of one generation.

    Attributes:
        read: Seconds to the first token of each sequence.
        decode: Seconds for the tokens after it.
        tokens: Number of those tokens, over all sequences.
        acceptance: Share of the drafted tokens that were accepted; None without drafts.
    """

    read: float
    decode: float
    tokens: int
    acceptance: float | None = None


def time_in_turns(
    starts: Mapping[str, Start], tokens: int, stopped: Callable[[], bool] = lambda: False, rest: float = 0.0
) -> dict[str, Sample] | None:
    """Times generations that decode a few tokens each in turn.

    mlx-lm's generators compute one token ahead of the one that they return. A turn waits for that one too, or the next
    generation would pay for it.

    Args:
        starts: Starts each generation, by name.
        tokens: Tokens to decode of each sequence; rounded up to whole turns.
        stopped: Asked before every turn.
        rest: Idle seconds before every turn, in which threads of other processes wind down.

    Returns:
        The times by name; None if the work was stopped before the end.
    """
    turn = min(TURN, tokens)
    with ExitStack() as stack:
        running: dict[str, Generation] = {}
        read = dict.fromkeys(starts, 0.0)
        for name, start in starts.items():
            if stopped():
                return None
            running[name] = start()
            stack.callback(running[name].close)
            began = time.perf_counter()
            running[name].read()
            read[name] = time.perf_counter() - began
            mx.synchronize(generation_stream)
        decode, decoded = dict.fromkeys(running, 0.0), dict.fromkeys(running, 0)
        for _ in range(-(-tokens // turn)):
            for name, generation in running.items():
                if stopped():
                    return None
                time.sleep(rest)
                began = time.perf_counter()
                decoded[name] += generation.decode(turn)
                mx.synchronize(generation_stream)
                decode[name] += time.perf_counter() - began
        return {
            name: Sample(read[name], decode[name], decoded[name], generation.acceptance)
            for name, generation in running.items()
        }
