"""The engine: one batch of mixed preferences, where every answer is the one that it would be alone."""

import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from tiny import VOCABULARY, tiny_guided, tiny_shared

from parm_mlx.guidance import explain as explain_module
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.serving import engine as engine_module
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.engine import BusyError, ClosedError, Engine
from parm_mlx.serving.events import Ask, Done, Event, Failed, Text
from parm_mlx.serving.settings import ServerOptions
from tests.serving.running import MODEL, QUESTION

GREEDY = Sampling(temp=0)


@pytest.fixture(scope="module")
def session() -> Session:
    return load_session(MODEL)


class Asked:
    """An answer that is on its way, or has come."""

    def __init__(self, engine: Engine, question: str, alpha: Any = (1.0, 0.0), tokens: int = 24, **more: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        prompt = engine.session.prompter([{"role": "user", "content": question}])
        request = Request(prompt, alpha, more.pop("sampling", GREEDY), beta=more.pop("beta", None))
        self.ask = Ask(request, tokens, self.events.put, **more)
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


def run(session: Session, **options: Any) -> Iterator[Engine]:
    engine = Engine(lambda: session, ServerOptions(**options))
    engine.start()
    try:
        yield engine
    finally:
        engine.close(drain=False)


@pytest.fixture
def engine(session: Session) -> Iterator[Engine]:
    yield from run(session, max_queue=100)


@pytest.fixture
def narrow(session: Session) -> Iterator[Engine]:
    """An engine that generates two answers at a time, and lets one wait."""
    yield from run(session, batch_size=2, max_queue=1)


def alone(session: Session, asked: Asked) -> str:
    model = session.model
    request = asked.ask.request
    (answer,) = generate_batch(model, session.tokenizer, [request], asked.ask.max_tokens)
    return answer.text


def test_answers_in_a_mixed_batch_are_those_that_come_alone(engine: Engine, session: Session) -> None:
    alphas = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), None, (0.2, 0.8)]
    betas = [None, 0.5, 2.0]
    asked = []
    for i in range(15):
        alpha = alphas[i % 5]
        asked.append(Asked(engine, f"{QUESTION} {i % 7}", alpha, 8 + i, beta=betas[i % 3] if alpha else None))
        time.sleep(0.005 * (i % 4))
    for each in asked:
        done = each.done()
        assert each.text == alone(session, each)
        assert done.tokens <= each.ask.max_tokens


def test_prompts_and_answers_are_kept_by_alpha(engine: Engine) -> None:
    asked = Asked(engine, QUESTION, tokens=60)
    first = asked.done()
    assert first.reason == "stop"  # the cache has read the end, too
    assert (first.cached, first.guide_cached) == (0, 0)
    repeated = Asked(engine, QUESTION, tokens=60, top_logprobs=0)
    again = repeated.done()
    assert repeated.text == asked.text
    assert again.cached == again.guide_cached == first.prompt_tokens - 1
    cut = Asked(engine, f"{QUESTION} Now", tokens=60, stops=(" can",))
    assert cut.done().stop == " can"
    whole, fresh = Asked(engine, f"{QUESTION} Now", tokens=60), Asked(engine, f"{QUESTION} Now", tokens=60)
    assert min(whole.done().cached, fresh.done().guide_cached) > first.prompt_tokens - 2
    assert whole.text == fresh.text == alone(engine.session, whole)
    assert whole.text.startswith(cut.text)
    other = Asked(engine, QUESTION, (0.0, 1.0)).done()
    assert (other.cached, other.guide_cached) == (first.prompt_tokens - 1, 0)
    base = Asked(engine, QUESTION, None).done()
    assert (base.cached, base.guide_cached) == (first.prompt_tokens - 1, 0)
    weaker = Asked(engine, QUESTION, beta=3.0).done()
    assert weaker.guide_cached == first.prompt_tokens - 1


@pytest.mark.parametrize("size", [0, 1])
def test_a_small_prompt_cache_stays_small(session: Session, size: int) -> None:
    for engine in run(session, prompt_cache_size=size):
        for i in range(8):
            Asked(engine, f"{QUESTION} {i} {'And more? ' * 30}", tokens=4).done()
        assert engine.cached_bytes <= size << 20


