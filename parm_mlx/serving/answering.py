"""An answer on its way: what it was asked for, what it has read and said, and what of that can be told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from parm_mlx.guidance.explain import TokenReasons
from parm_mlx.guidance.generate import thought_is_over
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import CachedTokens
from parm_mlx.mlxlm import TextStateMachine, TokenizerWrapper, penalty_processors
from parm_mlx.serving.events import Ask, Done, Event, Failed, Kind, State, Text, TokenLogprob

TAIL = 8  # last tokens of a text that is continued: enough to end in a whole character
STOPPED = "stopped by "  # begins the name of the state after a stop string
Processor = Callable[[mx.array, mx.array], mx.array]


@dataclass
class Reading:
    """A prompt that is read in steps: by the base, then by the guide."""

    base: CachedTokens
    guide: CachedTokens | None


class Answering:
    """One answer, from its place in the queue to its end. All but :meth:`cancel` belongs to the engine's thread."""

    def __init__(self, ask: Ask, tokenizer: TokenizerWrapper, deadline: float) -> None:
        self.ask, self.deadline = ask, deadline
        self.number = 0  # among all that were begun
        self.request = ask.request.of_thought() if ask.request.thinks_alone else ask.request
        self.thinking = ask.request.thinks_alone
        self.tokens: list[int] = []  # of thought and answer
        self.cached = self.guide_cached = 0
        self.cancelled = self.ended = False
        self.failure: Exception | None = None  # of a processor
        self.explaining: Iterator[list[TokenReasons]] | None = None
        self.reasons: list[TokenReasons] = []
        self.reason = ""  # why it ended, once it has
        self.reading: Reading | None = None
        self.joined_with: list[int] = []  # tokens of the prompt that the batch has read
        self._thought = 0  # tokens of the thought
        self._own_thought: int | None = None  # of a thought that nothing sets apart, once it has ended
        self._calls = 0  # of tools that have begun
        self._tokenizer, self._detokenizer = tokenizer, tokenizer.detokenizer
        if ask.continues:  # the space before a first word belongs to the answer
            for token in ask.request.prompt.base[-TAIL:]:
                self._detokenizer.add_token(token)
            _ = self._detokenizer.last_segment
        self._text = _text_machine(tokenizer, ask)
        self._logprobs: list[TokenLogprob] = []

    def cancel(self) -> None:
        """Has the engine drop this answer at its next step."""
        self.cancelled = True

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.ask.max_tokens - len(self.tokens)

    def processors(self, model: GuidedModel) -> list[Processor]:
        """What changes the logits of the next tokens; a failing one ends this answer only."""
        if self.thinking:
            return []
        options, matcher = self.ask.options, self.ask.matcher
        found = penalty_processors(options.logit_bias, options.presence_penalty, options.frequency_penalty)
        if matcher is not None:
            found.append(_Grammar(matcher(), self))
        return [self._kept_apart(processor) for processor in found]

    def _kept_apart(self, processor: Processor) -> Processor:
        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            try:
                answer = self._without_thought(tokens[len(self.joined_with) :])
                return logits if answer is None else processor(answer, logits)
            except Exception as error:
                self.failure = error
                return logits

        return process

    def _without_thought(self, tokens: mx.array) -> mx.array | None:
        """What follows the thought that the prompt has opened and this model writes by itself; None before its end."""
        request = self.ask.request
        marks = request.prompt.thinking
        if marks is None or not request.prompt.opened or request.thinks_alone:
            return tokens
        if self._own_thought is None:
            latest: list[int] = tokens[-len(marks.end) :].tolist()  # type: ignore[assignment]
            if marks.lasts(True, latest):
                return None
            self._own_thought = tokens.size
        return tokens[self._own_thought :]

    @property
    def _undecided(self) -> bool:
        """Whether what the base has written may still turn out not to begin a thought."""
        prompt = self.ask.request.prompt
        if not self.thinking or prompt.opened or prompt.thinking is None:
            return False
        start = prompt.thinking.start
        return tuple(self.tokens[: len(start)]) != start

    def take(self, token: int, logprobs: mx.array) -> bool:
        """Takes the next token and tells what is known; returns True where a stop string ends the answer."""
        self.tokens.append(token)
        if (top := self.ask.options.top_logprobs) is not None:
            self._logprobs.append(_logprob(token, logprobs, top))
        self._detokenizer.add_token(token)
        return not self._undecided and self._tell(self._detokenizer.last_segment)

    def thought_is_over(self, stopped: bool) -> bool:
        """Returns True where the guided answer is to follow what the base has thought, which is then kept."""
        if not self.thinking or not thought_is_over(self.ask.request, self.tokens, stopped):
            return False
        marks, opened = self.ask.request.prompt.thinking, self.ask.request.prompt.opened
        assert marks is not None
        thought, dropped = marks.split(opened, self.tokens)
        self.thinking, self.tokens, self._thought = False, thought, len(thought)
        self.request = self.ask.request.after(thought)
        if dropped:  # what the base has begun in place of a thought
            self._detokenizer, self._text = self._tokenizer.detokenizer, _text_machine(self._tokenizer, self.ask)
            self._logprobs = []
        return True

    def finish(self) -> None:
        """Tells the rest of the text, and the end."""
        self._detokenizer.finalize()
        if not self._tell(self._detokenizer.last_segment):
            self._text, rest, state = TextStateMachine.flush(self._text)
            self._emit_text(rest, state)
        self.end(
            Done(
                "length" if self.reason == "length" and self._stop is None else "stop",
                len(self.ask.request.prompt.base),
                len(self.tokens),
                self._thought,
                self.cached,
                self.guide_cached,
                self.reasons if self.ask.options.explain else None,
                self.tokens[self._thought :],
                self._stop,
            )
        )

    def fail(self, message: str, kind: Kind = "server") -> None:
        """Tells that the answer cannot go on."""
        self.end(Failed(message, kind))

    def end(self, event: Event) -> None:
        """Tells the last event, once."""
        if not self.ended:
            self.ended = True
            self.ask.emit(event)

    def _tell(self, text: str) -> bool:
        self._text, segments = TextStateMachine.split(self._text, text)
        for i, (state, part) in enumerate(segments):
            self._calls += bool(i) and state == "tool"
            if not state.startswith(STOPPED):
                self._emit_text(part, state)
        return self._stop is not None

    @property
    def _stop(self) -> str | None:
        """The stop string that was met."""
        state: str = self._text[0]
        return state.removeprefix(STOPPED) if state.startswith(STOPPED) else None

    def _emit_text(self, text: str, state: State) -> None:
        logprobs, self._logprobs = self._logprobs, []
        if text or logprobs:
            self.ask.emit(Text(text, state, self._calls - 1 if state == "tool" else 0, logprobs))


