"""Speculative guided decoding: several tokens are drafted cheaply and checked in one pass, without changing an answer.

Either a draft model drafts, and the guided model reads all drafts at once; or one of guide and base drafts, and the
other reads all drafts at once. Eq. 13 needs the logits of both at every token, so that a draft that is kept costs no
pass of its drafter that plain decoding would not take; the smaller of the two should draft.

Token t is argmax(log p_t + g_t), for the guided distribution p_t after temperature and filters, and Gumbel noise g_t
that depends on seed and t alone; that is a draw from p_t. A draft is argmax(log q_t + g_t) with the same noise, and is
kept if it is token t. So a seed gives the tokens that it gives without drafts, up to rounding. q_t is the drafter's
distribution, sharpened first: where guide and base agree, the guided distribution is theirs to the power 1 + 1/β.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens, read
from parm_mlx.guidance.sampling import NOT_FINITE, Sampler, Sampling, checked, normalised
from parm_mlx.guidance.shard import STOPPED, Shard
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.mlxlm import PreferenceCache, Snapshot, embedding_rows, generation_stream, make_prompt_cache, wired_limit


@dataclass(frozen=True)
class Drafting:
    """The drafter, and how far it drafts ahead.

    Attributes:
        model: A draft model with the base's vocabulary; if None, guide or base drafts.
        tokens: Most tokens drafted at a time.
        by_guide: If the guide drafts, and not the base, where there is no draft model.
        confidence: Drafting pauses once the product of the drafter's highest probabilities is below it. At 0,
            ``tokens`` are drafted always.
    """

    model: nn.Module | None
    tokens: int = 12
    by_guide: bool = False
    confidence: float = 0.5

    @cached_property
    def rows(self) -> int | None:
        """Number of token ids that the draft model has an embedding for; None where that is not known."""
        return None if self.model is None else embedding_rows(self.model)

    def readable(self, tokens: Sequence[int]) -> list[int]:
        """Replaces tokens that only the base knows by the last one that the draft model knows."""
        return [token if self.rows is None else min(token, self.rows - 1) for token in tokens]

    def make_cache(self) -> CachedTokens:
        """Makes an empty cache of the draft model; one without entries if there is no such model."""
        return CachedTokens([] if self.model is None else make_prompt_cache(self.model))

    def prefill(self, cached: CachedTokens, prompt: Sequence[int]) -> None:
        """Reads the rest of a prompt into the draft model's cache, up to its last token."""
        if self.model is not None:
            tokens = self.readable(prompt[:-1])
            read(self.model, tokens[len(cached.tokens) :], cached.cache)
            cached.tokens = tokens


