"""A conversation with a guided model: the prompt cache is kept from turn to turn, and α can change between turns."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.generate import stream_generate

from parm_mlx.guidance.model import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.mlxlm import TokenizerWrapper, rewind
from parm_mlx.preference import Alpha


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer, and on the last one why it ended: ``"stop"`` or ``"length"``."""

    text: str
    finish_reason: str | None


class Conversation:
    """Turns between a user and a guided model.

    Args:
        model: The guided model.
        tokenizer: The base's tokenizer.
        prompter: Renders the conversation for base and guide.
        alpha: The preference to start with.
        system_prompt: System message, if any.
    """

    _base_tokens: list[int]
    _guide_tokens: list[int]

    def __init__(
        self,
        model: GuidedModel,
        tokenizer: TokenizerWrapper,
        prompter: Prompter,
        alpha: Alpha,
        system_prompt: str | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompter = prompter
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._alpha = alpha
        self.reset()

    @property
    def alpha(self) -> Alpha:
        """The preference of the next answer. Setting it drops the guide's cache and keeps the base's."""
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: Alpha) -> None:
        if alpha != self._alpha:
            self._alpha = alpha
            self._guide_cache = self._model.guide.make_cache(alpha)
            self._guide_tokens = []

    @property
    def last_question(self) -> PromptTokens | None:
        """The prompt that ends in the last question, or None before the first."""
        questions = [i for i, message in enumerate(self._messages) if message["role"] == "user"]
        return self._prompter(self._messages[: questions[-1] + 1]) if questions else None

    def reset(self) -> None:
        """Forgets everything said so far."""
        self._messages: list[dict[str, str]] = list(self._system)
        self._base_cache, self._guide_cache = self._model.split_cache(self._model.make_cache(self._alpha))
        self._base_tokens, self._guide_tokens = [], []

    def ask(self, question: str, sampling: Sampling, max_tokens: int) -> Generator[Chunk, None, None]:
        """Answers a question, piece by piece.

        Closing the iterator early keeps the answer as far as it came.

        Raises:
            ModelError: The chat template does not accept the conversation.
        """
        prompt = self._prompter([*self._messages, {"role": "user", "content": question}])
        self._messages.append({"role": "user", "content": question})
        token = self._read(prompt)
        responses = stream_generate(
            self._model,
            self._tokenizer,
            [token],
            max_tokens=max_tokens,
            sampler=sampling.sampler(len(self._messages)),
            prompt_cache=[*self._base_cache, *self._guide_cache],
        )
        answer = ""
        try:
            for response in responses:
                answer += response.text
                for tokens in (self._base_tokens, self._guide_tokens):
                    tokens.append(response.token)
                yield Chunk(response.text, response.finish_reason)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self._forget_caches()
            raise
        finally:
            self._messages.append({"role": "assistant", "content": answer})

    def _read(self, prompt: PromptTokens) -> int:
        """Brings both caches to the end of the prompt, but for its last token."""
        self._base_cache, base_left = _reuse(
            self._base_cache, self._base_tokens, prompt.base, lambda: self._model.split_cache(self._fresh())[0]
        )
        self._guide_cache, guide_left = _reuse(
            self._guide_cache, self._guide_tokens, prompt.guide, lambda: self._model.split_cache(self._fresh())[1]
        )
        self._base_tokens, self._guide_tokens = list(prompt.base), list(prompt.guide)
        try:
            return prefill(self._model, [*self._base_cache, *self._guide_cache], base_left, guide_left)
        except BaseException:
            self._forget_caches()
            raise

    def _fresh(self) -> list[Any]:
        return self._model.make_cache(self._alpha)

    def _forget_caches(self) -> None:
        self._base_cache, self._guide_cache = self._model.split_cache(self._fresh())
        self._base_tokens, self._guide_tokens = [], []


def _reuse(
    cache: list[Any], cached: Sequence[int], wanted: Sequence[int], fresh: Callable[[], list[Any]]
) -> tuple[list[Any], list[int]]:
    """Trims a cache to what it shares with the wanted tokens; returns it with the tokens still to be read."""
    shared = next(
        (i for i, (a, b) in enumerate(zip(cached, wanted, strict=False)) if a != b), min(len(cached), len(wanted))
    )
    shared = min(shared, len(wanted) - 1)
    if shared and rewind(cache, len(cached) - shared):
        return cache, list(wanted[shared:])
    return fresh(), list(wanted)
