"""The guide: a PARM, conditioned on α in its weights, or reward models of one objective each (GenARM), weighed by α:

    log π_θ(α)(y_t) = Σ_i (α_i / β_i) · log π_i(y_t)

in logits up to a constant per position, as in :mod:`parm_mlx.guidance.guided`.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import AdapterError, PreferenceError
from parm_mlx.kernels.combine import over_common_tokens
from parm_mlx.mlxlm import PreferenceCache, context_length, embedding_rows, make_prompt_cache
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Conditioning, Preferences, conditioned
from parm_mlx.preference import Alpha, AlphaSpec, check_beta, parse_alpha, parse_objectives

Cache = list[Any]


class Guide(nn.Module):
    """A PARM: a backbone with adapters, conditioned on α.

    Args:
        model: An mlx-lm model with adapters attached (``parm_mlx.pblora.adapter.attach`` or ``load_into``).
        config: The adapter's settings.
        alpha: Preference used where none is given; uniform by default.

    Attributes:
        adapted: The adapted layers, in the order of their index.
        objectives: The k objectives, in the order of α.
        chat_template: Name of the chat template that it was trained with; None is its tokenizer's own.
    """

    def __init__(self, model: nn.Module, config: PBLoRAConfig, alpha: AlphaSpec | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.adapted = tuple(adapted_layers(model).values())
        self.objectives = config.objectives
        self.chat_template = config.chat_template
        self.alpha = parse_alpha([1] * config.k if alpha is None else alpha, config.objectives)

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for; None where it does not say."""
        return context_length(self.model)

    @property
    def rows(self) -> int | None:
        """Number of token ids that it has an embedding for; None where that is not known."""
        return embedding_rows(self.model)

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return [*layer_per_entry(self.model), self]

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float = 1.0) -> Cache:
        """Makes a prompt cache for one sequence under one preference: the backbone's entries, then the preference.

        ``strength`` is 1/β for a guided model to read.
        """
        weights = self.alpha if alpha is None else parse_alpha(alpha, self.objectives)
        return [*make_prompt_cache(self.model), preference_entry(weights, strength)]

    def __call__(
        self, inputs: mx.array, cache: Cache | None = None, *, alpha: AlphaSpec | mx.array | None = None
    ) -> mx.array:
        """Logits of the reward model alone, (B, L) token ids → (B, L, V).

        Args:
            inputs: Token ids.
            cache: A cache of :meth:`make_cache`, which carries its own α.
            alpha: Without a cache: one preference for all rows, or one per row as (B, k). An ``mx.array`` is used as it
                is, and the result is differentiable in the adapter.

        Raises:
            PreferenceError: α does not fit the objectives or the batch.
        """
        if cache:
            preference: PreferenceCache = cache[-1]
            return self.run(preference.take_inputs(inputs), cache[:-1], preference.bound(self.bind))
        return self.run(inputs, None, Preferences(self._alpha_rows(alpha, inputs.shape[0])))

    def weight(self, alpha: Alpha) -> float:
        """How often its log-probabilities count in Eq. 13, beside the factor 1/β of all."""
        return 1.0

    def bind(self, alpha: mx.array) -> Conditioning:
        """Computes all that depends on α (B, k) alone, once for a generation."""
        return BoundPreferences(self.adapted, alpha)

    def run(self, inputs: mx.array, cache: Cache | None, conditioning: Conditioning) -> mx.array:
        """Logits (B, L, V) of the backbone for its own cache entries, under a conditioning."""
        with conditioned(conditioning):
            return cast(mx.array, self.model(inputs, cache=cache))

    def _alpha_rows(self, alpha: AlphaSpec | mx.array | None, rows: int) -> mx.array:
        k = len(self.objectives)
        if isinstance(alpha, mx.array):
            if alpha.shape not in ((k,), (1, k), (rows, k)):
                raise PreferenceError(f"alpha has shape {alpha.shape}; it must be ({k},) or ({rows}, {k})")
            return alpha
        if isinstance(alpha, list | tuple) and alpha and isinstance(alpha[0], Sequence):
            if len(alpha) != rows:
                raise PreferenceError(f"{len(alpha)} preference vectors given for {rows} rows")
            return mx.array([parse_alpha(row, self.objectives) for row in alpha], dtype=mx.float32)
        weights = self.alpha if alpha is None else parse_alpha(alpha, self.objectives)
        return mx.array([weights], dtype=mx.float32)