@dataclass
class DraftCount:
    """Counts of drafted and accepted tokens, of checks, and of the tokens and passes that they gave and took."""

    drafted: int = 0
    accepted: int = 0
    checks: int = 0
    tokens: int = 0
    base_passes: int = 0
    guide_passes: int = 0

    @property
    def rate(self) -> float:
        """Share of the drafted tokens that were kept."""
        return self.accepted / self.drafted if self.drafted else 0.0

    def add(self, other: "DraftCount") -> None:
        """Adds the counts of another answer."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


class Chooser:
    """Draws drafts and the tokens of one answer, over V tokens (``vocabulary``); rank 0's for all of a ``shard``."""

    def __init__(self, sampling: Sampling, seed_offset: int, vocabulary: int, shard: Shard | None = None) -> None:
        self._shard = shard
        self._sampling = sampling
        self._sampler = Sampler(sampling, seed_offset)
        self._vocabulary = vocabulary
        self._noise: list[mx.array] = []  # (1, V) each, of the next tokens of the answer

    def draft(self, logits: mx.array, ahead: int) -> tuple[mx.array, mx.array]:
        """Drafts the token ``ahead`` places after the next one from sharpened logits (1, V_drafter).

        Returns:
            The draft (1,), and the highest log-probability (1,) among all.
        """
        logits = logits[:, : self._vocabulary]
        missing = self._vocabulary - logits.shape[-1]
        if missing:
            logits = mx.pad(logits, [(0, 0), (0, missing)], constant_values=-mx.inf)
        logprobs = self._sampling.distribution(logits)
        draft, highest = self._draw(logprobs, ahead), mx.max(logprobs, axis=-1)
        return (draft, highest) if self._shard is None else self._shard.agree_with(draft, highest)

    def judge(self, target: mx.array, drafts: mx.array) -> tuple[int, list[int]]:
        """Decides which of n drafts (n,) are kept.

        ``target`` (m, V) are the guided logits at the drafts' positions, and at the one after them where m = n + 1.

        Returns:
            The number of kept drafts, and the tokens to go on with: the kept ones, then one more unless m = n and all
            are kept. That one is ``NOT_FINITE`` where the logits that it would come from are not finite.
        """
        logprobs = normalised(target)
        scores = self._sampling.scores(logprobs)
        drawn = mx.concatenate([self._draw(scores[i : i + 1], i) for i in range(target.shape[0])])
        verdict = checked(drawn[:, None], logprobs)
        if self._shard is not None:
            verdict = self._shard.agree(verdict)
        values: list[Any] = [array.tolist() for array in (verdict, drafts)]
        tokens, drafted = values
        kept = [*(a == b for a, b in zip(drafted, tokens, strict=False)), False].index(False)
        tokens = tokens[: kept + 1]
        del self._noise[: len(tokens)]
        return kept, tokens

    def _draw(self, scores: mx.array, ahead: int) -> mx.array:
        """The token (1,) that the noise of a place makes of scores (1, V); the likeliest at temperature 0."""
        if self._sampling.temp == 0:
            return mx.argmax(scores, axis=-1)
        while len(self._noise) <= ahead:
            self._noise.append(self._sampler.noise(self._vocabulary))
        return mx.argmax(scores + self._noise[ahead], axis=-1)


