"""Requests, and samplers that belong to one answer each: the same seed gives the same answer, alone or in a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.kernels import widened
from parm_mlx.mlxlm import filter_logprobs
from parm_mlx.preference import Alpha
from parm_mlx.settings import SamplingSettings

_THOUGHT = 1 << 63  # tells the seed of a thought from that of the answer
NOT_FINITE = -1  # in place of a token: the logits that it would come from are not finite


class Sampling(SamplingSettings):
    """Sampling settings; the settings are those of :class:`SamplingSettings`."""

    def guided(self, sharpness: float) -> "Sampling":
        """Settings for guided answers; ``sharpness`` is :meth:`parm_mlx.guidance.guided.GuidedModel.sharpness`."""
        return replace(self, temp=self.temp * sharpness, keep_sharpness=False) if self.keep_sharpness else self

    def sampler(self, seed_offset: int = 0) -> Callable[[mx.array], mx.array]:
        """Makes a sampler for mlx-lm; ``seed_offset`` tells answers with the same seed apart.

        At temperature 0 it is the same function for all, which mlx-lm calls once for all rows of a batch.
        """
        return Sampler(self, seed_offset) if self.temp else likeliest

    def scores(self, logprobs: mx.array) -> mx.array:
        """Logits of the distribution that tokens are drawn from, after filters and temperature: (…, V) → (…, V)."""
        if self.temp == 0:
            return logprobs
        kept = filter_logprobs(logprobs, top_p=self.top_p, min_p=self.min_p, top_k=self.top_k)
        return kept * (1 / self.temp)

    def distribution(self, logits: mx.array) -> mx.array:
        """Log-probabilities that tokens are drawn from, (…, V) logits → (…, V); at temperature 0 the model's own."""
        scores = self.scores(normalised(logits))
        return scores if self.temp == 0 else normalised(scores)


def likeliest(logprobs: mx.array) -> mx.array:
    """The likeliest token of each row, (n, V) → (n,), or ``NOT_FINITE``."""
    return checked(mx.argmax(logprobs, axis=-1, keepdims=True), logprobs)


def checked(tokens: mx.array, logprobs: mx.array) -> mx.array:
    """Returns tokens (n, 1) as (n,), each replaced by ``NOT_FINITE`` where its own log-probability is not finite.

    NaN or inf anywhere in a row leaves no finite number in it once it is normalised, so that one number tells.
    """
    finite = mx.take_along_axis(logprobs, tokens, axis=-1) > -mx.inf  # false for NaN
    return mx.where(finite, tokens.astype(mx.int32), NOT_FINITE).squeeze(-1)


def normalised(logits: mx.array) -> mx.array:
    """Log-probabilities in float32, (…, V) logits → (…, V)."""
    logits = widened(logits)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


class Sampler:
    """Draws the tokens of one answer; mlx-lm calls it with log-probabilities (1, V)."""

    def __init__(self, settings: Sampling, seed_offset: int) -> None:
        self._settings = settings
        self._key = mx.random.split(mx.random.key(settings.seed), seed_offset + 1)[seed_offset]
        mx.eval(self._key)  # a lazy array belongs to its thread, and the answer may be decoded in another one

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Token ids (1,), or ``NOT_FINITE``."""
        return checked(self.draw(self._settings.scores(logprobs))[:, None], logprobs)

    def draw(self, scores: mx.array) -> mx.array:
        """Tokens (n,) drawn from the distributions with these logits (n, V); the likeliest ones at temperature 0."""
        if self._settings.temp == 0:
            return mx.argmax(scores, axis=-1)
        return mx.argmax(scores + self.noise(scores.shape[-1]), axis=-1)

    def noise(self, vocabulary: int) -> mx.array:
        """The Gumbel noise (1, V) of the next token: what it is added to, the largest sum is a draw from."""
        self._key, key = mx.random.split(self._key)
        return mx.random.gumbel((1, vocabulary), key=key)


@dataclass(frozen=True)
class Request:
    """One answer to generate."""

    prompt: PromptTokens
    alpha: Alpha | None  # None asks the base alone
    sampling: Sampling
    seed_offset: int = 0  # tells answers with the same seed apart
    beta: float | None = None  # β of Eq. 13; None is the model's
    thought: tuple[int, ...] = ()  # what the base has thought: the first tokens of the answer, which end the prompt

    @property
    def thinks_alone(self) -> bool:
        """True if the base may think without the guide before the answer."""
        thinking = self.prompt.thinking
        return self.alpha is not None and thinking is not None and not thinking.steered

    def of_thought(self) -> "Request":
        """The request for the thought, which the base alone answers, with random numbers of its own."""
        return replace(self, alpha=None, sampling=replace(self.sampling, seed=self.sampling.seed ^ _THOUGHT))

    def after(self, thought: Sequence[int]) -> "Request":
        """The request for the answer that follows a thought; it is this one where there is none."""
        return replace(self, prompt=self.prompt.after(thought), thought=tuple(thought)) if thought else self
