"""Between a protocol and the engine: one request becomes answers, whose events come to the event loop."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from parm_mlx.errors import InputError, ModelError
from parm_mlx.guidance.prompts import PromptTokens, TooLongError
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.errors import BusyError, ClosedError, RequestError
from parm_mlx.serving.events import AnswerOptions, Ask, Done, Event, Failed, Kind, Text
from parm_mlx.serving.grammar import Grammars
from parm_mlx.serving.settings import ServerOptions
from parm_mlx.serving.steering import Menu, Steering

STATUS: dict[Kind, int] = {"server": 500, "timeout": 504, "request": 400}
FRESH = 2.0  # seconds for which an answer about health holds
HEALTHY = 10  # seconds in which a token comes from an engine that is well
RETRY = 2  # seconds that a client is asked to wait where the queue is full


@dataclass(frozen=True)
class Wanted:
    """What a request asks for, whatever its protocol."""

    content: Sequence[dict[str, Any]] | str  # messages, or a text to continue
    steering: Steering
    sampling: Mapping[str, Any]  # settings of Sampling that were given
    max_tokens: int | None
    n: int = 1
    options: AnswerOptions = field(default_factory=AnswerOptions)
    schema: Mapping[str, Any] | None = None
    enable_thinking: bool | None = None


@dataclass
class Collected:
    """A whole answer."""

    text: str = ""
    reasoning: str = ""
    calls: list[str] = field(default_factory=list)  # of tools, as the model wrote them
    pieces: list[Text] = field(default_factory=list)
    done: Done | None = None

    def add(self, event: Text | Done) -> None:
        """Takes the next event."""
        if isinstance(event, Done):
            self.done = event
            return
        self.pieces.append(event)
        if event.state == "reasoning":
            self.reasoning += event.text
        elif event.state == "tool":
            add_call(self.calls, event)
        else:
            self.text += event.text


def add_call(calls: list[str], event: Text) -> None:
    """Takes a piece of a call of a tool."""
    calls += [""] * (event.call + 1 - len(calls))
    calls[event.call] += event.text


class Answers:
    """The answers to one request, on their way."""

    def __init__(self, wanted: Wanted, prompt: PromptTokens) -> None:
        self.wanted, self.prompt = wanted, prompt
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._answering: list[Answering] = []

    def emitter(self, index: int) -> Any:
        """Takes events of one answer, in the engine's thread."""

        def emit(event: Event) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return emit

    def begun(self, answering: list[Answering]) -> None:
        """Takes what the engine has queued."""
        self._answering = answering

    async def events(self) -> AsyncIterator[tuple[int, Text | Done]]:
        """Yields the events of all answers, each with the index of its answer, until all have ended.

        Raises:
            RequestError: One has failed.
        """
        left = self.wanted.n
        while left:
            index, event = await self._queue.get()
            if isinstance(event, Failed):
                raise RequestError(event.message, STATUS[event.kind])
            left -= not isinstance(event, Text)
            yield index, event

    async def all(self) -> list[Collected]:
        """Waits for the whole answers.

        Raises:
            RequestError: One has failed.
        """
        found = [Collected() for _ in range(self.wanted.n)]
        async for index, event in self.events():
            found[index].add(event)
        return found

    def cancel(self) -> None:
        """Has the engine drop what is still on its way."""
        for answering in self._answering:
            answering.cancel()


