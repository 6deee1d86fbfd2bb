"""Where the answers of a batch begin: prompt caches, and the tokens that are still to be read into them."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy

from parm_mlx.guidance.model import Cache, GuidedModel
from parm_mlx.guidance.prefill import prefill, read, read_guide
from parm_mlx.guidance.requests import Request
from parm_mlx.mlxlm import bears_padding, make_prompt_cache


class Beginnings:
    """Begins answers. A base prompt that several guided requests have, under different preferences, is read once.

    The guide's rows depend on α and are read for each. A prompt that comes once is left to the batch to read, together
    with others.

    Args:
        model: The guided model.
        requests: All that will be asked for.
    """

    def __init__(self, model: GuidedModel, requests: Sequence[Request]) -> None:
        self._model = model
        self._left = Counter(tuple(request.prompt.base) for request in requests if request.alpha is not None)
        self._read: dict[tuple[int, ...], Cache] = {}
        self._repeated = {prompt for prompt, count in self._left.items() if count > 1}

    def __call__(self, request: Request) -> tuple[list[int], Cache]:
        """The tokens of a request that are still to be read, and the cache to read them into."""
        model, prompt = self._model, request.prompt
        if request.alpha is None:
            cache = make_prompt_cache(model.base)
            if bears_padding(cache):
                return prompt.base, cache
            read(model.base, prompt.base[:-1], cache)
            return prompt.base[-1:], cache
        cache = model.make_cache(request.alpha)
        if tuple(prompt.base) in self._repeated:
            _, guide = model.split_cache(cache)
            read_guide(model, guide, prompt.base, prompt.guide)
            return prompt.base[-1:], model.join_cache(self._base(prompt.base), guide)
        if prompt.base == prompt.guide and bears_padding(cache):
            return prompt.base, cache
        return [prefill(model, cache, prompt.base, prompt.guide)], cache

    def _base(self, prompt: Sequence[int]) -> Cache:
        """The base's cache of a repeated prompt but for its last token; the last one who asks gets the original."""
        key = tuple(prompt)
        if key not in self._read:
            self._read[key] = make_prompt_cache(self._model.base)
            read(self._model.base, prompt[:-1], self._read[key])
        self._left[key] -= 1
        return deepcopy(self._read[key]) if self._left[key] > 0 else self._read.pop(key)
