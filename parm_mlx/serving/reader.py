"""The reader: prompts are read piece by piece, each in turn, into the caches with which answers join the batch."""

from collections import deque
from copy import deepcopy
from typing import Any

import mlx.core as mx

from parm_mlx.errors import ModelError
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens, evaluate, read, replace_last_token
from parm_mlx.mlxlm import bears_padding, can_batch, make_prompt_cache
from parm_mlx.serving.answering import Answering, Reading
from parm_mlx.serving.kept import KeptPrompts

STEP = 512  # tokens of a prompt that are read between two steps of the batch
TOGETHER = 1024  # tokens of short prompts, padded, that are read at once


class PromptReader:
    """Reads prompts after what is kept of them, and keeps what it has read.

    Attributes:
        answers: Those whose prompts are to be read, in turn. They stay until they are removed.

    Raises:
        ModelError: The model's prompt caches cannot be batched.
    """

    def __init__(self, model: GuidedModel, kept: KeptPrompts) -> None:
        self.answers: deque[Answering] = deque()
        self._model, self._kept = model, kept
        self._guided = bool(model.objectives)
        cache = model.make_cache() if self._guided else make_prompt_cache(model.base)
        if not can_batch(cache):
            raise ModelError("the prompt cache of this model cannot be batched, so it cannot be served")
        self._bears_padding = bears_padding(cache)

    def due(self) -> list[Answering]:
        """The answers whose prompts are to be read now: one or, of short prompts that nothing is kept of, several.

        A prompt waits while the same one is read for another answer, and then has what is kept of that.
        """
        several = self._short_and_new()
        if len(several) > 1 or not self.answers:
            return several
        begun = [each.request.prompt.base for each in self.answers if each.reading is not None]
        return [next(each for each in self.answers if each.reading or each.request.prompt.base not in begun)]

    def read_piece(self, answering: Answering) -> bool:
        """Reads a piece of a prompt, after which other prompts have their turn; returns True once all is read."""
        reading, model = answering.reading or self._begin(answering), self._model
        prompt, once = answering.request.prompt, model.reads_once
        steered = once or answering.request.alpha is not None
        if (once or _advance(model.base, reading.base, prompt.base)) and (
            not steered or _advance(model.steered, reading.guide, prompt.guide)
        ):
            own = deepcopy(reading)  # the batch goes on with the other
            self._kept.keep(own.base, own.guide, answering.request)
            return True
        self.answers.remove(answering)
        self.answers.append(answering)  # a short prompt does not wait for a long one
        return False

    def hand_over(self, answering: Answering, whole: bool = False) -> Cache:
        """Returns the cache that the batch goes on with, to read the last token of the prompt, or the ``whole``."""
        reading, request, guided = answering.reading, answering.request, answering.request.alpha is not None
        assert reading is not None
        answering.joined_with = request.prompt.base if whole else request.prompt.base[-1:]
        answering.reading = None
        cache = reading.base.cache
        if reading.guide is not None:
            if guided and not whole:
                replace_last_token(reading.guide.cache, request.prompt.base, request.prompt.guide, self._model.shift)
            cache = self._model.join_cache(cache, reading.guide.cache)
        if not whole:
            evaluate(cache)
        return cache

    def _begin(self, answering: Answering) -> Reading:
        model, request = self._model, answering.request
        base, guide = self._kept.before(request)
        if not answering.tokens:
            answering.guide_cached = len(guide.tokens) if guide else 0
            answering.cached = len(base.tokens) if base else answering.guide_cached * model.reads_once
        if self._guided:
            strength = model.strength_of(request.alpha, request.beta)
            guide = guide or CachedTokens(model.steered.make_cache(request.alpha, strength))
            guide.cache[-1].strength = mx.array([strength])
        base = base or CachedTokens([] if model.reads_once else make_prompt_cache(model.base))
        answering.reading = Reading(base, guide)
        return answering.reading

    def _short_and_new(self) -> list[Answering]:
        """Answers whose prompts, of which nothing is kept, mlx-lm may read together: padded, they are one piece."""
        found: list[Answering] = []
        longest = 0
        for answering in self.answers:
            prompt, guided = answering.request.prompt, answering.request.alpha is not None
            if not self._bears_padding or len(prompt.base) > STEP or (guided and not prompt.is_one):
                continue
            longest = max(longest, len(prompt.base))
            if longest * (len(found) + 1) > TOGETHER:
                break
            reading = answering.reading or self._begin(answering)
            if not reading.base.tokens and not (reading.guide and reading.guide.tokens):
                found.append(answering)
        return found


def _advance(model: Any, cached: CachedTokens | None, wanted: list[int]) -> bool:
    """Reads up to ``STEP`` more tokens of a prompt but its last; returns True when it is read."""
    assert cached is not None
    left = wanted[len(cached.tokens) : -1]
    if not left:
        return True
    read(model, left[:STEP], cached.cache)
    cached.tokens = cached.tokens + left[:STEP]
    return len(left) <= STEP
