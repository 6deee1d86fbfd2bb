"""The engine: one batch of mixed preferences, where every answer is the one that it would be alone."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.guidance import explain as explain_module
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.session import Session
from parm_mlx.serving import engine as engine_module
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.errors import BusyError, ClosedError
from parm_mlx.serving.events import Ask, Done, Event, Failed, Text
from tests.serving.asking import GREEDY, Asked, alone, engine_of
from tests.serving.running import QUESTION


@pytest.fixture
def narrow(session: Session) -> Iterator[Engine]:
    """An engine that generates two answers at a time, and lets one wait."""
    with engine_of(session, batch_size=2, max_queue=1) as running:
        yield running


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
    with engine_of(session, timeout=0.3) as engine:
        end = Asked(engine, QUESTION, tokens=900, sampling=Sampling(temp=50.0)).end()
        assert end == Failed("the answer took longer than 0.3 seconds", "timeout")


def test_closing_gives_what_was_asked_for(session: Session) -> None:
    with engine_of(session, batch_size=2) as engine:
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

    with engine_of(session) as engine:
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

    with engine_of(session, stall_timeout=0.2) as engine:
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
