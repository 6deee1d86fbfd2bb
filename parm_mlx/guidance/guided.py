"""Guided decoding as a model.

Eq. 13, with logits up to a constant per position (softmax removes it, and with it log Z):

    log π̃(y_t) = log π_base(y_t | x, y_<t) + (1/β) · log π_θ(α)(y_t | x, y_<t) − log Z

Both classes look like mlx-lm models, so generate_step, stream_generate, BatchGenerator and speculative decoding run
them unchanged. α enters with ``make_cache(alpha=…)`` and lives in the prompt cache. :mod:`parm_mlx.guidance.shared` is
for a base and a guide on the same weights, :mod:`parm_mlx.guidance.guides` has a guide made of several reward models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import PreferenceError
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import PreferenceCache, context_length, embedding_rows, make_prompt_cache
from parm_mlx.pblora.adapter import adapted_layers
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Conditioning, PBLoRALinear, Preferences, conditioned
from parm_mlx.preference import AlphaSpec, check_beta, parse_alpha

if TYPE_CHECKING:
    from parm_mlx.guidance.guides import Guides

Cache = list[Any]


class Guide(nn.Module):
    """A PARM: a backbone with adapters, conditioned on α.

    Args:
        model: An mlx-lm model with adapters attached (``parm_mlx.pblora.attach`` or ``load_into``).
        config: The adapter's settings.
        alpha: Preference used where none is given; uniform by default.
    """

    def __init__(self, model: nn.Module, config: PBLoRAConfig, alpha: AlphaSpec | None = None) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._adapted = tuple(adapted_layers(model).values())
        self._default = parse_alpha([1] * config.k if alpha is None else alpha, config.objectives)

    @property
    def config(self) -> PBLoRAConfig:
        """The adapter's settings."""
        return self._config

    @property
    def adapted(self) -> Sequence[PBLoRALinear]:
        """The adapted layers, in the order of their index."""
        return self._adapted

    @property
    def objectives(self) -> tuple[str, ...]:
        """The k objectives, in the order of α."""
        return self._config.objectives

    @property
    def chat_template(self) -> str | None:
        """Name of the chat template that it was trained with; None is its tokenizer's own."""
        return self._config.chat_template

    @property
    def alpha(self) -> tuple[float, ...]:
        """The preference used where none is given."""
        return self._default

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
        return [*_padded(self.model, len(make_prompt_cache(self.model))), self]

    def make_cache(self, alpha: AlphaSpec | None = None) -> Cache:
        """A prompt cache for one sequence under one preference.

        Args:
            alpha: k weights, ``"0.7,0.3"``, ``"helpful=0.7"`` or a mapping; the default preference when left out.

        Returns:
            The backbone's cache entries, and the preference as the last one.

        Raises:
            PreferenceError: α does not fit the objectives.
        """
        weights = self._default if alpha is None else parse_alpha(alpha, self.objectives)
        return [*make_prompt_cache(self.model), PreferenceCache(mx.array([weights], dtype=mx.float32))]

    def __call__(
        self, inputs: mx.array, cache: Cache | None = None, *, alpha: AlphaSpec | mx.array | None = None
    ) -> mx.array:
        """Logits of the reward model alone.

        Args:
            inputs: Token ids (B, L).
            cache: A cache of :meth:`make_cache`, which carries its own α.
            alpha: Without a cache: one preference for all rows, or one per row as (B, k). An ``mx.array`` is used as it
                is, and the result is differentiable in the adapter.

        Returns:
            (B, L, V).

        Raises:
            PreferenceError: α does not fit the objectives or the batch.
        """
        if cache:
            preference: PreferenceCache = cache[-1]
            return self.run(preference.take_inputs(inputs), cache[:-1], preference.bound(self.bind))
        return self.run(inputs, None, Preferences(self._alpha_rows(alpha, inputs.shape[0])))

    def bind(self, alpha: mx.array) -> Conditioning:
        """All that depends on α (B, k) alone, computed once for a generation."""
        return BoundPreferences(self._adapted, alpha)

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
        weights = self._default if alpha is None else parse_alpha(alpha, self.objectives)
        return mx.array([weights], dtype=mx.float32)


class GuidedModel(nn.Module):
    """A frozen base model guided by a PARM, or by several reward models.

    Args:
        base: An mlx-lm model.
        guide: What guides; its vocabulary is the base's, up to padding.
        beta: β > 0 of Eq. 13. Smaller β, stronger guide.

    Raises:
        PreferenceError: β is not a number from 1e-6 to 1e6.
    """

    def __init__(self, base: nn.Module, guide: "Guide | Guides", beta: float = 1.0) -> None:
        super().__init__()
        self.base = base
        self.guide = guide
        self._base_entries = len(make_prompt_cache(base))
        self.beta = check_beta(beta)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The k objectives, in the order of α."""
        return self.guide.objectives

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
        return _padded(self.base, self._base_entries) + self.guide.layers

    def make_cache(self, alpha: AlphaSpec | None = None) -> Cache:
        """A prompt cache for one sequence under one preference: the base's entries, then the guide's.

        Raises:
            PreferenceError: α does not fit the objectives.
        """
        return [*make_prompt_cache(self.base), *self.guide.make_cache(alpha)]

    def split_cache(self, cache: Cache) -> tuple[Cache, Cache]:
        """The base's and the guide's entries of a prompt cache; both may be read into."""
        return cache[: self._base_entries], cache[self._base_entries :]

    def join_cache(self, base: Cache, guide: Cache) -> Cache:
        """The inverse of :meth:`split_cache`."""
        return [*base, *guide]

    def base_logits(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits of the base alone, (B, L) token ids → (B, L, V_base) float32, so that nobody normalises in 16 bits."""
        return widened(self.base(inputs, cache=cache))

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V) float32."""
        base_cache, guide_cache = self.split_cache(cache) if cache else (None, None)
        return combine_logits(self.base(inputs, cache=base_cache), self.guide(inputs, cache=guide_cache), self.beta)


def _padded(model: nn.Module, length: int) -> list[Any]:
    layers = list(model.layers)[:length]
    return layers + [None] * (length - len(layers))
