"""Guided decoding in one pass, where base and guide share weights: an approximation of Eq. 13 at the price of the base.

With the weights θ of the backbone and the guide's update Δ(α), Eq. 13 adds two outputs of nearly the same network,
z(θ) + (1/β) · z(θ + Δ). To first order in Δ that is one pass with a share of the update:

    (1 + 1/β) · z(θ + c Δ),    c = (1/β) / (1 + 1/β)

The error is of second order in Δ, c (1 − c) / 2 times the curvature of the logits along it: none for the base alone
(1/β = 0) nor for the guide alone (1/β → ∞), and most at β = 1. :mod:`parm_mlx.evaluation.fidelity` measures it, and
:mod:`parm_mlx.training.refinement` trains it away.
"""

import mlx.core as mx

from parm_mlx.guidance.guide import Cache, Guide
from parm_mlx.guidance.shared import OneBackboneModel
from parm_mlx.kernels import widened
from parm_mlx.mlxlm import PreferenceCache, scale_logits
from parm_mlx.pblora.inference import BoundPreferences
from parm_mlx.pblora.layer import Conditioning
from parm_mlx.pblora.transform import fuse_model
from parm_mlx.preference import Alpha, AlphaSpec


class OnePassModel(OneBackboneModel):
    """A base model guided by a PARM that shares its weights, in one row of the backbone per sequence.

    Its prompt cache is that of the backbone with the preference, and so are its costs. Every sequence of a batch has
    its own α and β; at strength 0 it is the base alone, exactly.
    """

    reads_once = True

    @property
    def steered(self) -> "OnePassModel":
        """This model: what it reads depends on α and on 1/β."""
        return self

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float | None = None) -> Cache:
        """As for any guided model: the backbone's entries, then the preference."""
        return self.guide.make_cache(alpha, self.strength() if strength is None else strength)

    def split_cache(self, cache: Cache) -> tuple[Cache, Cache]:
        """An empty list for the base, which reads nothing by itself, and the prompt cache."""
        return [], cache

    def join_cache(self, base: Cache, guide: Cache) -> Cache:
        """The inverse of :meth:`split_cache`."""
        return guide

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V) float32: (1 + 1/β) · z(θ + c Δ(α))."""
        if cache:
            preference: PreferenceCache = cache[-1]
            strength, bound = preference.strength, preference.bound(self._bind, with_strength=True)
        else:
            strength = mx.array([self.strength()])
            bound = self._bind(mx.array([self.guide.alpha]), strength)
        logits = self.guide.run(inputs, cache[:-1] if cache else None, bound)
        return widened(logits) * (1 + strength)[:, None, None]

    def _bind(self, alpha: mx.array, strength: mx.array) -> Conditioning:
        return BoundPreferences(self.guide.adapted, alpha, share=update_share(strength))


def fuse_guided(guide: Guide, alpha: Alpha, beta: float, dequantize: bool = False) -> None:
    """Makes a guide's model, in place, a plain one that computes :class:`OnePassModel` at one α and β.

    Its weights are W + c ΔW(α), and its final norm has the factor 1 + 1/β; see :meth:`PBLoRALinear.fuse`.

    Raises:
        InputError: The backbone is quantised and ``dequantize`` is not set.
        ModelError: The logits of this family do not scale with a norm.
    """
    fuse_model(guide.model, alpha, dequantize, share=(1 / beta) / (1 + 1 / beta))
    scale_logits(guide.model, 1 + 1 / beta)


def update_share(strength: mx.array) -> mx.array:
    """The share of the update that stands for base and guide, c = (1/β) / (1 + 1/β), for 1/β of each row (B,)."""
    return strength / (1 + strength)
