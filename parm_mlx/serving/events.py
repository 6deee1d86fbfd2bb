"""What the engine is asked for, and what it tells about an answer while that comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from parm_mlx.guidance.explain import TokenReasons
from parm_mlx.guidance.sampling import Request

State = Literal["normal", "reasoning", "tool"]
Kind = Literal["server", "timeout", "request"]  # whose fault it is that an answer cannot go on


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was taken, with its log-probability and those of the likeliest ones."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Text:
    """A piece of an answer, a thought, or a call of a tool."""

    text: str
    state: State = "normal"
    call: int = 0  # which call of a tool it belongs to
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """The end of an answer."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int
    thought_tokens: int
    cached: int  # prompt tokens that the base had read before
    guide_cached: int
    reasons: list[TokenReasons] | None = None  # of every token but those of a thought
    answer: list[int] = field(default_factory=list)
    stop: str | None = None  # the stop string that was met


@dataclass(frozen=True)
class Failed:
    """An answer that cannot go on."""

    message: str
    kind: Kind = "server"


Event = Text | Done | Failed


@dataclass(frozen=True)
class AnswerOptions:
    """What a request says of each of its answers, beside preference and sampling.

    Attributes:
        stops: Texts that end the answer, which are not part of it.
        top_logprobs: Number of alternatives that each token is told with; None tells no log-probabilities.
        explain: Tells what base and guide said of each token, at the end; "parts" also where one pass stands for both.
        logit_bias: What is added to logits, by token.
        presence_penalty: What is taken from the logits of tokens that the answer has.
        frequency_penalty: The same for each time that it has them.
        tools: Those that the model may call.
    """

    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    explain: bool | Literal["parts"] = False
    logit_bias: dict[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Ask:
    """One answer that is asked for.

    Attributes:
        request: Prompt, preference and sampling.
        max_tokens: Longest answer, its thought included.
        emit: Called in the engine's thread, with each event.
        options: What else the answer follows.
        matcher: Makes llguidance's state of a grammar that the answer, without its thought, follows.
        continues: The answer continues a text, in place of answering it.
    """

    request: Request
    max_tokens: int
    emit: Callable[[Event], None]
    options: AnswerOptions = field(default_factory=AnswerOptions)
    matcher: Callable[[], Any] | None = None
    continues: bool = False