class Speculation:
    """The tokens of one answer, drafted and checked.

    ``cache``, of one sequence, has read its prompts but for the last ``token``; ``draft``, the draft model's, has read
    as much of the base's prompt.

    Attributes:
        cache: The prompt cache after the last check.
        count: How drafted tokens fared so far.
    """

    def __init__(
        self,
        model: GuidedModel,
        cache: Cache,
        token: int,
        drafting: Drafting,
        sampling: Sampling,
        seed_offset: int = 0,
        draft: CachedTokens | None = None,
    ) -> None:
        self.cache = cache
        self.count = DraftCount()
        self._generated: list[int] = []
        self._model = model
        self._drafting = drafting
        self._chooser = Chooser(sampling, seed_offset, model.vocabulary, model.shard)
        self._last = token
        self._draft = draft or drafting.make_cache()
        self._unread_by_draft = mx.array(drafting.readable([token]), mx.uint32)
        self._sharpness = sharpness(model, cache)

    @property
    def read(self) -> list[int]:
        """The generated tokens that the cache has read; they may go further than the tokens that were taken."""
        return self._generated[:-1]

    def __iter__(self) -> Iterator[int]:
        """Yields tokens, without end; where logits are not finite, ``NOT_FINITE`` is the last one, else ``STOPPED``."""
        advance = self._draft_by_part if self._drafting.model is None else self._draft_by_model
        with wired_limit(self._model):
            while True:
                with mx.stream(generation_stream):
                    tokens = advance(mx.array([self._last], mx.uint32))
                self._generated += tokens
                self._last = tokens[-1]
                yield from tokens
                if self._last in (NOT_FINITE, STOPPED):
                    return

    def _draft_by_part(self, last: mx.array) -> list[int]:
        """Guide or base reads one token after the other and drafts; the other one reads them at once."""
        model, by_guide = self._model, self._drafting.by_guide
        base, guide = model.split_cache(self.cache)
        most = self._drafting.tokens
        before_base, before_guide = Snapshot(base, most), Snapshot(guide, most)
        if by_guide:
            own, drafts = self._drafts(model.guide, guide, last, self._sharpness["guide"])
        else:
            own, drafts = self._drafts(model.base, base, last, self._sharpness["base"])
        n, tokens_read = drafts.size, mx.concatenate([last, drafts[:-1]])
        symbols = mx.maximum(tokens_read, 0) + model.shift
        if by_guide:
            base_logits, guide_logits = model.base(tokens_read[None], cache=base)[0], own
        else:
            base_logits, guide_logits = own, model.guide_logits(symbols[None], own[None], guide)[0]
        kept, tokens = self._chooser.judge(combine_logits(base_logits, guide_logits, guide[-1].strength), drafts)
        keep = min(kept + 1, n)
        base_again = _take_back(before_base, model.base, base, tokens_read, keep)
        guide_again = _take_back(before_guide, model.guide, guide, symbols, keep)
        self.cache = model.join_cache(base, guide)
        base_passes, guide_passes = (1, n) if by_guide else (n, 1)
        self.count.add(DraftCount(n, kept, 1, len(tokens), base_passes + base_again, guide_passes + guide_again))
        return tokens

    def _draft_by_model(self, last: mx.array) -> list[int]:
        """The draft model drafts; base and guide read the drafts at once."""
        drafter, draft, unread = self._drafting.model, self._draft, self._unread_by_draft
        assert drafter is not None
        most = self._drafting.tokens
        before, before_draft = Snapshot(self.cache, most + 1), Snapshot(draft.cache, unread.size + most - 1)
        _, drafts = self._drafts(drafter, draft.cache, unread, self._sharpness["base"])
        n, tokens_read = drafts.size, mx.concatenate([last, drafts])
        kept, tokens = self._chooser.judge(self._model(tokens_read[None], cache=self.cache)[0], drafts)
        if tokens[-1] in (NOT_FINITE, STOPPED):
            self.count.add(DraftCount(n, kept, 1, len(tokens), 1, 1))
            return tokens
        passes = 1 + _take_back(before, self._model, self.cache, tokens_read, kept + 1)
        self.count.add(DraftCount(n, kept, 1, len(tokens), passes, passes))
        tokens_read = mx.concatenate([unread, drafts[:-1]])
        keep = unread.size + min(kept, n - 1)
        _take_back(before_draft, drafter, draft.cache, tokens_read, keep)
        draft.tokens += cast("list[int]", tokens_read.tolist())[:keep]
        # When all were kept, the drafter has not read its own last token yet.
        next_unread = tokens[-1:] if kept < n else tokens[-2:]
        self._unread_by_draft = mx.array(self._drafting.readable(next_unread), mx.uint32)
        return tokens

    def _drafts(self, drafter: nn.Module, cache: Cache, unread: mx.array, sharper: float) -> tuple[mx.array, mx.array]:
        """The drafter's logits (n, V_drafter) and its tokens (n,)."""
        logits: list[mx.array] = []
        drafts: list[mx.array] = []
        confidence: Any = 1.0
        while len(drafts) < self._drafting.tokens and confidence >= self._drafting.confidence:
            logits.append(drafter(unread[None], cache=cache)[:, -1])
            unread, highest = self._chooser.draft(widened(logits[-1]) * sharper, len(drafts))
            mx.async_eval(unread, highest)
            drafts.append(unread)
            if self._drafting.confidence:
                confidence *= mx.exp(highest).item()
        return mx.concatenate(logits), mx.concatenate(drafts)


def sharpness(model: GuidedModel, cache: Cache) -> dict[str, float]:
    """The powers of base and guide that are the guided distribution where both agree; the cache is of one sequence."""
    preference: PreferenceCache = cache[-1]
    weights: Any = preference.alpha[0].tolist()
    strength: Any = preference.strength.item()
    own = model.guide.weight(tuple(weights))
    together = 1 + own * float(strength)
    return {"base": together, "guide": together / own}


def _take_back(before: Snapshot, model: nn.Module, cache: Cache, tokens_read: mx.array, keep: int) -> int:
    """Leaves the first ``keep`` of the tokens that were read in a cache; returns the number of passes that it took."""
    again = before.restore(cache, tokens_read.size, keep)
    if again:
        model(tokens_read[None, :again], cache=cache)
    return int(again > 0)
