"""A conversation with a guided model: the prompt cache is kept from turn to turn, and α can change between turns."""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

import mlx.core as mx

from parm_mlx.errors import InputError
from parm_mlx.guidance.explain import TokenReasons, explain
from parm_mlx.guidance.generate import Piece, not_finite, note_stop, pieces, sampling_of
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens, prefill, read
from parm_mlx.guidance.prompts import Prompter, PromptTokens, TooLongError
from parm_mlx.guidance.sampling import NOT_FINITE, Request, Sampling
from parm_mlx.guidance.shard import STOPPED
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation
from parm_mlx.mlxlm import TokenizerWrapper, generate_step, make_prompt_cache, wired_limit
from parm_mlx.preference import Alpha


class Conversation:
    """Turns between a user and a guided model; the tokenizer is the base's.

    Where the conversation and room for an answer exceed what the models can read, its oldest turns are forgotten.

    Attributes:
        drafts: How the drafted tokens fared so far.
        forgotten: Number of turns that were forgotten.
        last_question: The prompt that ends in the last question; None before the first.
    """

    last_question: PromptTokens | None
    _messages: list[dict[str, str]]
    _asked: PromptTokens | None  # the last prompt, where the next one goes on after its answer
    _base: CachedTokens
    _guide: CachedTokens | None
    _strength: float | None  # of what the guide's cache was last read with
    _draft: CachedTokens

    def __init__(
        self,
        model: GuidedModel,
        tokenizer: TokenizerWrapper,
        prompter: Prompter,
        alpha: Alpha | None,
        system_prompt: str | None = None,
        drafting: Drafting | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._system_prompt = system_prompt
        self._drafting = drafting
        self._alpha = alpha
        self.drafts = DraftCount()
        self.reset()

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that α weighs; none where the base answers alone."""
        return self._model.objectives

    def reads(self, tokens: Sequence[Any], role: Literal["base", "guide"]) -> bool:
        """Returns True if all of these are token ids that the base, or the guide, can read."""
        base, guide, shift = *self._model.rows, self._model.shift
        own = min(filter(None, (base, None if shift else guide, len(self._tokenizer.get_vocab()))))
        ranges = [range(own)] if role == "base" or not shift else [range(guide or shift), range(shift, shift + own)]
        return all(type(token) is int and any(token in each for each in ranges) for token in tokens)

    @property
    def alpha(self) -> Alpha | None:
        """The preference of the next answer; None is the base alone.

        Setting it drops the guide's cache and keeps the base's. A model that reads once reads all again.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Alpha | None) -> None:
        if alpha not in (None, self._alpha):
            self._guide = None
        self._alpha = alpha

    @property
    def system_prompt(self) -> str | None:
        """The message before the conversation. Setting it has everything read again."""
        return self._system_prompt

    @system_prompt.setter
    def system_prompt(self, text: str | None) -> None:
        self._system_prompt = text
        self._messages = self._system() + [each for each in self._messages if each["role"] != "system"]
        self._asked = None

    def reset(self) -> None:
        """Forgets everything said so far."""
        self._messages = self._system()
        self.last_question = self._asked = None
        self._answered: list[int] = []
        self._answered_by: tuple[Alpha | None, float | None] | None = None
        self._turns = self.forgotten = 0
        self._forget_caches()

    def state(self) -> dict[str, Any]:
        """Returns all that the next answer depends on, but for models and sampling, as JSON can hold it."""
        asked = self._asked and {"base": self._asked.base, "guide": self._asked.guide}
        return {"messages": self._messages, "asked": asked, "answer": self._answered, "turns": self._turns}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with a conversation of these models as :meth:`state` returned it."""
        self.reset()
        self._messages = [dict(message) for message in state["messages"]]
        systems = [message["content"] for message in self._messages if message["role"] == "system"]
        self._system_prompt = systems[0] if systems else None
        if state["asked"]:
            self._asked = self.last_question = self._prompter.tokens(**state["asked"])
        self._answered, self._turns = list(state["answer"]), state["turns"]

    def explain(self, parts: bool = False) -> list[TokenReasons]:
        """What base and guide gave each token of the last answer, without what was thought before it.

        ``parts`` as in :func:`parm_mlx.guidance.explain.explain`.

        Raises:
            InputError: There is none, or the base gave it alone.
        """
        if self._asked is None:
            raise InputError("there is no answer yet to this system prompt: ask something first")
        if self._answered_by is None:
            raise InputError("the file does not say how the last answer was steered: ask something first")
        alpha, beta = self._answered_by
        request, marks = Request(self._asked, alpha, Sampling(), beta=beta), self._asked.thinking
        thought, answer = marks.split(self._asked.opened, self._answered) if marks else ([], self._answered)
        return explain(self._model, request.after(thought), answer, parts)

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system_prompt}] if self._system_prompt else []

    def ask(self, question: str, sampling: Sampling, max_tokens: int) -> Generator[Piece, None, None]:
        """Answers a question, piece by piece.

        Closing the iterator early keeps the answer so far; an error drops the question. The next question follows the
        tokens of the answer as they were generated.

        Raises:
            InputError: The conversation is longer than the models can read.
            ModelError: The chat template does not accept the conversation.
            RunError: The logits are not finite.
        """
        messages, prompt = self._fitted([*self._messages, {"role": "user", "content": question}], max_tokens)
        text, tokens = "", list[int]()
        try:
            with closing(self._tokens(prompt, tokens, sampling)) as produced:
                room = prompt.room(self._model.context_length, max_tokens)
                for piece in pieces(produced, self._tokenizer, room, prompt):
                    text += piece.text
                    yield piece
        except GeneratorExit:
            pass
        except BaseException:
            self._forget_caches()
            raise
        self._messages = [*messages, {"role": "assistant", "content": text}]
        self.last_question = self._asked = prompt
        self._answered = tokens
        self._answered_by = self._alpha, None if self._alpha is None else self._model.beta
        self._turns += 1

    def _fitted(self, messages: list[dict[str, str]], max_tokens: int) -> tuple[list[dict[str, str]], PromptTokens]:
        """A conversation and its prompt, without the oldest turns where an answer would not fit after it.

        A quarter more than has to be is forgotten, so that the next turns need not be read from the beginning.
        """
        limit = self._model.context_length or sys.maxsize
        room = limit - min(max_tokens, limit // 2)
        asked, first, forgotten = self._asked, len(self._system()), 0
        while True:
            last = len(messages) - first == 1
            try:
                prompt = self._prompter.after_answer(messages, asked, self._answered) if asked else None
                prompt = prompt or self._prompter(messages)
            except TooLongError:
                if last:
                    raise
            else:
                if last or max(len(prompt.base), len(prompt.guide)) <= (room * 3 // 4 if forgotten else room):
                    self.forgotten += forgotten
                    return messages, prompt
            messages, asked = messages[:first] + messages[first + 2 :], None
            forgotten += 1

    def _tokens(self, prompt: PromptTokens, answer: list[int], sampling: Sampling) -> Generator[int, None, None]:
        """Yields the tokens of the answer to a prompt, without end; those before its end are added to ``answer``."""
        seed_offset = len(self._system()) + 2 * self._turns + 1  # tells the answers of the conversation apart
        request = Request(prompt, self._alpha, sampling, seed_offset)
        with closing(self._thought_and_answer(request, answer)) as produced:
            for token in produced:
                if token == STOPPED:
                    note_stop(self._model)
                    return
                if token == NOT_FINITE:
                    raise not_finite(self._model, prompt, self._alpha, answer)
                if token not in self._tokenizer.eos_token_ids:
                    answer.append(token)
                yield token

    def _thought_and_answer(self, request: Request, read: list[int]) -> Generator[int, None, None]:
        """Yields the tokens of an answer, and before them what the base thinks alone, which ``read`` holds then."""
        marks = request.prompt.thinking
        if marks is not None and request.thinks_alone:
            with closing(self._generated(request.of_thought())) as tokens:
                yield from marks.think(tokens, request.prompt.opened)
            request = request.after(read)
        produce = self._generated if self._drafting is None or request.alpha is None else self._drafted
        yield from produce(request)

    def _generated(self, request: Request) -> Generator[int, None, None]:
        last, cache = self._read(request)
        model: Any = self._model.base_logits if request.alpha is None else self._model
        sampler = self._model.agreed(sampling_of(self._model, request).sampler(request.seed_offset))
        steps = generate_step(mx.array([last]), model, max_tokens=-1, sampler=sampler, prompt_cache=cache)
        generated: list[int] = []
        try:
            with wired_limit(self._model):
                for token, _ in steps:
                    generated.append(int(token))
                    yield generated[-1]
        finally:
            self._keep(cache, request, generated)

    def _drafted(self, request: Request) -> Generator[int, None, None]:
        assert self._drafting is not None
        last, cache = self._read(request)
        sampling = sampling_of(self._model, request)
        speculation = Speculation(self._model, cache, last, self._drafting, sampling, request.seed_offset, self._draft)
        try:
            yield from speculation
        finally:
            self._keep(speculation.cache, request, speculation.read)
            self.drafts.add(speculation.count)

    def _read(self, request: Request) -> tuple[int, Cache]:
        """Reads a prompt after what is kept of earlier turns; returns its last token and the cache before it."""
        prompt, model = request.prompt, self._model
        once = model.reads_once and request.alpha is not None
        if not once and not self._base.rewind(prompt.base):
            self._base = self._empty_base()
        if request.alpha is None:
            read(model.base, prompt.base[len(self._base.tokens) : -1], self._base.cache)
            return prompt.base[-1], self._base.cache
        strength = model.strength(request.beta)
        if self._guide is None or (once and strength != self._strength) or not self._guide.rewind(prompt.guide):
            self._guide = CachedTokens(model.steered.make_cache(request.alpha, strength))
        elif strength != self._strength:
            self._guide.cache[-1].strength = mx.array([strength])
        self._strength = strength
        if self._drafting is not None:
            if not self._draft.rewind(self._drafting.readable(prompt.base)):
                self._draft = self._drafting.make_cache()
            self._drafting.prefill(self._draft, prompt.base)
        cache = model.join_cache(self._base.cache, self._guide.cache)
        guide_left = prompt.guide[len(self._guide.tokens) :]
        base_left = guide_left if once else prompt.base[len(self._base.tokens) :]
        return prefill(model, cache, base_left, guide_left), cache

    def _keep(self, cache: Cache, request: Request, generated: list[int]) -> None:
        prompt = request.prompt
        if request.alpha is None:
            self._base = CachedTokens(cache, prompt.base + generated)
            return
        base, guide = self._model.split_cache(cache)
        if not self._model.reads_once:
            self._base = CachedTokens(base, prompt.base + generated)
        self._guide = CachedTokens(guide, prompt.after(generated).guide)

    def _empty_base(self) -> CachedTokens:
        return CachedTokens(make_prompt_cache(self._model.base))

    def _forget_caches(self) -> None:
        self._base, self._guide, self._strength = self._empty_base(), None, None
        self._draft = CachedTokens([]) if self._drafting is None else self._drafting.make_cache()
