"""Reading prompts into the caches of base and guide, each its own."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.mlxlm import PreferenceCache, joined, row_of
from parm_mlx.preference import Alpha

STEP = 2048


def prefill(model: GuidedModel, cache: Cache, base: Sequence[int], guide: Sequence[int]) -> int:
    """Reads two prompts into one guided cache, up to their last tokens.

    The prompts may differ, even in length and in their last token: the cache then has the guide read its own last token
    where the base reads the returned one. What both generate after that is the same.

    Args:
        model: The guided model.
        cache: A cache of ``model.make_cache``, empty or holding what both prompts continue.
        base: The base's prompt tokens, at least one.
        guide: The guide's prompt tokens, at least one.

    Returns:
        The token to go on with: the prompt that is left for mlx-lm's generators.
    """
    if list(base) == list(guide):
        read(model, base[:-1], cache)
        return base[-1]
    base_cache, guide_cache = model.split_cache(cache)
    read(model.base, base[:-1], base_cache)
    read(model.guide, guide[:-1], guide_cache)
    _go_on(guide_cache, base, guide)
    return base[-1]


def read_guides(model: GuidedModel, alphas: Sequence[Alpha], base: Sequence[int], guide: Sequence[int]) -> list[Cache]:
    """Reads one guide's prompt under several preferences at once, up to its last token; see :func:`prefill`.

    Returns:
        The guide's cache for each preference.
    """
    *columns, preferences = zip(*(model.guide.make_cache(alpha) for alpha in alphas), strict=True)
    entries, preference = [joined(column) for column in columns], PreferenceCache.merge(preferences)
    read(model.guide, guide[:-1], [*entries, preference], rows=len(alphas))
    caches = [[*(row_of(entry, i) for entry in entries), preference.extract(i)] for i in range(len(alphas))]
    for cache in caches:
        _go_on(cache, base, guide)
    return caches


def _go_on(guide_cache: Cache, base: Sequence[int], guide: Sequence[int]) -> None:
    if base[-1] != guide[-1]:
        preference: PreferenceCache = guide_cache[-1]
        preference.replace_first_token(guide[-1])


def read(model: nn.Module, tokens: Sequence[int], cache: list[Any], rows: int = 1) -> None:
    """Reads tokens into a model's cache, the same into each of its rows."""
    for start in range(0, len(tokens), STEP):
        model(mx.array([tokens[start : start + STEP]] * rows), cache=cache)
        mx.eval([entry.state for entry in cache])
