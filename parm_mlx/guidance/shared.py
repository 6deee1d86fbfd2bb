"""Guided decoding where base and guide are one model: both are rows of the same forward pass.

The adapters' core matrix is zero in the base's rows, so that the backbone's weights are read once per token, and a
guided token costs little more than a plain one wherever reading weights is what takes the time.
"""

from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from parm_mlx.guidance.guide import Cache, Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import PairCache, PreferenceCache, make_prompt_cache
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, Unconditioned, conditioned
from parm_mlx.preference import AlphaSpec


class Backbone(nn.Module):
    """The model under a guide's adapters, as a model of its own."""

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Not among this module's parameters: they are the guide's, and mlx-lm adds up what a model holds.
        object.__setattr__(self, "model", model)

    @property
    def args(self) -> Any:
        """The model's settings."""
        return self.model.args

    @property
    def layers(self) -> list[Any]:
        """The model's blocks."""
        return cast("list[Any]", self.model.layers)

    def make_cache(self) -> Cache:
        """Makes a prompt cache."""
        return make_prompt_cache(self.model)

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits without adapters, (B, L) token ids → (B, L, V)."""
        with conditioned(Unconditioned()):
            return cast(mx.array, self.model(inputs, cache=cache))


class PlainFirst(nn.Module):
    """A guide whose first row is the backbone without the guide's update, to read a prompt for both in one pass."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide

    def __call__(self, inputs: mx.array, cache: Cache) -> mx.array:
        """Logits (B, L, V) for a cache of :meth:`Guide.make_cache` with B rows, the first of any preference."""
        return self.guide.run(inputs, cache[:-1], cache[-1].bound(self._bind))

    def _bind(self, alpha: mx.array) -> Conditioning:
        share = mx.array([0.0] + [1.0] * (alpha.shape[0] - 1))
        return BoundPreferences(self.guide.adapted, alpha, share=share)


class OneBackboneModel(GuidedModel):
    """A base model guided by a PARM that shares its weights, which are the guide's parameters."""

    guide: Guide

    def __init__(self, guide: Guide, beta: float = 1.0) -> None:
        super().__init__(Backbone(guide.model), guide, beta)

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """Number of token ids that the backbone has an embedding for, twice."""
        return self.guide.rows, self.guide.rows

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return self.guide.layers


class SharedModel(OneBackboneModel):
    """A base model guided by a PARM that shares its weights.

    Every sequence is two rows of the backbone, held by a :class:`PairCache` in every layer. Where mlx-lm cannot hold
    the two rows together (entries that cannot be padded, after prompts of different lengths) they run one after the
    other.

    Attributes:
        apart: If one sequence that is not in a batch takes a pass for each, too: where two rows leave a chip's product
            of matrix and vector, that can be faster.
    """

    def __init__(self, guide: Guide, beta: float = 1.0) -> None:
        super().__init__(guide, beta)
        self.apart = False

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float | None = None) -> Cache:
        """As for any guided model: a pair for each backbone entry, then the preference."""
        *entries, preference = self.guide.make_cache(alpha, self.strength() if strength is None else strength)
        return [*map(PairCache, entries), preference]

    def split_cache(self, cache: Cache) -> tuple[Cache, Cache]:
        """The base's and the guide's entries of the prompt cache of one sequence; both may be read into."""
        parts = [pair.part() for pair in cache[:-1]]
        return [base for base, _ in parts], [*(guide for _, guide in parts), cache[-1]]

    def join_cache(self, base: Cache, guide: Cache) -> Cache:
        """The inverse of :meth:`split_cache`."""
        return [*map(PairCache, base, guide[:-1]), guide[-1]]

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V) float32."""
        if not cache:
            alpha = mx.array([self.guide.alpha] * inputs.shape[0])
            return self._both(inputs, inputs, None, self._bind(alpha), self.strength())
        pairs: list[PairCache] = cache[:-1]
        preference: PreferenceCache = cache[-1]
        alone = self.apart and preference.alpha.shape[0] == 1 and all(map(PairCache.is_alone, pairs))
        if alone or not PairCache.join(pairs):
            base, guide = self.split_cache(cache)
            return combine_logits(self.base(inputs, cache=base), self.guide(inputs, cache=guide), preference.strength)
        bound = preference.bound(self._bind)
        guide_inputs, entries = preference.take_inputs(inputs), [pair.together for pair in pairs]
        return self._both(inputs, guide_inputs, entries, bound, preference.strength)

    def _both(
        self,
        base: mx.array,
        guide: mx.array,
        cache: Cache | None,
        conditioning: Conditioning,
        strength: mx.array | float,
    ) -> mx.array:
        rows = mx.stack([base, guide], axis=1).reshape(-1, base.shape[1])
        logits = self.guide.run(rows, cache, conditioning)
        return combine_logits(logits[0::2], logits[1::2], strength)

    def _bind(self, alpha: mx.array) -> Conditioning:
        return BoundPreferences(self.guide.adapted, alpha, paired=True)


def weights_differ(base: nn.Module, adapted: nn.Module) -> str | None:
    """Returns the reason why a plain model cannot take the place of an adapted one's backbone; None if it can."""
    if type(base) is not type(adapted) or getattr(base, "args", None) != getattr(adapted, "args", None):
        return "they are models of different settings"
    ours, theirs = _plain_parameters(base), _plain_parameters(adapted)
    if unmatched := sorted(ours.keys() ^ theirs.keys()):
        return f"only one of them has {unmatched[0]}"
    for name, weight in ours.items():
        if weight is (other := theirs[name]):
            continue
        if weight.shape != other.shape or weight.dtype != other.dtype:
            return f"{name} is {weight.dtype} {weight.shape} and {other.dtype} {other.shape}"
        if not mx.array_equal(weight, other):
            return f"{name} has other values"
    return None


def _plain_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The parameters of a model by the names that they have without adapters."""
    layers = {name for name, module in model.named_modules() if isinstance(module, PBLoRALinear)}
    parameters: dict[str, mx.array] = {}
    flat: Any = tree_flatten(model.parameters())
    for name, value in flat:
        layer, _, rest = name.rpartition(".linear.")
        if layer in layers:
            parameters[f"{layer}.{rest}"] = value
        elif name.rpartition(".")[0] not in layers:  # those are tensors of the adapter
            parameters[name] = value
    return parameters
