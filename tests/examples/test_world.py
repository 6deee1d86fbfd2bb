"""The text world of the bundled models: complete, grammatical, split without leaks, and contradictory."""

import importlib
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from parm_mlx.rewards.builtin import focus, warmth

MODULES = ("world", "answers", "dialogues")
COUNTS = {"step": 4, "need": 1, "avoid": 2, "why": 2, "time": 1, "example": 1, "like": 1, "joke": 1, "ask": 1}


@pytest.fixture(scope="module")
def bundled(repository: Path) -> Iterator[SimpleNamespace]:
    """The modules of examples/bundled, which are scripts and not a package."""
    folder = str(repository / "examples" / "bundled")
    sys.path.insert(0, folder)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    sys.path.remove(folder)
    for name in MODULES:
        del sys.modules[name]


def test_every_topic_is_complete(bundled: SimpleNamespace) -> None:
    topics = bundled.world.topics()
    assert len(topics) >= 100
    assert len({topic.do for topic in topics}) == len(topics)
    for topic in topics:
        assert {kind: len(facts) for kind, facts in topic.facts.items()} == COUNTS, topic.do
        assert topic.situation.endswith((".", "?")), topic.do
        assert all(fact.reason for kind in ("step", "avoid") for fact in topic.all(kind)), topic.do
        assert topic.one("joke").endswith("."), topic.do
        assert topic.one("ask").endswith("?"), topic.do


def test_facts_carry_no_warmth_of_their_own(bundled: SimpleNamespace) -> None:
    for topic in bundled.world.topics():
        for facts in topic.facts.values():
            assert not [fact for fact in facts if warmth(f"{fact.text} {fact.reason}")], topic.do


def test_every_warm_phrase_counts(bundled: SimpleNamespace) -> None:
    phrases = bundled.answers
    assert [p for p in phrases.OPENERS + phrases.MIDDLES + phrases.CLOSERS if not warmth(p)] == []
    assert [p for p in phrases.POLITE + phrases.CASUAL + phrases.FORMAL if warmth(p)] == []


def test_held_out_questions_are_many_and_never_trained_on(bundled: SimpleNamespace) -> None:
    train, held = bundled.world.split()
    assert len(train) >= 20000
    assert 0.1 <= len(held) / (len(train) + len(held)) <= 0.25
    assert not {q.text.lower() for q in train} & {q.text.lower() for q in held}
    stream = bundled.dialogues.stream(1)
    asked = {m["content"] for _ in range(300) for m in next(stream) if m["role"] == "user"}
    assert not asked & {q.text for q in held}
    assert set(bundled.world.demo_questions()) <= {q.text for q in held}


def test_a_stream_depends_on_its_seed_alone(bundled: SimpleNamespace) -> None:
    one, same, other = (bundled.dialogues.stream(seed) for seed in (5, 5, 6))
    first = [next(one) for _ in range(20)]
    assert first == [next(same) for _ in range(20)]
    assert first != [next(other) for _ in range(20)]


def test_conversations_alternate_and_end_with_the_assistant(bundled: SimpleNamespace) -> None:
    stream = bundled.dialogues.stream(2)
    for _ in range(300):
        roles = [message["role"] for message in next(stream) if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_answers_are_sentences_of_bearable_length(bundled: SimpleNamespace) -> None:
    rng = random.Random(3)
    lengths = []
    for _ in range(500):
        text = bundled.dialogues.answer(bundled.world.draw(rng), rng)
        assert text[0].isupper()
        assert text[-1] in ".!?"
        assert "  " not in text
        assert ".." not in text
        lengths.append(len(text.split()))
    assert max(lengths) <= bundled.answers.MAX_WORDS
    assert 20 <= statistics.mean(lengths) <= 45


def test_each_style_shows(bundled: SimpleNamespace) -> None:
    topic = bundled.world.topics()[0]
    plain = bundled.answers.Style(detail=3)

    def write(**style: object) -> str:
        return bundled.answers.Writer(topic, replace(plain, **style), random.Random(1)).write("how")

    assert warmth(write()) == 0
    assert warmth(write(warmth=3)) >= 3
    assert len(write(detail=5)) > len(write(detail=1))
    assert " because " in write(reasons=True)
    assert write(connectives=True).startswith("First, ")
    assert topic.one("joke") in write(humour=True)
    assert topic.one("ask") in write(question=True)
    assert topic.one("example") in write(example=True)
    assert (
        "careful not to" in write(caution=True) or "do not" in write(caution=True) or "take care" in write(caution=True)
    )


def test_warmth_and_focus_conflict(bundled: SimpleNamespace) -> None:
    """On two answers to one question, the warmer one has less substance more often than not."""
    rng = random.Random(4)
    opposite = strict = 0
    for _ in range(1000):
        question = bundled.world.draw(rng)
        a, b = (bundled.dialogues.answer(question, rng) for _ in range(2))
        warmer, denser = warmth(a) - warmth(b), focus(a) - focus(b)
        if warmer and denser:
            strict += 1
            opposite += (warmer > 0) != (denser > 0)
    assert strict > 500
    assert opposite / strict >= 0.5
