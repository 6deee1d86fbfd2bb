"""Prompts and answers that are kept, so that what follows them need not be read again.

What the base has read is shared by all preferences; what the guide has read belongs to its α. In one pass, all that is
read belongs to α and 1/β.
"""

from typing import Any

from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens
from parm_mlx.guidance.sampling import Request
from parm_mlx.mlxlm import LRUPromptCache, only_grows, rewind

ENTRIES = 1000  # at most, whatever their size
UNLIMITED = 1 << 62

Key = tuple[Any, ...]
BASE: Key = ("base",)


class KeptPrompts:
    """What was read, the least recently used of it dropped first.

    Args:
        limit: Bytes.
        model: The model that reads.
    """

    def __init__(self, limit: int, model: GuidedModel) -> None:
        shard, self._limit, self._model = model.shard, limit, model
        # Processes hold parts of different sizes, and must drop the same ones: :meth:`shrink` does, between turns.
        self._caches = LRUPromptCache(ENTRIES, limit if shard is None else UNLIMITED)
        self._keeps = shard is None or all(shard.union(only_grows(model.make_cache() if model.objectives else [])))

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return int(self._caches.nbytes)

    def shrink(self, left: int | None = None) -> int:
        """Drops the least recently used until the bytes are within the limit, or so many are left; returns that many.

        Rank 0 counts bytes, and the other processes that hold the model follow.
        """
        if left is None:
            self._caches.trim_to(n_bytes=self._limit)
        else:
            self._caches.trim_to(n_sequences=left)
        return len(self._caches)

    def before(self, request: Request) -> tuple[CachedTokens | None, CachedTokens | None]:
        """Copies of what base and guide have read of a prompt, but for its last token; None where there is nothing."""
        base, guide = self._keys(request)
        return self._find(base, request.prompt.base), self._find(guide, request.prompt.guide)

    def keep(self, base: CachedTokens, guide: CachedTokens | None, request: Request) -> None:
        """Keeps what base and guide have read for a request; their caches must not be read into any more."""
        for key, cached in zip(self._keys(request), (base, guide), strict=True):
            if self._keeps and key is not None and cached is not None and cached.tokens:
                self._caches.insert_cache(key, cached.tokens, cached.cache)

    def clear(self) -> None:
        """Drops everything."""
        self._caches.trim_to(n_sequences=0)

    def _find(self, key: Key | None, tokens: list[int]) -> CachedTokens | None:
        if key is None:
            return None
        cache, rest = self._caches.fetch_nearest_cache(key, tokens)
        if cache is None or (not rest and not rewind(cache, 1)):  # the last token is read with the batch
            return None
        return CachedTokens(cache, tokens[: len(tokens) - max(len(rest), 1)])

    def _keys(self, request: Request) -> tuple[Key | None, Key | None]:
        """What the base's and the guide's reading depends on; None where there is nothing to keep."""
        if self._model.reads_once:
            return None, ("one pass", request.alpha, self._model.strength_of(request.alpha, request.beta))
        return BASE, None if request.alpha is None else ("guide", request.alpha)
