"""The reader: prompts in pieces, in turn, once for several answers, and together where they are short."""

import queue
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from tiny import VOCABULARY, tiny_guided, tiny_shared

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import Session
from parm_mlx.serving import reader as reader_module
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.events import Ask, Done, Event, Text
from parm_mlx.serving.kept import KeptPrompts
from parm_mlx.serving.reader import PromptReader
from tests.serving.asking import GREEDY, Asked, engine_of
from tests.serving.running import QUESTION

Add = Callable[..., Answering]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> PromptReader:
    """A reader of pieces of 8 tokens, on a tiny model."""
    monkeypatch.setattr(reader_module, "STEP", 8)
    model = tiny_guided()
    return PromptReader(model, KeptPrompts(1 << 20, model))


@pytest.fixture
def add(reader: PromptReader, session: Session) -> Add:
    def add(base: list[int], guide: list[int] | None = None) -> Answering:
        request = Request(PromptTokens(base, base if guide is None else guide), (0.5, 0.5), GREEDY)
        reader.answers.append(Answering(Ask(request, 4, lambda event: None), session.tokenizer, 0.0))
        return reader.answers[-1]

    return add


def test_prompts_take_turns_and_one_waits_for_another_of_the_same_prompt(reader: PromptReader, add: Add) -> None:
    """19 tokens are pieces of 8, 8 and 3, for the base and then the guide, which begins in the base's last turn."""
    long, same, short = add([*range(20)]), add([*range(20)]), add([30, 31, 32])
    order = []
    while reader.answers:
        (due,) = reader.due()
        order.append(due)
        if reader.read_piece(due):
            reader.answers.remove(due)
    assert order == [long, short, long, long, long, long, same]
    assert (long.cached, same.cached, same.guide_cached) == (0, 19, 19)


def test_short_prompts_are_left_to_the_batch(reader: PromptReader, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded to the longest, three prompts of 4, 5 and 6 tokens are 18: one too many."""
    monkeypatch.setattr(reader_module, "TOGETHER", 17)
    long, unequal = add([*range(20)]), add([40, 41], [50, 51])
    first, second, third = add([1, 2, 3, 4]), add([5, 6, 7, 8, 9]), add([10, 11, 12, 13, 14, 15])
    assert reader.due() == [first, second]
    for each in (first, second):
        cache = reader.hand_over(each, whole=True)
        assert each.joined_with == each.request.prompt.base
        assert cache[0].offset == 0
        reader.answers.remove(each)
    assert reader.due() == [long]
    reader.answers.remove(long)
    assert reader.due() == [unequal]
    reader.answers.remove(unequal)
    assert reader.due() == [third]
    assert reader.read_piece(third)
    cache = reader.hand_over(third)
    assert third.joined_with == [15]
    assert cache[0].offset == 5


def test_a_prompt_of_which_something_is_kept_is_read_alone(reader: PromptReader, add: Add) -> None:
    earlier = add([1, 2, 3, 4])
    assert reader.due() == [earlier]
    assert reader.read_piece(earlier)
    reader.answers.clear()
    new, follows, other = add([9, 8, 7]), add([1, 2, 3, 5, 6]), add([7, 8, 9])
    assert reader.due() == [new, other]
    assert follows.cached == 3


def test_a_long_prompt_lets_others_go_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces of a prompt, every running answer gets a token."""
    monkeypatch.setattr(reader_module, "STEP", 50)
    order: list[str] = []
    read, step = Engine._read, Engine._step

    def reading(self: Engine) -> None:
        order.extend(["read"] if self._reader.answers else [])
        read(self)

    def stepping(self: Engine) -> None:
        order.extend(["step"] if self._running else [])
        step(self)

    monkeypatch.setattr(Engine, "_read", reading)
    monkeypatch.setattr(Engine, "_step", stepping)
    running = Asked(engine, QUESTION, tokens=200, sampling=Sampling(temp=50.0))
    running.next()
    begun = len(order)
    long = Asked(engine, "Tell me of bread and soup. " * 60, tokens=2)
    prompt = long.done().prompt_tokens
    meanwhile = "".join("r" if each == "read" else "s" for each in order[begun:])
    assert meanwhile.count("r") >= 2 * prompt // 50
    assert "rr" not in meanwhile
    running.answering.cancel()


def test_one_prompt_is_read_once_for_several_answers(engine: Engine, session: Session) -> None:
    prompt = session.prompter([{"role": "user", "content": f"{QUESTION} {'And soup? ' * 220}"}])
    events: queue.Queue[Event] = queue.Queue()
    engine.submit([Ask(Request(prompt, (1.0, 0.0), GREEDY, i), 4, events.put) for i in range(3)])
    ends: list[Event] = []
    while len(ends) < 3:
        if not isinstance(event := events.get(timeout=60), Text):
            ends.append(event)
    cached = sorted(each.cached for each in ends if isinstance(each, Done))
    assert cached[1:] == [len(prompt.base) - 1] * 2


FAMILIES = [("llama", "two"), ("llama", "shared"), ("gemma3_text", "two"), ("gemma3_text", "shared"), ("jamba", "two")]


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_kinds_of_caches(session: Session, family: str, kind: str) -> None:
    """Sliding windows and recurrent states: unequal prompts, base and guide reading others, and turns that follow."""
    model = tiny_guided(family) if kind == "two" else tiny_shared(family)
    tiny = replace(session, model=model)
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(10, VOCABULARY) for _ in range(length)]

    with engine_of(tiny) as engine:
        asked = []
        for i in range(8):
            base = prompt(draw.randrange(1, 40))
            guide = base if i % 2 else prompt(draw.randrange(1, 40))
            alpha = None if i % 4 == 3 else (i / 8, 1 - i / 8)
            request = Request(PromptTokens(base, guide), alpha, GREEDY)
            asked.append(tell(engine, request, 6))
        for request, events in asked:
            done = last(events)
            assert done.answer == expected(tiny, request, 6), (request.alpha, len(request.prompt.base))
            follow = PromptTokens([*request.prompt.base, *done.answer, 7], [*request.prompt.guide, *done.answer, 7])
            again = replace(request, prompt=follow)
            assert last(tell(engine, again, 6)[1]).answer == expected(tiny, again, 6)


def tell(engine: Engine, request: Request, tokens: int) -> tuple[Request, "queue.Queue[Event]"]:
    events: queue.Queue[Event] = queue.Queue()
    engine.submit([Ask(request, tokens, events.put)])
    return request, events


def last(events: "queue.Queue[Event]") -> Done:
    while isinstance(event := events.get(timeout=60), Text):
        pass
    assert isinstance(event, Done), event
    return event


def expected(session: Session, request: Request, tokens: int) -> list[int]:
    """The tokens of an answer alone, in two models' caches."""
    (answer,) = generate_batch(session.model, session.tokenizer, [request], tokens)
    return answer.tokens