class Service:
    """Takes requests for an engine.

    Attributes:
        menu: What can be asked for.
        defaults: Sampling of a request that does not say.
        max_tokens: Length of an answer where the request does not say.
    """

    def __init__(self, engine: Engine, menu: Menu, defaults: Sampling, max_tokens: int, options: ServerOptions) -> None:
        self.engine, self.menu, self.defaults, self.max_tokens = engine, menu, defaults, max_tokens
        self.options = options
        session = engine.session
        self.vocabulary = min(filter(None, (*session.model.rows, len(session.tokenizer.get_vocab()))))
        self._grammars = Grammars(session.tokenizer, self.vocabulary)
        self._rendering, self._probing = asyncio.Lock(), asyncio.Lock()
        self._health: str | None = None
        self._probed = -FRESH

    @property
    def tokenizer(self) -> TokenizerWrapper:
        """The base's."""
        return self.engine.session.tokenizer

    def steering(self) -> dict[str, Any]:
        """What the page needs to know of the models."""
        model, menu = self.engine.session.model, self.menu
        return {
            "model": menu.name,
            "objectives": list(menu.objectives),
            "alpha": menu.weights(menu.default) if menu.objectives else None,
            "beta": menu.beta,
            "temperature": self.defaults.temp,
            "max_tokens": self.max_tokens,
            "thinks": self.tokenizer.has_thinking,
            "enable_thinking": self.engine.session.prompter.enable_thinking,
            "context_length": model.context_length,
        }

    async def problem(self) -> str | None:
        """Why no answers come; None where all is well.

        It asks for a token, unless others have just come.
        """
        async with self._probing:  # one at a time: whoever asks may be anybody
            if self.engine.problem or self.engine.steps_lately:
                return self.engine.problem
            if monotonic() - self._probed > FRESH:
                self._health, self._probed = await self._probe(), monotonic()
            return self._health

    async def _probe(self) -> str | None:
        engine = self.engine
        wanted = Wanted("ok", Steering(None, None), {"temp": 0.0}, 1)
        try:
            answers = await self.begin(wanted)
        except RequestError as error:
            return None if error.status == 429 and engine.problem is None else str(error)
        try:
            await asyncio.wait_for(answers.all(), HEALTHY)
        except TimeoutError:
            return engine.problem or (None if engine.steps_lately else f"no token came within {HEALTHY} seconds")
        except RequestError as error:
            return str(error)
        finally:
            answers.cancel()
        return None

    async def begin(self, wanted: Wanted) -> Answers:
        """Queues the answers to a request.

        Raises:
            RequestError: The request cannot be answered, or not now.
        """
        if wanted.n > (most := self.options.max_queue + self.options.batch_size):
            raise RequestError(f"n is {wanted.n}, and {most} answers can be asked for at the same time", param="n")
        async with self._rendering:
            prompt = await asyncio.to_thread(self._prompt, wanted)
            matcher = None
            if wanted.schema is not None:
                matcher = await asyncio.to_thread(self._grammars.matcher, wanted.schema)
        answers = Answers(wanted, prompt)
        try:
            sampling = replace(self.defaults, **{"seed": random.getrandbits(32), **wanted.sampling})
        except InputError as error:
            raise RequestError(str(error).removeprefix("sampling: ")) from None
        steering = wanted.steering
        most = prompt.room(self.engine.session.model.context_length, wanted.max_tokens or self.max_tokens)
        asks = [
            Ask(
                Request(prompt, steering.alpha, sampling, index, beta=steering.beta),
                most,
                answers.emitter(index),
                wanted.options,
                matcher,
                continues=isinstance(wanted.content, str),
            )
            for index in range(wanted.n)
        ]
        try:
            answers.begun(self.engine.submit(asks))
        except BusyError:
            message = "too many requests wait already; try again in a moment"
            raise RequestError(message, 429, code="queue_full", headers={"Retry-After": str(RETRY)}) from None
        except ClosedError as error:
            raise RequestError(str(error), 503) from None
        return answers

    def _prompt(self, wanted: Wanted) -> PromptTokens:
        param = "messages" if not isinstance(wanted.content, str) else "prompt"
        session, content = self.engine.session, wanted.content
        prompter = session.prompter.asking(
            wanted.enable_thinking, wanted.options.tools, template=not isinstance(content, str)
        )
        if not isinstance(content, str) and not any(message["role"] == "system" for message in content):
            content = [*session.system, *content]
        try:
            prompt = prompter(content)
        except TooLongError as error:
            raise RequestError(str(error), param=param, code="context_length_exceeded") from None
        except (InputError, ModelError, UnicodeError) as error:
            raise RequestError(str(error), param=param) from None
        length, limit = max(len(prompt.base), len(prompt.guide)), self.options.max_prompt_tokens
        if limit is not None and length > limit:
            message = f"the prompt has {length} tokens, and {limit} are allowed"
            raise RequestError(message, param=param, code="context_length_exceeded")
        return prompt
