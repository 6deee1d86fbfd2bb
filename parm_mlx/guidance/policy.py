"""Tuned models that answer by themselves, without a base beside them, as baselines of guided decoding:

    log π̃(y_t) = log π_θ(α)(y_t | x, y_<t) − log Z

With a soup of adapters (:func:`parm_mlx.pblora.soup`) in place of the guide, these are rewarded soups (arXiv
2306.04488): α interpolates weights. With several guides of one objective each
(:class:`parm_mlx.guidance.guide.Guides`), the right side is Σ_i α_i · log π_i, which is multi-objective decoding, MOD
(arXiv 2406.18853). The same guides beside a base, in Eq. 13, are MOD with a base, from weak models to a strong one, and
in form GenARM.
"""

import mlx.core as mx

from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.kernels import widened
from parm_mlx.preference import Alpha, AlphaSpec


class PolicyModel(GuidedModel):
    """A guide that answers by itself, under α; the base is there for unguided answers alone.

    β has no meaning here: every strength but 0 gives the same answer, and 0, the base in a batch of guided sequences,
    is not supported. It reads the base's prompt.
    """

    reads_once = True

    @property
    def steered(self) -> "PolicyModel":
        """This model."""
        return self

    @property
    def layers(self) -> list[object]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return self.guide.layers

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float | None = None) -> Cache:
        """Makes a prompt cache for one sequence under one preference: the guide's."""
        return self.guide.make_cache(alpha, self.strength() if strength is None else strength)

    def sharpness(self, alpha: Alpha, beta: float | None = None) -> float:
        """The factor of the log-probabilities: Σ_i α_i / β_i of several guides, 1 of a soup."""
        return self.guide.weight(alpha)

    def split_cache(self, cache: Cache) -> tuple[Cache, Cache]:
        """An empty list for the base, which reads nothing, and the prompt cache."""
        return [], cache

    def join_cache(self, base: Cache, guide: Cache) -> Cache:
        """The inverse of :meth:`split_cache`."""
        return guide

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits, (B, L) token ids → (B, L, V) float32."""
        return widened(self.guide(inputs, cache=cache))
