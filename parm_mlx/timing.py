"""Times of generations that take turns, so that a machine whose speed drifts slows them all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import generate_step, generation_stream

TURN = 8  # tokens


class Generation:
    """A generation of one or several sequences that can be paused between tokens."""

    sequences: list[list[int]]  # the tokens of each so far
    acceptance: float | None = None  # share of the drafted tokens that were accepted; None without drafts
    passes: tuple[float, float] | None = None  # of base and guide, for each token of an answer with drafts

    def read(self) -> None:
        """Reads the prompts, up to the first token of each sequence."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes at least ``steps`` tokens of each sequence, and returns their number over all sequences."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees what the generation holds."""


Start = Callable[[], Generation]


class SingleGeneration(Generation):
    """One sequence, by mlx-lm's generate_step, with a fresh prompt cache."""

    def __init__(self, model: nn.Module, prompt: Sequence[int], cache: list[Any]) -> None:
        self.sequences = [[]]
        self._tokens = generate_step(mx.array(list(prompt)), model, max_tokens=-1, prompt_cache=cache)

    def decode(self, steps: int) -> int:
        """Decodes ``steps`` tokens."""
        self.sequences[0] += (int(token) for token, _ in islice(self._tokens, steps))
        return steps

    def close(self) -> None:
        """Closes the generator."""
        self._tokens.close()


class Sample(NamedTuple):
    """Times of one generation."""

    read: float  # seconds to the first token of each sequence
    decode: float  # seconds for the tokens after it
    tokens: int  # number of those tokens, over all sequences
    acceptance: float | None = None
    passes: tuple[float, float] | None = None


def time_in_turns(
    starts: Mapping[str, Start], tokens: int, stopped: Callable[[], bool] = lambda: False, rest: float = 0.0
) -> dict[str, Sample] | None:
    """Times generations that decode a few tokens each in turn.

    mlx-lm's generators compute one token ahead of the one that they return. A turn waits for that one too, or the next
    generation would pay for it.

    Args:
        starts: Starts each generation, by name.
        tokens: Tokens to decode of each sequence; rounded up to whole turns.
        stopped: Asked before every turn; True ends the work, and None is returned.
        rest: Idle seconds before every turn, in which threads of other processes wind down.
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
            name: Sample(read[name], decode[name], decoded[name], generation.acceptance, generation.passes)
            for name, generation in running.items()
        }
