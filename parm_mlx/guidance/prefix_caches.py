"""Where the answers of a batch begin: prompt caches, and the tokens that are still to be read into them."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.guidance.prefill import prefill, read, read_guides
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.requests import Request
from parm_mlx.mlxlm import bears_padding, make_prompt_cache
from parm_mlx.preference import Alpha

ROWS = 16
Key = tuple[tuple[int, ...], tuple[int, ...]]


class Beginnings:
    """Begins answers; called once for each request, in their order.

    A prompt that several guided requests have, under different preferences, is read by the base once, and by the guide
    for up to ``ROWS`` preferences at a time. A prompt that comes once is left to the batch to read, with others.

    Args:
        model: The guided model.
        requests: All that will be asked for.
    """

    def __init__(self, model: GuidedModel, requests: Sequence[Request]) -> None:
        self._model = model
        alphas: dict[Key, list[Alpha]] = {}
        for request in requests:
            if request.alpha is not None:
                alphas.setdefault(_key(request.prompt), []).append(request.alpha)
        self._left = {key: len(several) for key, several in alphas.items()}
        self._repeated = {key: self._caches(key, several) for key, several in alphas.items() if len(several) > 1}

    def __call__(self, request: Request) -> tuple[list[int], Cache]:
        """The tokens of a request that are still to be read, and the cache to read them into."""
        model, prompt = self._model, request.prompt
        if request.alpha is None:
            cache = make_prompt_cache(model.base)
            if bears_padding(cache):
                return prompt.base, cache
            read(model.base, prompt.base[:-1], cache)
            return prompt.base[-1:], cache
        if repeated := self._repeated.get(key := _key(prompt)):
            cache = next(repeated)
            self._left[key] -= 1
            if not self._left[key]:
                del self._repeated[key]  # and with it the base's cache
            return prompt.base[-1:], cache
        cache = model.make_cache(request.alpha)
        if prompt.base == prompt.guide and bears_padding(cache):
            return prompt.base, cache
        return [prefill(model, cache, prompt.base, prompt.guide)], cache

    def _caches(self, key: Key, alphas: Sequence[Alpha]) -> Iterator[Cache]:
        base, guide = key
        base_cache = make_prompt_cache(self._model.base)
        read(self._model.base, base[:-1], base_cache)
        for start in range(0, len(alphas), ROWS):
            for guide_cache in read_guides(self._model, alphas[start : start + ROWS], base, guide):
                yield self._model.join_cache(deepcopy(base_cache), guide_cache)


def _key(prompt: PromptTokens) -> Key:
    return tuple(prompt.base), tuple(prompt.guide)