def _text_machine(tokenizer: TokenizerWrapper, ask: Ask) -> Any:
    """mlx-lm's machine that tells answer, thought and calls of tools apart, and finds stop strings."""
    prompt = ask.request.prompt
    after = [(stop, STOPPED + stop) for stop in ask.options.stops]
    edges: dict[str, list[tuple[str, str]]] = {"normal": after, **{state: [] for _, state in after}}
    if prompt.thinking is not None:
        edges["normal"] = [*after, (tokenizer.think_start, "reasoning")]
        edges["reasoning"] = [(tokenizer.think_end, "normal")]
    if ask.options.tools and tokenizer.has_tool_calling:
        edges["normal"] = [*edges["normal"], (tokenizer.tool_call_start, "tool")]
        edges["tool"] = [(tokenizer.tool_call_end, "normal")] if tokenizer.tool_call_end else []
    machine: Any = TextStateMachine(edges)
    return machine.make_state("reasoning" if prompt.opened else "normal")


def _logprob(token: int, logprobs: mx.array, top: int) -> TokenLogprob:
    likeliest: list[int] = []
    if top:
        ids = mx.argpartition(-logprobs, top)[:top]
        likeliest = ids[mx.argsort(-logprobs[ids])].tolist()  # type: ignore[assignment]
    values: list[float] = logprobs[mx.array([token, *likeliest])].tolist()  # type: ignore[assignment]
    return TokenLogprob(token, values[0], list(zip(likeliest, values[1:], strict=True)))


@dataclass
class _Grammar:
    """Leaves the tokens that a grammar allows after what the answer has."""

    matcher: Any
    answering: Answering
    read: int = field(default=0)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        import numpy as np

        new: list[int] = tokens[self.read :].tolist()  # type: ignore[assignment]
        self.read += len(new)
        if not all(map(self.matcher.consume_token, new)):
            raise ValueError(f"the grammar does not go on: {self.matcher.get_error()}")
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        if self.matcher.is_error():
            raise ValueError(f"the schema is too much for its grammar: {self.matcher.get_error()}")
        allowed = np.zeros(logits.shape[-1], bool)  # rows beyond the tokenizer stay forbidden
        bits = np.unpackbits(mask, bitorder="little")[: len(allowed)]
        allowed[: len(bits)] = bits
        return mx.where(mx.array(allowed), logits, -mx.inf)