class Guides(nn.Module):
    """Reward models of one objective each, weighed by α. It takes the place of one :class:`Guide`.

    Args:
        guides: The reward models; their objectives in this order are those of α.
        alpha: Preference used where none is given; uniform by default.
        betas: β_i of each; 1 by default.

    Raises:
        AdapterError: A reward model has several objectives, or another chat template than the first.
        PreferenceError: Two have the same objective, or α does not fit.
    """

    def __init__(
        self, guides: Sequence[Guide], alpha: AlphaSpec | None = None, betas: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        for guide in guides:
            if len(guide.objectives) != 1:
                raise AdapterError(
                    "several adapters guide together if each has one objective; "
                    f"one of these has {', '.join(guide.objectives)}",
                    hint="a PARM of several objectives guides alone",
                )
            if guide.chat_template != guides[0].chat_template:
                both = f"{guides[0].chat_template or 'none'} and {guide.chat_template or 'none'}"
                raise AdapterError(f"adapters that guide together need one chat template; these record {both}")
        self.guides = list(guides)
        self.objectives = parse_objectives([guide.objectives[0] for guide in guides])
        self.chat_template = guides[0].chat_template
        self.alpha = parse_alpha([1] * len(guides) if alpha is None else alpha, self.objectives)
        self._betas = tuple(map(check_beta, betas or [1.0] * len(guides)))
        ends = tuple(accumulate(len(guide.layers) - 1 for guide in guides))
        self._entries = tuple(map(slice, (0, *ends), ends))

    @property
    def context_length(self) -> int | None:
        """Most tokens that all of them were made for; None where they do not say."""
        return min(filter(None, (guide.context_length for guide in self.guides)), default=None)

    @property
    def rows(self) -> int | None:
        """Number of token ids that all of them have an embedding for; None where that is not known."""
        return min(filter(None, (guide.rows for guide in self.guides)), default=None)

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return [*(layer for guide in self.guides for layer in guide.layers[:-1]), self]

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float = 1.0) -> Cache:
        """Makes a prompt cache for one sequence: the entries of each backbone, in order, then the preference."""
        weights = self.alpha if alpha is None else parse_alpha(alpha, self.objectives)
        return [
            *(entry for guide in self.guides for entry in guide.make_cache()[:-1]),
            preference_entry(weights, strength),
        ]

    def __call__(self, inputs: mx.array, cache: Cache | None = None, *, alpha: AlphaSpec | None = None) -> mx.array:
        """The weighted logits of the reward models, (B, L) token ids → (B, L, V) float32.

        A cache of :meth:`make_cache` carries its own α; ``alpha`` is one preference for all rows without a cache.

        Raises:
            PreferenceError: α does not fit the objectives.
        """
        if cache:
            preference: PreferenceCache = cache[-1]
            inputs, bound = preference.take_inputs(inputs), preference.bound(self._bind)
        else:
            bound = self._bind(mx.array([self.alpha if alpha is None else parse_alpha(alpha, self.objectives)]))
        logits = [
            guide.run(inputs, cache[entries] if cache else None, conditioning)
            for guide, entries, (_, conditioning) in zip(self.guides, self._entries, bound, strict=True)
        ]
        weights = [weight for weight, _ in bound]
        return reduce(mx.add, map(mx.multiply, weights, over_common_tokens(*logits)))

    def weight(self, alpha: Alpha) -> float:
        """How often their log-probabilities count in Eq. 13, Σ_i α_i/β_i, beside the factor 1/β of all."""
        return sum(weight / beta for weight, beta in zip(alpha, self._betas, strict=True))

    def _bind(self, alpha: mx.array) -> list[tuple[mx.array, Conditioning]]:
        """For each reward model its weights (B, 1, 1) and its conditioning: its one objective, in every row."""
        weights = alpha / mx.array(self._betas)
        return [(weights[:, i, None, None], guide.bind(mx.ones((1, 1)))) for i, guide in enumerate(self.guides)]


def preference_entry(alpha: Alpha, strength: float) -> PreferenceCache:
    """Makes the last entry of the prompt cache of one sequence."""
    return PreferenceCache(mx.array([alpha], dtype=mx.float32), mx.array([strength], dtype=mx.float32))


def layer_per_entry(model: nn.Module) -> list[Any]:
    """The model's layers, as many as its prompt cache has entries; None stands for those that have no layer."""
    entries = len(make_prompt_cache(model))
    layers = list(model.layers)[:entries]
    return layers + [None] * (entries - len(layers))
