"""Reading prompts into the caches of base and guide, each its own."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.model import Cache, GuidedModel
from parm_mlx.mlxlm import PreferenceCache

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
    read_guide(model, guide_cache, base, guide)
    return base[-1]


def read_guide(model: GuidedModel, cache: Cache, base: Sequence[int], guide: Sequence[int]) -> None:
    """Reads the guide's prompt into its cache, up to the last token; see :func:`prefill`."""
    read(model.guide, guide[:-1], cache)
    if base[-1] != guide[-1]:
        preference: PreferenceCache = cache[-1]
        preference.replace_first_token(guide[-1])


def read(model: nn.Module, tokens: Sequence[int], cache: list[Any]) -> None:
    """Reads tokens into a model's cache."""
    for start in range(0, len(tokens), STEP):
        model(mx.array([tokens[start : start + STEP]]), cache=cache)
        mx.eval([entry.state for entry in cache])
