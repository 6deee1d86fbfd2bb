"""Prompts and answers that are kept, so that what follows them need not be read again.

What the base has read is shared by all preferences; what the guide has read belongs to its α.
"""

from typing import Any

from parm_mlx.guidance.prefill import CachedTokens
from parm_mlx.guidance.sampling import Request
from parm_mlx.mlxlm import LRUPromptCache, rewind
from parm_mlx.preference import Alpha

ENTRIES = 1000  # at most, whatever their size

Key = tuple[Any, ...]
BASE: Key = ("base",)


class KeptPrompts:
    """What was read, the least recently used of it dropped first.

    Args:
        limit: Bytes.
    """

    def __init__(self, limit: int) -> None:
        self._caches = LRUPromptCache(ENTRIES, limit)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return int(self._caches.nbytes)

    def before(self, request: Request) -> tuple[CachedTokens | None, CachedTokens | None]:
        """Copies of what base and guide have read of a prompt, but for its last token; None where there is nothing."""
        guide = None if request.alpha is None else self._find(_of_guide(request.alpha), request.prompt.guide)
        return self._find(BASE, request.prompt.base), guide

    def keep(self, base: CachedTokens, guide: CachedTokens | None, alpha: Alpha | None) -> None:
        """Keeps what base and guide have read; their caches must not be read into any more."""
        for key, cached in ((BASE, base), (_of_guide(alpha), guide)):
            if cached is not None and cached.tokens:
                self._caches.insert_cache(key, cached.tokens, cached.cache)

    def clear(self) -> None:
        """Drops everything."""
        self._caches.trim_to(n_sequences=0)

    def _find(self, key: Key, tokens: list[int]) -> CachedTokens | None:
        cache, rest = self._caches.fetch_nearest_cache(key, tokens)
        if cache is None or (not rest and not rewind(cache, 1)):  # the last token is read with the batch
            return None
        return CachedTokens(cache, tokens[: len(tokens) - max(len(rest), 1)])


def _of_guide(alpha: Alpha | None) -> Key:
    return ("guide", alpha)
