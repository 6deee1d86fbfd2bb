"""Reading prompts into the caches of base and guide, each its own, and prefixes that several answers begin with.

The caches are evaluated: a lazy array belongs to the thread that made it, and another thread may decode.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request
from parm_mlx.guidance.shared import PlainFirst, SharedModel
from parm_mlx.mlxlm import PreferenceCache, bears_padding, joined, make_prompt_cache, rewind, row_of

STEP = 2048  # tokens read at a time, as in mlx-lm

Key = tuple[tuple[int, ...], tuple[int, ...]]


def prefill(model: GuidedModel, cache: Cache, base: Sequence[int], guide: Sequence[int]) -> int:
    """Reads two prompts into one guided cache, up to their last tokens.

    The prompts, of at least one token each, may differ, even in length and in their last token: the cache then has the
    guide read its own last token where the base reads the returned one. The cache may hold what both prompts continue.
    A model that reads once reads the base's prompt.

    Returns:
        The token to go on with: the prompt that is left for mlx-lm's generators.
    """
    if model.reads_once or (list(base) == list(guide) and not model.shift):
        read(model, base[:-1], cache)
    else:
        base_cache, guide_cache = model.split_cache(cache)
        read(model.base, base[:-1], base_cache)
        read(model.guide, guide[:-1], guide_cache)
        replace_last_token(guide_cache, base, guide, model.shift)
    evaluate(cache)
    return base[-1]


def read(model: nn.Module, tokens: Sequence[int], cache: Cache, rows: int = 1) -> None:
    """Reads tokens into a model's cache, the same into each of its rows."""
    for start in range(0, len(tokens), STEP):
        model(mx.array([tokens[start : start + STEP]] * rows), cache=cache)
        evaluate(cache)
        if start + STEP < len(tokens):
            mx.clear_cache()


@dataclass
class CachedTokens:
    """A prompt cache and the tokens that it has read."""

    cache: Cache
    tokens: list[int] = field(default_factory=list)

    def rewind(self, wanted: Sequence[int]) -> bool:
        """Takes back the tokens after those that ``wanted`` begins with, but for its last token.

        It returns False and leaves the cache if nothing can be used again.
        """
        pairs = enumerate(zip(self.tokens, wanted[:-1], strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(self.tokens), len(wanted) - 1))
        if not shared or not rewind(self.cache, len(self.tokens) - shared):
            return not self.tokens
        del self.tokens[shared:]
        return True


class PrefixCaches:
    """Makes the caches that answers begin with, for requests that are all known before.

    A prompt that several guided requests have, under different preferences, is read by the base once, and by the guide
    once for all that start together; on a shared backbone, both are rows of one pass. A prompt that comes once is left
    to the batch to read, with others; so is every prompt of a model that reads once, whatever the preference.
    """

    def __init__(self, model: GuidedModel, requests: Sequence[Request]) -> None:
        self._model = model
        asked = Counter(_key(request.prompt) for request in requests if request.alpha is not None)
        self._left = {key: count for key, count in asked.items() if count > 1 and not model.reads_once}
        self._base_caches: dict[Key, Cache] = {}

    def __call__(self, requests: Sequence[Request]) -> list[tuple[list[int], Cache]]:
        """Starts requests together: for each, the tokens that are still to be read, and the cache for them."""
        keys = [_key(request.prompt) if request.alpha is not None else None for request in requests]
        sharing: dict[Key, list[Request]] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in self._left:
                sharing.setdefault(key, []).append(request)
        caches = {key: iter(self._read_shared(key, several)) for key, several in sharing.items()}
        return [
            (request.prompt.base[-1:], next(caches[key])) if key in caches else self._read_alone(request)
            for key, request in zip(keys, requests, strict=True)
        ]

    def _read_alone(self, request: Request) -> tuple[list[int], Cache]:
        model, prompt = self._model, request.prompt
        if request.alpha is None:
            cache = make_prompt_cache(model.base)
        else:
            cache = model.make_cache(request.alpha, model.strength(request.beta))
        if bears_padding(cache) and (request.alpha is None or model.reads_once or prompt.is_one):
            return prompt.base, cache
        if request.alpha is None:
            read(model.base, prompt.base[:-1], cache)
            return prompt.base[-1:], cache
        return [prefill(model, cache, prompt.base, prompt.guide)], cache

    def _read_shared(self, key: Key, requests: Sequence[Request]) -> list[Cache]:
        """Reads one prompt for requests of different preferences, up to its last token."""
        model, (base, guide) = self._model, key
        empty = [model.guide.make_cache(request.alpha, model.strength(request.beta)) for request in requests]
        reader: nn.Module = model.guide
        together = isinstance(model, SharedModel) and base == guide and key not in self._base_caches
        if isinstance(model, SharedModel) and together:
            reader = PlainFirst(model.guide)
            empty.insert(0, model.guide.make_cache())
        elif key not in self._base_caches:
            self._base_caches[key] = make_prompt_cache(model.base)
            read(model.base, base[:-1], self._base_caches[key])
        *columns, preferences = zip(*empty, strict=True)
        entries, preference = [joined(column) for column in columns], PreferenceCache.merge(preferences)
        read(reader, guide[:-1], [*entries, preference], rows=len(empty))
        if together:
            self._base_caches[key] = [row_of(entry, 0) for entry in entries]
        caches = []
        for i in range(len(empty) - len(requests), len(empty)):
            guide_cache = [*(row_of(entry, i) for entry in entries), preference.extract(i)]
            replace_last_token(guide_cache, base, guide, model.shift)
            caches.append(model.join_cache(deepcopy(self._base_caches[key]), guide_cache))
            evaluate(caches[-1])
        self._left[key] -= len(requests)
        if not self._left[key]:
            del self._base_caches[key]
        return caches


def _key(prompt: PromptTokens) -> Key:
    return tuple(prompt.base), tuple(prompt.guide)


def replace_last_token(guide_cache: Cache, base: Sequence[int], guide: Sequence[int], shift: int = 0) -> None:
    """Has the guide read its own last token where the base reads the base's, if they differ.

    ``shift`` is that of the guided model.
    """
    if base[-1] + shift != guide[-1]:
        preference: PreferenceCache = guide_cache[-1]
        preference.replace_first_token(guide[-1])


def evaluate(cache: Cache) -> None:
    """Computes all that a prompt cache holds."""
    states: list[Any] = [entry.state for entry in cache]
    mx.eval(states)
