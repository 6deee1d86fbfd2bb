"""Answers that tests ask an engine for, without a server."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import Session
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.events import AnswerOptions, Ask, Done, Event, Failed, Text
from parm_mlx.serving.settings import ServerOptions

GREEDY = Sampling(temp=0)


class Asked:
    """An answer that is on its way, or has come."""

    def __init__(self, engine: Engine, question: str, alpha: Any = (1.0, 0.0), tokens: int = 24, **more: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        prompt = engine.session.prompter([{"role": "user", "content": question}])
        request = Request(prompt, alpha, more.pop("sampling", GREEDY), beta=more.pop("beta", None))
        matcher = more.pop("matcher", None)
        self.ask = Ask(request, tokens, self.events.put, AnswerOptions(**more), matcher)
        (self.answering,) = engine.submit([self.ask])
        self.text = ""

    def next(self) -> Event:
        event = self.events.get(timeout=60)
        if isinstance(event, Text):
            self.text += event.text
        return event

    def end(self) -> Done | Failed:
        while isinstance(event := self.next(), Text):
            pass
        return event

    def done(self) -> Done:
        event = self.end()
        assert isinstance(event, Done), event
        return event


@contextmanager
def engine_of(session: Session, **options: Any) -> Iterator[Engine]:
    """Starts an engine with these options, and ends it."""
    engine = Engine(lambda: session, ServerOptions(**options))
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)


def alone(session: Session, asked: Asked) -> str:
    """The text of the same answer where it is the only one."""
    (answer,) = generate_batch(session.model, session.tokenizer, [asked.ask.request], asked.ask.max_tokens)
    return answer.text
