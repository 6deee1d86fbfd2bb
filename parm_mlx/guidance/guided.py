"""Guided decoding as a model: Eq. 13, with logits up to a constant per position (softmax removes it, and log Z):

    log π̃(y_t) = log π_base(y_t | x, y_<t) + (1/β) · log π_θ(α)(y_t | x, y_<t) − log Z

The line of code is in :func:`parm_mlx.kernels.combine.combine_logits_ops`.

Base, guide and both together look like mlx-lm models, so its generators run them unchanged. α and 1/β enter with
``make_cache(alpha, strength)`` and live in the prompt cache. In :mod:`parm_mlx.guidance.shared`, base and guide share
weights.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.guide import Cache, Guide, Guides, layer_per_entry
from parm_mlx.guidance.shard import Shard
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import context_length, embedding_rows, make_prompt_cache
from parm_mlx.preference import Alpha, AlphaSpec, check_beta

T = TypeVar("T")


class GuidedModel(nn.Module):
    """A frozen base model guided by a PARM, or by several reward models.

    Args:
        base: An mlx-lm model.
        guide: The guide; its vocabulary is the base's, up to padding.
        beta: β > 0 of Eq. 13. Smaller β, stronger guide.

    Attributes:
        shift: Added to a token of the base where the sequence that the guide reads holds it; not 0 where their
            vocabularies differ.
        shard: The processes that hold the model; None where this one has all of it.

    Raises:
        PreferenceError: β is not a number from 1e-6 to 1e6.
    """

    reads_once = False  # True where guided sequences are read by one network alone, ``steered``; False: by the base too
    shift = 0
    shard: Shard | None = None

    def __init__(self, base: nn.Module, guide: Guide | Guides, beta: float = 1.0) -> None:
        super().__init__()
        self.base = base
        self.guide = guide
        self.beta = check_beta(beta)
        self.objectives = guide.objectives
        self._base_entries = len(make_prompt_cache(base))

    @property
    def context_length(self) -> int | None:
        """Most tokens that both models were made for; None where they do not say."""
        return min(filter(None, (context_length(self.base), self.guide.context_length)), default=None)

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """Number of token ids that base and guide have an embedding for; None where that is not known."""
        return embedding_rows(self.base), self.guide.rows

    @property
    def vocabulary(self) -> int:
        """V, the tokens that base and guide both know."""
        return int(self(mx.array([[0]])).shape[-1])

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return layer_per_entry(self.base) + self.guide.layers

    @property
    def steered(self) -> Any:
        """The network whose reading depends on the preference: the guide."""
        return self.guide

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float | None = None) -> Cache:
        """Makes a prompt cache for one sequence under one preference: the base's entries, then the guide's.

        ``strength`` is the 1/β of this sequence, by default the model's; at 0 the base answers alone.
        """
        strength = self.strength() if strength is None else strength
        return [*make_prompt_cache(self.base), *self.guide.make_cache(alpha, strength)]

    def strength(self, beta: float | None = None) -> float:
        """1/β of Eq. 13, for a β or the model's own."""
        return 1 / (self.beta if beta is None else beta)

    def strength_of(self, alpha: Alpha | None, beta: float | None = None) -> float:
        """The strength of a sequence in a batch of guided ones: 1/β, or 0 for the base alone, which α = None asks."""
        return 0.0 if alpha is None else self.strength(beta)

    def sharpness(self, alpha: Alpha, beta: float | None = None) -> float:
        """The factor between guided and base log-probabilities where base and guide agree: 1 + 1/β."""
        return 1 + self.guide.weight(alpha) * self.strength(beta)

    def decide(self, value: T) -> T:
        """Returns rank 0's value, which JSON can hold, in every process that holds the model."""
        return value if self.shard is None else self.shard.decide(value)

    def agreed(self, sampler: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        """Returns a sampler for all processes that hold the model, whose tokens are rank 0's."""
        return sampler if self.shard is None else self.shard.sampler(sampler)

    def split_cache(self, cache: Cache) -> tuple[Cache, Cache]:
        """The base's and the guide's entries of a prompt cache; both may be read into."""
        return cache[: self._base_entries], cache[self._base_entries :]

    def join_cache(self, base: Cache, guide: Cache) -> Cache:
        """The inverse of :meth:`split_cache`."""
        return [*base, *guide]

    def base_logits(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits of the base alone, (B, L) token ids → (B, L, V_base) float32: 16 bits are too few to normalise in."""
        return widened(self.base(inputs, cache=cache))

    def guide_logits(self, symbols: mx.array, base_logits: mx.array, cache: Cache | None) -> mx.array:
        """The guide's logits (B, L, V) after ``symbols`` (B, L): its own tokens, or the base's with ``shift`` added.

        ``base_logits`` (B, L, V_base) are the base's own there.
        """
        return self.guide(symbols, cache=cache)

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V) float32."""
        base_cache, guide_cache = self.split_cache(cache) if cache else (None, None)
        base, guide = self.base(inputs, cache=base_cache), self.guide(inputs, cache=guide_cache)
        return combine_logits(base, guide, cache[-1].strength if cache else self.strength())


class Unguided(GuidedModel):
    """A base model without a guide, where a guided one is expected: it answers requests without a preference."""

    def __init__(self, base: nn.Module) -> None:
        nn.Module.__init__(self)
        self.base = base
        self.objectives = ()

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for; None where it does not say."""
        return context_length(self.base)

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """Number of token ids that the base has an embedding for; None where that is not known, and for the guide."""
        return embedding_rows(self.base), None
