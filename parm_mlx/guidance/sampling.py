"""Samplers that belong to one answer each: the same seed gives the same answer, alone or in a batch."""

from dataclasses import dataclass

import mlx.core as mx

from parm_mlx.mlxlm import filter_logprobs


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temp: Temperature; 0 takes the likeliest token.
        top_p: Nucleus mass, 0 for off.
        top_k: Number of likeliest tokens kept, 0 for off.
        min_p: Least share of the likeliest token's probability, 0 for off.
        seed: Seed of the answer's random numbers.
    """

    temp: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def sampler(self, number: int = 0) -> "Sampler":
        """A fresh sampler; ``number`` tells answers with the same seed apart."""
        return Sampler(self, number)


class Sampler:
    """Draws the tokens of one answer; mlx-lm calls it with log-probabilities (1, V)."""

    def __init__(self, settings: Sampling, number: int) -> None:
        self._settings = settings
        self._key = mx.random.split(mx.random.key(settings.seed), number + 1)[number]

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids (1,)."""
        s = self._settings
        if s.temp == 0:
            return mx.argmax(logprobs, axis=-1)
        self._key, key = mx.random.split(self._key)
        kept = filter_logprobs(logprobs, top_p=s.top_p, min_p=s.min_p, top_k=s.top_k)
        return mx.random.categorical(kept * (1 / s.temp), key=key)
