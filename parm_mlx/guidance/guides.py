"""Several reward models as one guide (GenARM): each is for one objective, and α weighs them.

    log π_θ(α)(y_t) = Σ_i (α_i / β_i) · log π_i(y_t),    guided by it    log π̃ = log π_base + log π_θ(α) − log Z

in logits up to a constant per position, as in :mod:`parm_mlx.guidance.guided`.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import AdapterError
from parm_mlx.guidance.guided import Cache, Guide
from parm_mlx.kernels.combine import over_common_tokens
from parm_mlx.mlxlm import PreferenceCache
from parm_mlx.pblora.layer import Conditioning
from parm_mlx.preference import Alpha, AlphaSpec, check_beta, parse_alpha, parse_objectives


class Guides(nn.Module):
    """Reward models of one objective each, conditioned on α by weighing them. It takes the place of one :class:`Guide`.

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
                names = ", ".join(guide.objectives)
                raise AdapterError(
                    f"several adapters guide together if each has one objective; one of these has {names}",
                    hint="a PARM of several objectives guides alone",
                )
            if guide.chat_template != guides[0].chat_template:
                both = f"{guides[0].chat_template or 'none'} and {guide.chat_template or 'none'}"
                raise AdapterError(f"adapters that guide together need one chat template; these record {both}")
        self.guides = list(guides)
        self._betas = tuple(map(check_beta, betas or [1.0] * len(guides)))
        self._objectives = parse_objectives([guide.objectives[0] for guide in guides])
        self._default = parse_alpha([1] * len(guides) if alpha is None else alpha, self._objectives)
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
    def objectives(self) -> tuple[str, ...]:
        """The k objectives, in the order of α."""
        return self._objectives

    @property
    def chat_template(self) -> str | None:
        """Name of the chat template that all were trained with; None is the tokenizer's own."""
        return self.guides[0].chat_template

    @property
    def alpha(self) -> Alpha:
        """The preference used where none is given."""
        return self._default

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return [*(layer for guide in self.guides for layer in guide.layers[:-1]), self]

    def make_cache(self, alpha: AlphaSpec | None = None) -> Cache:
        """A prompt cache for one sequence under one preference.

        Returns:
            The entries of each reward model's backbone, in order, and the preference as the last one.

        Raises:
            PreferenceError: α does not fit the objectives.
        """
        weights = self._default if alpha is None else parse_alpha(alpha, self.objectives)
        preference = PreferenceCache(mx.array([weights], dtype=mx.float32))
        return [*(entry for guide in self.guides for entry in guide.make_cache()[:-1]), preference]

    def __call__(self, inputs: mx.array, cache: Cache | None = None, *, alpha: AlphaSpec | None = None) -> mx.array:
        """The weighted logits of the reward models.

        Args:
            inputs: Token ids (B, L).
            cache: A cache of :meth:`make_cache`, which carries its own α.
            alpha: Without a cache: one preference for all rows.

        Returns:
            (B, L, V) float32.

        Raises:
            PreferenceError: α does not fit the objectives.
        """
        if cache:
            preference: PreferenceCache = cache[-1]
            inputs, bound = preference.take_inputs(inputs), preference.bound(self._bind)
        else:
            bound = self._bind(mx.array([self._default if alpha is None else parse_alpha(alpha, self.objectives)]))
        logits = [
            guide.run(inputs, cache[entries] if cache else None, conditioning)
            for guide, entries, (_, conditioning) in zip(self.guides, self._entries, bound, strict=True)
        ]
        weights = [weight for weight, _ in bound]
        return reduce(mx.add, map(mx.multiply, weights, over_common_tokens(*logits)))

    def _bind(self, alpha: mx.array) -> list[tuple[mx.array, Conditioning]]:
        """For each reward model its weights (B, 1, 1) and what it runs under: its one objective, in every row."""
        weights = alpha / mx.array(self._betas)
        return [(weights[:, i, None, None], guide.bind(mx.ones((1, 1)))) for i, guide in enumerate(self.guides)]
