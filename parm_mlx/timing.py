"""Times of generations that take turns, so that a machine whose speed drifts slows them all alike."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.generate import generation_stream

from parm_mlx.diagnostics.runs import Run

TURN = 8

Start = Callable[[], Run]


@dataclass(frozen=True)
class Sample:
    """One generation, timed.

    Attributes:
        read: Seconds to the first token of each sequence.
        decode: Seconds for the tokens after it.
        tokens: Number of those tokens, of all sequences together.
        acceptance: Share of the drafted tokens that were accepted, where some are drafted.
    """

    read: float
    decode: float
    tokens: int
    acceptance: float | None = None


def time_in_turns(
    starts: Mapping[str, Start], tokens: int, stopped: Callable[[], bool], rest: float = 0.0
) -> dict[str, Sample] | None:
    """Times generations that decode a few tokens each in turn.

    mlx-lm's generators compute one token ahead of the one that they return. A turn waits for that one too, or the next
    generation would pay for it.

    Args:
        starts: What starts each generation, by name.
        tokens: Tokens to decode of each sequence; rounded up to whole turns.
        stopped: Asked before every turn.
        rest: Seconds before every turn in which nothing is done, for threads of other processes that wind down.

    Returns:
        The times by name, or None when the work was stopped before all had their turns.
    """
    turn = min(TURN, tokens)
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        read = dict.fromkeys(starts, 0.0)
        for name, start in starts.items():
            if stopped():
                return None
            runs[name] = start()
            stack.callback(runs[name].close)
            began = time.perf_counter()
            runs[name].read()
            read[name] = time.perf_counter() - began
            mx.synchronize(generation_stream)
        decode, decoded = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
        for _ in range(-(-tokens // turn)):
            for name, run in runs.items():
                if stopped():
                    return None
                time.sleep(rest)
                began = time.perf_counter()
                decoded[name] += run.decode(turn)
                mx.synchronize(generation_stream)
                decode[name] += time.perf_counter() - began
        return {name: Sample(read[name], decode[name], decoded[name], run.acceptance) for name, run in runs.items()}


def memory_of(start: Start) -> int:
    """Bytes at the peak of a generation that runs alone, on top of what is held before: its cache and its working."""
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    run = start()
    try:
        run.read()
        run.decode(TURN)
        mx.synchronize(generation_stream)
    finally:
        run.close()
    return max(0, mx.get_peak_memory() - held)