def test_a_client_that_goes_frees_its_place(narrow: Engine) -> None:
    long = [Asked(narrow, f"{QUESTION} {i}", tokens=900, sampling=Sampling(temp=50.0)) for i in range(2)]
    for each in long:
        each.next()
    waiting = Asked(narrow, "And soup?", tokens=4)
    assert waiting.events.empty()
    long[0].answering.cancel()
    assert waiting.done().tokens <= 4
    long[1].answering.cancel()
    assert isinstance(long[1].end(), Failed)
    assert narrow.counts["cancelled"] == 2


def test_a_full_queue_refuses_all_or_none(narrow: Engine) -> None:
    long = [Asked(narrow, f"{QUESTION} {i}", tokens=900, sampling=Sampling(temp=50.0)) for i in range(3)]
    long[0].next()
    with pytest.raises(BusyError):
        Asked(narrow, QUESTION)
    with pytest.raises(BusyError):
        narrow.submit([long[0].ask] * 2)
    assert narrow.queued == 1
    for each in long:
        each.answering.cancel()


def test_a_long_prompt_lets_others_go_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces of a prompt, every running answer gets a token."""
    monkeypatch.setattr(engine_module, "STEP", 50)
    order: list[str] = []
    read, step = Engine._read, Engine._step

    def reading(self: Engine) -> None:
        order.extend(["read"] if self._reading else [])
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


def test_a_failing_answer_leaves_the_others_alone(engine: Engine, session: Session) -> None:
    def broken() -> Any:
        class Matcher:
            def consume_token(self, token: int) -> bool:
                raise RuntimeError("the grammar is broken")

            def compute_bitmask(self) -> bytes:
                raise RuntimeError("the grammar is broken")

        return Matcher()

    fine = Asked(engine, QUESTION, tokens=30)
    bad = Asked(engine, QUESTION, tokens=30, matcher=broken)
    unread = Asked(engine, QUESTION, tokens=30, matcher=lambda: 1 / 0)
    assert bad.end() == Failed("the grammar is broken", "request")
    assert "division by zero" in unread.end().message  # type: ignore[union-attr]
    fine.done()
    assert fine.text == alone(session, fine)


def test_logits_that_are_not_finite_end_one_answer(engine: Engine, session: Session) -> None:
    fine = Asked(engine, QUESTION, tokens=30)
    bad = Asked(engine, QUESTION, tokens=30, logit_bias={5: float("nan")})
    assert "not finite" in bad.end().message  # type: ignore[union-attr]
    fine.done()
    assert fine.text == alone(session, fine)


def test_an_answer_that_takes_too_long_is_ended(session: Session) -> None:
    for engine in run(session, timeout=0.3):
        end = Asked(engine, QUESTION, tokens=900, sampling=Sampling(temp=50.0)).end()
        assert end == Failed("the answer took longer than 0.3 seconds", "timeout")


def test_closing_gives_what_was_asked_for(session: Session) -> None:
    for engine in run(session, batch_size=2):
        asked = [Asked(engine, f"{QUESTION} {i}", tokens=10) for i in range(6)]
        engine.close()
        for each in asked:
            each.done()
        with pytest.raises(ClosedError):
            Asked(engine, QUESTION)


def test_a_step_that_fails_ends_what_runs_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, fails = Engine._step, threading.Event()

    def stepping(self: Engine) -> None:
        if self._running and fails.is_set():
            fails.clear()
            raise RuntimeError("out of memory")
        step(self)

    monkeypatch.setattr(Engine, "_step", stepping)
    running = Asked(engine, QUESTION, tokens=500, sampling=Sampling(temp=50.0))
    running.next()
    fails.set()
    assert running.end() == Failed("the engine failed: RuntimeError: out of memory")
    assert Asked(engine, QUESTION).done().tokens
    assert engine.problem is None


def test_an_engine_that_keeps_failing_gives_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Engine) -> None:
        raise RuntimeError("the device is lost")

    for engine in run(session):
        monkeypatch.setattr(Engine, "_step", failing)
        for _ in range(engine_module.FAILURES):
            assert "the device is lost" in Asked(engine, QUESTION).end().message  # type: ignore[union-attr]
        engine._thread.join(timeout=10)
        assert "the device is lost" in str(engine.problem)
        with pytest.raises(ClosedError, match="the device is lost"):
            Asked(engine, QUESTION)


def test_an_engine_that_hangs_is_seen_and_its_answers_fail(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    step = Engine._step

    def hanging(self: Engine) -> None:
        if self._running:
            goes_on.wait(30)
        step(self)

    for engine in run(session, stall_timeout=0.2):
        monkeypatch.setattr(Engine, "_step", hanging)
        asked = Asked(engine, QUESTION)
        end = time.monotonic() + 10
        while engine.problem is None and time.monotonic() < end:
            time.sleep(0.02)
        assert "no step has ended for" in str(engine.problem)
        engine.give_up("it hangs")
        assert asked.end() == Failed("it hangs")
        with pytest.raises(ClosedError, match="it hangs"):
            Asked(engine, QUESTION)
        goes_on.set()


def test_memory_does_not_grow(engine: Engine) -> None:
    """After a first round, the answers to other prompts of the same lengths leave as much memory in use."""
    held = []
    for turn in range(3):
        asked = [Asked(engine, f"{QUESTION} {turn}{i}", (i / 8, 1 - i / 8), tokens=8) for i in range(8)]
        for each in asked:
            each.done()
        engine._kept.clear()
        mx.synchronize()
        held.append(mx.get_active_memory())
    assert held[2] <= held[1] * 1.01


def test_events_come_in_the_order_of_the_text(engine: Engine) -> None:
    asked = Asked(engine, QUESTION, tokens=30, top_logprobs=3)
    told = list[int]()
    while isinstance(event := asked.next(), Text):
        told += [each.token for each in event.logprobs]
        assert all(each.top[0][1] >= each.logprob for each in event.logprobs)
    assert isinstance(event, Done)
    assert told == event.answer
    assert engine.session.tokenizer.decode(told) == asked.text


def test_an_answering_ends_once(session: Session) -> None:
    told: list[Event] = []
    prompt = session.prompter(QUESTION)
    answering = Answering(Ask(Request(prompt, None, GREEDY), 4, told.append), session.tokenizer, 0.0)
    answering.fail("first")
    answering.fail("second")
    assert told == [Failed("first")]


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


def test_explaining_a_long_answer_lets_others_go_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "STEP", 2)
    order: list[str] = []
    step, reasons = Engine._step, Engine._explain

    def stepping(self: Engine) -> None:
        order.extend(["s"] if self._running else [])
        step(self)

    def explaining(self: Engine) -> None:
        order.extend(["e"] if self._explaining else [])
        reasons(self)

    monkeypatch.setattr(Engine, "_step", stepping)
    monkeypatch.setattr(Engine, "_explain", explaining)
    running = Asked(engine, QUESTION, tokens=300, sampling=Sampling(temp=50.0))
    running.next()
    done = Asked(engine, f"{QUESTION} Please.", tokens=20, explain=True).done()
    assert done.reasons is not None
    assert [each.token for each in done.reasons] == done.answer
    meanwhile = "".join(order)
    assert meanwhile.count("e") > len(done.answer) // 2
    assert "ee" not in meanwhile[meanwhile.index("e") : meanwhile.rindex("e")]
    running.answering.cancel()


def test_what_is_kept_is_what_is_counted(engine: Engine) -> None:
    """The kept entries of the guide hold no matrices that were bound for a batch."""
    for i in range(4):
        Asked(engine, f"{QUESTION} {i}", (i / 4, 1 - i / 4), tokens=4).done()
    before = mx.get_active_memory() - engine.cached_bytes
    engine._kept.clear()
    mx.synchronize()
    assert before - mx.get_active_memory() < 1_000_000  # those of four preferences would be 1.4 MB


FAMILIES = [("llama", "two"), ("llama", "shared"), ("gemma3_text", "two"), ("gemma3_text", "shared"), ("jamba", "two")]


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_kinds_of_caches(session: Session, family: str, kind: str) -> None:
    """Sliding windows and recurrent states: unequal prompts, base and guide reading others, and turns that follow."""
    model = tiny_guided(family) if kind == "two" else tiny_shared(family)
    tiny = replace(session, model=model)
    draw = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [draw.randrange(10, VOCABULARY) for _ in range(length)]

    for engine in run(tiny):
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
