"""Guided decoding with the base in one process and the guide in another: Eq. 13 is the sum of weighted logits.

Rank 0 has the base and adds its logits, rank 1 has the guide and adds its logits times 1/β. Both read a token at the
same time, so that a guided token takes as long as the slower of the two and one exchange of V numbers.
"""

import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.guide import Cache, Guide, Guides, preference_entry
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.shard import Shard
from parm_mlx.kernels import widened
from parm_mlx.mlxlm import context_length, embedding_rows
from parm_mlx.preference import Alpha, AlphaSpec, parse_alpha


class Elsewhere(nn.Module):
    """In place of a model that another process holds: it reads tokens, and has no layers, caches or logits."""

    def __init__(self, rows: int | None, context_length: int | None) -> None:
        super().__init__()
        self.rows, self.context_length = rows, context_length
        self.layers: Sequence[Any] = ()

    def make_cache(self) -> Cache:
        """Returns a prompt cache without entries."""
        return []

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits of one token, (B, L) token ids → (B, L, 1) zeros."""
        return mx.zeros((*inputs.shape, 1))


class GuideElsewhere(nn.Module):
    """In place of a guide that another process holds: its settings, and the preference of a sequence.

    Args:
        facts: What :func:`guide_facts` has told of the guide.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self._weights: tuple[float, ...] | None = facts["weights"] and tuple(facts["weights"])
        self.objectives: tuple[str, ...] = tuple(facts["objectives"])
        self.chat_template: str | None = facts["chat_template"]
        self.rows: int | None = facts["rows"]
        self.context_length: int | None = facts["context_length"]
        self.alpha: Alpha = tuple(facts["alpha"])

    @property
    def layers(self) -> list[Any]:
        """One item per entry of the prompt cache, as mlx-lm expects."""
        return [self]

    def make_cache(self, alpha: AlphaSpec | None = None, strength: float = 1.0) -> Cache:
        """Makes a prompt cache that holds the preference alone."""
        weights = self.alpha if alpha is None else parse_alpha(alpha, self.objectives)
        return [preference_entry(weights, strength)]

    def weight(self, alpha: Alpha) -> float:
        """As that of the guide."""
        if self._weights is None:
            return 1.0
        return sum(share * weight for share, weight in zip(alpha, self._weights, strict=True))

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Logits of one token, (B, L) token ids → (B, L, 1) zeros."""
        if cache:
            inputs = cache[-1].take_inputs(inputs)
        return mx.zeros((*inputs.shape, 1))


def guide_facts(guide: Guide | Guides) -> dict[str, Any]:
    """What the other process needs to know of a guide, as JSON can hold it."""
    corners = [tuple(float(i == own) for i in range(len(guide.objectives))) for own in range(len(guide.objectives))]
    return {
        "objectives": guide.objectives,
        "chat_template": guide.chat_template,
        "rows": guide.rows,
        "context_length": guide.context_length,
        "alpha": guide.alpha,
        "weights": [guide.weight(corner) for corner in corners] if isinstance(guide, Guides) else None,
    }


class ApartModel(GuidedModel):
    """A guided model of which this process has the base or the guide.

    Args:
        part: What it has: the base in rank 0, the guide in rank 1.
        beta: β of Eq. 13.
        shard: The two processes.
    """

    base: Any
    guide: Any

    def __init__(self, part: Any, beta: float, shard: Shard) -> None:
        facts: dict[str, Any]
        if shard.main:
            facts = {"rows": embedding_rows(part), "context_length": context_length(part)}
        else:
            facts = guide_facts(part)
        facts["vocabulary"] = part(mx.array([[0]])).shape[-1]
        base, guide = (json.loads(each) for each in shard.group.union(json.dumps(facts).encode()))
        elsewhere = Elsewhere(base["rows"], base["context_length"])
        if shard.main:
            super().__init__(part, GuideElsewhere(guide), beta)  # type: ignore[arg-type]
        else:
            super().__init__(elsewhere, part, beta)
        self.shard: Shard = shard
        self._vocabulary: int = min(base["vocabulary"], guide["vocabulary"])
        self._rows = base["rows"], guide["rows"]
        self._context_length = min(filter(None, (base["context_length"], guide["context_length"])), default=None)

    @property
    def context_length(self) -> int | None:
        """Most tokens that both models were made for; None where they do not say."""
        return self._context_length

    @property
    def rows(self) -> tuple[int | None, int | None]:
        """Number of token ids that base and guide have an embedding for; None where that is not known."""
        return self._rows

    @property
    def vocabulary(self) -> int:
        """V, the tokens that base and guide both know."""
        return self._vocabulary

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Guided logits, (B, L) token ids → (B, L, V) float32, the same in both processes."""
        base_cache, guide_cache = self.split_cache(cache) if cache else (None, None)
        base, guide = self.base(inputs, cache=base_cache), self.guide(inputs, cache=guide_cache)
        own = widened((base if self.shard.main else guide)[..., : self._vocabulary])
        if not self.shard.main:
            strength = cache[-1].strength if cache else mx.array([self.strength()])
            own = own * strength.reshape(-1, 1, 1)
        self.shard.wait_for_other_streams()
        total: mx.array = mx.distributed.all_sum(own, group=self.shard.group.members)
        return total
