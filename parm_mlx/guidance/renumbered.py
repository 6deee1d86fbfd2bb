"""A guide whose vocabulary is the base's under other ids: its distribution, in the base's order."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from parm_mlx.guidance.guide import Cache, Guide, Guides
from parm_mlx.guidance.pushforward import NEVER
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabulary_pair import FOREIGN
from parm_mlx.kernels import widened
from parm_mlx.preference import Alpha, AlphaSpec

Ids = NDArray[np.int64]


class Order:
    """The base's tokens in a guide's vocabulary.

    Args:
        ids: (V_base,) the guide's id of each token; −1 where it has none.
        base_ends: The base's tokens that end an answer.
        ends: The guide's.
    """

    def __init__(self, ids: Ids, base_ends: list[int], ends: list[int]) -> None:
        ids = ids.copy()
        ids[base_ends] = -1
        self.gathered, self.never = mx.array(np.maximum(ids, 0)), mx.array(ids < 0)
        ids[ids < 0] = ends[0]
        self.read = mx.array(ids)
        self.base_ends, self.ends = mx.array(base_ends), mx.array(ends)
        mx.eval(vars(self))  # a lazy array belongs to the thread that made it


def base_order(base: TokenBytes, guide: TokenBytes, rows: int | None = None) -> Order | None:
    """The base's order, where both tokenizers make the same tokens under other ids; None where they differ in more.

    Tokens beyond the ``rows`` of the guide's embedding are as those that it does not have.
    """
    if not base.rules or base.rules != guide.rules or base.names.keys() != guide.names.keys():
        return None
    ids = np.full(len(base.pieces), -1, np.int64)
    for mine, theirs in ((base.names, guide.names), (base.control, guide.control)):
        for name, i in mine.items():
            ids[i] = theirs.get(name, -1)
    ids[ids >= (rows or ids.max() + 1)] = -1
    return Order(ids, base.ends, guide.ends)


class ForeignGuide(nn.Module):
    """A guide, of one or several reward models, as a base with other tokens sees it."""

    def __init__(self, guide: Guide | Guides) -> None:
        super().__init__()
        self.guide = guide
        self.objectives, self.chat_template, self.alpha = guide.objectives, guide.chat_template, guide.alpha

    @property
    def context_length(self) -> int | None:
        """Most tokens that the guide was made for; None where it does not say."""
        return self.guide.context_length

    @property
    def rows(self) -> int | None:
        """Number of its own token ids that it has an embedding for; None where that is not known."""
        return self.guide.rows

    def weight(self, alpha: Alpha) -> float:
        """How often its log-probabilities count in Eq. 13, beside the factor 1/β of all."""
        return self.guide.weight(alpha)


class RenumberedGuide(ForeignGuide):
    """A guide that a base of the same tokens under other ids can read."""

    def __init__(self, guide: Guide | Guides, order: Order) -> None:
        super().__init__(guide)
        self._order = order

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return self.guide.layers

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float = 1.0) -> Cache:
        """Makes a prompt cache for one sequence: the guide's."""
        return self.guide.make_cache(alpha, strength)

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Reads symbols (B, L): its own tokens, and the base's plus ``FOREIGN``; returns its own logits."""
        foreign = inputs >= FOREIGN
        ids = mx.where(foreign, self._order.read[mx.where(foreign, inputs - FOREIGN, 0)], inputs)
        return self.guide(ids, cache=cache)

    def score(self, symbols: mx.array, logits: mx.array, cache: Cache | None = None) -> mx.array:
        """Log-probabilities (B, L, V_base) of the base's tokens after symbols (B, L); all ends have that of an end."""
        order, own = self._order, widened(self(symbols, cache))
        own = own - mx.logsumexp(own, axis=-1, keepdims=True)
        out = mx.where(order.never, NEVER, own[..., order.gathered])
        end = mx.logsumexp(own[..., order.ends], axis=-1, keepdims=True)
        out[..., order.base_ends] = mx.broadcast_to(end, (*end.shape[:-1], order.base_ends.size))
        missing = logits.shape[-1] - out.shape[-1]
        return mx.pad(out, [(0, 0), (0, 0), (0, max(missing, 0))], constant_values=NEVER)[..., : logits.shape[-1]]
