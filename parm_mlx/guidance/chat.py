"""A conversation with a guided model: the prompt cache is kept from turn to turn, and α can change between turns."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import mlx.core as mx
from mlx_lm.generate import generate_step

from parm_mlx.guidance.finite import not_finite
from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.guidance.prefill import prefill, read
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import NOT_FINITE, Sampling
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation, Track
from parm_mlx.guidance.stream import Piece, pieces
from parm_mlx.mlxlm import TokenizerWrapper, make_prompt_cache, rewind, wired_limit
from parm_mlx.preference import Alpha


class Conversation:
    """Turns between a user and a guided model.

    Args:
        model: The guided model.
        tokenizer: The base's tokenizer.
        prompter: Renders the conversation for base and guide.
        alpha: The preference to start with.
        system_prompt: System message, if any.
        drafting: Who drafts tokens, if anyone.

    Attributes:
        drafts: How the drafted tokens fared so far.
    """

    def __init__(
        self,
        model: GuidedModel,
        tokenizer: TokenizerWrapper,
        prompter: Prompter,
        alpha: Alpha,
        system_prompt: str | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._drafting = drafting
        self._alpha = alpha
        self.drafts = DraftCount()
        self._draft = Track([])
        self.reset()

    @property
    def alpha(self) -> Alpha:
        """The preference of the next answer. Setting it drops the guide's cache and keeps the base's."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        if alpha != self._alpha:
            self._alpha = alpha
            self._guide = self._fresh_guide()

    @property
    def last_question(self) -> PromptTokens | None:
        """The prompt that ends in the last question, or None before the first."""
        return self._asked

    def reset(self) -> None:
        """Forgets everything said so far."""
        self._messages: list[dict[str, str]] = list(self._system)
        self._asked: PromptTokens | None = None
        self._answered: list[int] = []
        self._forget_caches()

    def ask(self, question: str, sampling: Sampling, max_tokens: int) -> Generator[Piece, None, None]:
        """Answers a question, piece by piece.

        Closing the iterator early keeps the answer as far as it came, and an error drops the question. The next
        question follows the tokens of the answer as they were generated.

        Raises:
            InputError: The conversation is longer than the models can read.
            ModelError: The chat template does not accept the conversation.
            RunError: The logits are not finite.
        """
        messages = [*self._messages, {"role": "user", "content": question}]
        if self._asked is None:
            prompt = self._prompter(messages)
        else:
            prompt = self._prompter.after_answer(messages, self._asked, self._answered)
        text, tokens = "", list[int]()
        try:
            with closing(self._tokens(prompt, tokens, sampling)) as produced:
                for piece in pieces(produced, self._tokenizer, max_tokens):
                    text += piece.text
                    yield piece
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self._forget_caches()
                raise
        self._messages = [*messages, {"role": "assistant", "content": text}]
        self._asked, self._answered = prompt, tokens

    def _tokens(self, prompt: PromptTokens, answer: list[int], sampling: Sampling) -> Generator[int, None, None]:
        """The tokens of the answer to a prompt, without end; those before its end are added to ``answer``."""
        last = self._read(prompt)
        cache = self._model.join_cache(self._base.cache, self._guide.cache)
        produce = self._generated if self._drafting is None else self._drafted
        with closing(produce(prompt, last, cache, sampling)) as produced:
            for token in produced:
                if token == NOT_FINITE:
                    raise not_finite(self._model, prompt, self._alpha, answer)
                if token not in self._tokenizer.eos_token_ids:
                    answer.append(token)
                yield token

    def _generated(
        self, prompt: PromptTokens, last: int, cache: Cache, sampling: Sampling
    ) -> Generator[int, None, None]:
        sampler = sampling.sampler(self._number)
        steps = generate_step(mx.array([last]), self._model, max_tokens=-1, sampler=sampler, prompt_cache=cache)
        read: list[int] = []
        try:
            with wired_limit(self._model):
                for token, _ in steps:
                    read.append(int(token))
                    yield read[-1]
        finally:
            self._has_read(cache, prompt, read)

    def _drafted(self, prompt: PromptTokens, last: int, cache: Cache, sampling: Sampling) -> Generator[int, None, None]:
        assert self._drafting is not None
        speculation = Speculation(self._model, cache, last, self._drafting, sampling, self._number, self._draft)
        try:
            yield from speculation
        finally:
            self._has_read(speculation.cache, prompt, speculation.read)
            self.drafts.add(speculation.count)

    @property
    def _number(self) -> int:
        """Tells the answers of the conversation apart."""
        return len(self._messages) + 1

    def _has_read(self, cache: Cache, prompt: PromptTokens, generated: list[int]) -> None:
        base, guide = self._model.split_cache(cache)
        self._base, self._guide = Track(base, prompt.base + generated), Track(guide, prompt.guide + generated)

    def _read(self, prompt: PromptTokens) -> int:
        """Brings all caches to the end of the prompt, but for its last token."""
        self._base, base_left = _reuse(self._base, prompt.base, self._fresh_base)
        self._guide, guide_left = _reuse(self._guide, prompt.guide, self._fresh_guide)
        try:
            if self._drafting is not None and self._drafting.model is not None:
                wanted = self._drafting.readable(prompt.base)
                self._draft, left = _reuse(self._draft, wanted, self._fresh_draft)
                read(self._drafting.model, left[:-1], self._draft.cache)
                self._draft.tokens = wanted[:-1]
            cache = self._model.join_cache(self._base.cache, self._guide.cache)
            token = prefill(self._model, cache, base_left, guide_left)
            self._has_read(cache, prompt, [])
        except BaseException:
            self._forget_caches()
            raise
        return token

    def _fresh_base(self) -> Track:
        return Track(make_prompt_cache(self._model.base))

    def _fresh_guide(self) -> Track:
        return Track(self._model.guide.make_cache(self._alpha))

    def _fresh_draft(self) -> Track:
        drafting = self._drafting
        return Track([] if drafting is None or drafting.model is None else make_prompt_cache(drafting.model))

    def _forget_caches(self) -> None:
        self._base, self._guide, self._draft = self._fresh_base(), self._fresh_guide(), self._fresh_draft()


def _reuse(track: Track, wanted: Sequence[int], fresh: Callable[[], Track]) -> tuple[Track, list[int]]:
    """Trims a cache to what it shares with the wanted tokens; returns it with the tokens still to be read."""
    cached = track.tokens
    shared = next(
        (i for i, (a, b) in enumerate(zip(cached, wanted, strict=False)) if a != b), min(len(cached), len(wanted))
    )
    shared = min(shared, len(wanted) - 1)
    if shared and rewind(track.cache, len(cached) - shared):
        return track, list(wanted[shared:])
    return fresh(), list(wanted)
