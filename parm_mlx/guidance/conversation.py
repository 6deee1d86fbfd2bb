"""A conversation with a guided model: the prompt cache is kept from turn to turn, and α can change between turns."""

from collections.abc import Callable, Generator, Sequence

from mlx_lm.generate import stream_generate

from parm_mlx.guidance.model import Cache, GuidedModel
from parm_mlx.guidance.prefill import prefill, read
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.speculation import DraftCount, Drafting, Speculation, Track
from parm_mlx.guidance.stream import Piece, pieces
from parm_mlx.mlxlm import TokenizerWrapper, make_prompt_cache, rewind
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
        questions = [i for i, message in enumerate(self._messages) if message["role"] == "user"]
        return self._prompter(self._messages[: questions[-1] + 1]) if questions else None

    def reset(self) -> None:
        """Forgets everything said so far."""
        self._messages: list[dict[str, str]] = list(self._system)
        self._forget_caches()

    def ask(self, question: str, sampling: Sampling, max_tokens: int) -> Generator[Piece, None, None]:
        """Answers a question, piece by piece.

        Closing the iterator early keeps the answer as far as it came.

        Raises:
            ModelError: The chat template does not accept the conversation.
        """
        prompt = self._prompter([*self._messages, {"role": "user", "content": question}])
        self._messages.append({"role": "user", "content": question})
        token = self._read(prompt)
        answer = ""
        try:
            for piece in self._answer(prompt, token, sampling, max_tokens):
                answer += piece.text
                yield piece
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self._forget_caches()
            raise
        finally:
            self._messages.append({"role": "assistant", "content": answer})

    def _answer(
        self, prompt: PromptTokens, token: int, sampling: Sampling, max_tokens: int
    ) -> Generator[Piece, None, None]:
        cache = self._model.join_cache(self._base.cache, self._guide.cache)
        number = len(self._messages)
        if self._drafting is not None:
            speculation = Speculation(self._model, cache, token, self._drafting, sampling, number, self._draft)
            try:
                yield from pieces(iter(speculation), self._tokenizer, max_tokens)
            finally:
                self._has_read(speculation.cache, prompt, speculation.read)
                self.drafts.add(speculation.count)
            return
        generated: list[int] = []
        responses = stream_generate(
            self._model,
            self._tokenizer,
            [token],
            max_tokens=max_tokens,
            sampler=sampling.sampler(number),
            prompt_cache=cache,
        )
        try:
            for response in responses:
                generated.append(response.token)
                yield Piece(response.text, response.finish_reason)
        finally:
            self._has_read(cache, prompt, generated)

    def _has_read(self, cache: Cache, prompt: PromptTokens, generated: list[int]) -> None:
        base, guide = self._model.split_cache(cache)
        self._base, self._guide = Track(base, prompt.base + generated), Track(guide, prompt.guide + generated)

    def _read(self, prompt: PromptTokens) -> int:
        """Brings all caches to the end of the prompt, but for its last token."""
        self._base, base_left = _reuse(self._base, prompt.base, self._fresh_base)
        self._guide, guide_left = _reuse(self._guide, prompt.guide, self._fresh_guide)
        try:
            if self._drafting is not None and self._drafting.model is not None:
                self._draft, left = _reuse(self._draft, prompt.base, self._fresh_draft)
                read(self._drafting.model, left[:-1], self._draft.cache)
                self._draft.tokens = prompt.base[:-1]
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
