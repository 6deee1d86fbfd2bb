"""A conversation with a guided model: the prompt cache is kept from turn to turn, and α can change between turns."""

from collections.abc import Generator
from contextlib import closing

import mlx.core as mx

from parm_mlx.guidance.generate import Piece, not_finite, pieces
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens, prefill
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import NOT_FINITE, Sampling
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation
from parm_mlx.mlxlm import TokenizerWrapper, generate_step, make_prompt_cache, wired_limit
from parm_mlx.preference import Alpha


class Conversation:
    """Turns between a user and a guided model; the tokenizer is the base's.

    Attributes:
        drafts: How the drafted tokens fared so far.
        last_question: The prompt that ends in the last question; None before the first.
    """

    _base: CachedTokens
    _guide: CachedTokens
    _draft: CachedTokens

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
        self.reset()

    @property
    def alpha(self) -> Alpha:
        """The preference of the next answer. Setting it drops the guide's cache and keeps the base's."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        if alpha != self._alpha:
            self._alpha = alpha
            self._guide = self._empty_guide()

    def reset(self) -> None:
        """Forgets everything said so far."""
        self._messages: list[dict[str, str]] = list(self._system)
        self.last_question: PromptTokens | None = None
        self._answered: list[int] = []
        self._forget_caches()

    def ask(self, question: str, sampling: Sampling, max_tokens: int) -> Generator[Piece, None, None]:
        """Answers a question, piece by piece.

        Closing the iterator early keeps the answer so far; an error drops the question. The next question follows the
        tokens of the answer as they were generated.

        Raises:
            InputError: The conversation is longer than the models can read.
            ModelError: The chat template does not accept the conversation.
            RunError: The logits are not finite.
        """
        messages = [*self._messages, {"role": "user", "content": question}]
        if self.last_question is None:
            prompt = self._prompter(messages)
        else:
            prompt = self._prompter.after_answer(messages, self.last_question, self._answered)
        text, tokens = "", list[int]()
        try:
            with closing(self._tokens(prompt, tokens, sampling)) as produced:
                for piece in pieces(produced, self._tokenizer, max_tokens):
                    text += piece.text
                    yield piece
        except GeneratorExit:
            pass
        except BaseException:
            self._forget_caches()
            raise
        self._messages = [*messages, {"role": "assistant", "content": text}]
        self.last_question, self._answered = prompt, tokens

    def _tokens(self, prompt: PromptTokens, answer: list[int], sampling: Sampling) -> Generator[int, None, None]:
        """Yields the tokens of the answer to a prompt, without end; those before its end are added to ``answer``."""
        last, cache = self._read(prompt)
        seed_offset = len(self._messages) + 1  # tells the answers of the conversation apart
        sampling = sampling.guided(self._model.sharpness(self._alpha))
        produce = self._generated if self._drafting is None else self._drafted
        with closing(produce(prompt, last, cache, sampling, seed_offset)) as produced:
            for token in produced:
                if token == NOT_FINITE:
                    raise not_finite(self._model, prompt, self._alpha, answer)
                if token not in self._tokenizer.eos_token_ids:
                    answer.append(token)
                yield token

    def _generated(
        self, prompt: PromptTokens, last: int, cache: Cache, sampling: Sampling, seed_offset: int
    ) -> Generator[int, None, None]:
        sampler = sampling.sampler(seed_offset)
        steps = generate_step(mx.array([last]), self._model, max_tokens=-1, sampler=sampler, prompt_cache=cache)
        generated: list[int] = []
        try:
            with wired_limit(self._model):
                for token, _ in steps:
                    generated.append(int(token))
                    yield generated[-1]
        finally:
            self._keep(cache, prompt, generated)

    def _drafted(
        self, prompt: PromptTokens, last: int, cache: Cache, sampling: Sampling, seed_offset: int
    ) -> Generator[int, None, None]:
        assert self._drafting is not None
        speculation = Speculation(self._model, cache, last, self._drafting, sampling, seed_offset, self._draft)
        try:
            yield from speculation
        finally:
            self._keep(speculation.cache, prompt, speculation.read)
            self.drafts.add(speculation.count)

    def _read(self, prompt: PromptTokens) -> tuple[int, Cache]:
        """Reads a prompt after what is kept of earlier turns; returns its last token and the cache before it."""
        if not self._base.rewind(prompt.base):
            self._base = self._empty_base()
        if not self._guide.rewind(prompt.guide):
            self._guide = self._empty_guide()
        if self._drafting is not None:
            if not self._draft.rewind(self._drafting.readable(prompt.base)):
                self._draft = self._drafting.make_cache()
            self._drafting.prefill(self._draft, prompt.base)
        cache = self._model.join_cache(self._base.cache, self._guide.cache)
        base_left, guide_left = prompt.base[len(self._base.tokens) :], prompt.guide[len(self._guide.tokens) :]
        return prefill(self._model, cache, base_left, guide_left), cache

    def _keep(self, cache: Cache, prompt: PromptTokens, generated: list[int]) -> None:
        base, guide = self._model.split_cache(cache)
        self._base = CachedTokens(base, prompt.base + generated)
        self._guide = CachedTokens(guide, prompt.guide + generated)

    def _empty_base(self) -> CachedTokens:
        return CachedTokens(make_prompt_cache(self._model.base))

    def _empty_guide(self) -> CachedTokens:
        return CachedTokens(self._model.guide.make_cache(self._alpha))

    def _forget_caches(self) -> None:
        self._base, self._guide = self._empty_base(), self._empty_guide()
        self._draft = CachedTokens([]) if self._drafting is None else self._drafting.make_cache()
