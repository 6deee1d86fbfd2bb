"""The text world: topics with their facts, questions about them, and which questions are held out.

Everything that the world says lies in ``world/*.txt``. A topic block there has these keys (``|`` parts
a fact from its reason):

    topic    base form | -ing form
    step     what to do, in order, in the base form | why
    need     what one needs, as a list of things
    avoid    what not to do, in the base form | why
    why      a reason to do it at all, as a clause
    time     how long it takes
    example  a clause that follows "for example"
    like     a comparison, as a clause
    joke     a light aside, as a sentence
    ask      a question back to the person
"""

import hashlib
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "world"
NOT_TOPICS = ("questions.txt", "smalltalk.txt", "situations.txt")
HELD_OUT_PROMPTS = 8
HELD_OUT_TEMPLATES = 16


@dataclass(frozen=True)
class Fact:
    """A statement and, for steps and warnings, its reason (empty otherwise)."""

    text: str
    reason: str = ""


@dataclass
class Topic:
    """One everyday activity and what the world knows about it."""

    do: str
    doing: str
    situation: str = ""
    facts: dict[str, list[Fact]] = field(default_factory=dict)

    def all(self, kind: str) -> list[Fact]:
        """The facts of one kind, in the order of the file."""
        return self.facts[kind]

    def one(self, kind: str) -> str:
        """The text of the only fact of a kind."""
        return self.facts[kind][0].text


@dataclass(frozen=True)
class Question:
    """A prompt together with what an answer to it must be about.

    Attributes:
        text: The prompt as a person types it.
        topic: The activity asked about.
        intent: What is asked: how, tips, first, need, why, avoid, time, example or like.
        remark: A sentence that an answer may add about the person's circumstances, or "".
        template: The template that made the prompt.
    """

    text: str
    topic: Topic
    intent: str
    remark: str
    template: str


@dataclass
class SmallTalk:
    """Prompts without a topic and the replies that fit all of them."""

    says: list[str]
    replies: list[str]


def _lines(name: str) -> list[str]:
    text = (DATA / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _pair(text: str) -> tuple[str, str]:
    left, _, right = text.partition("|")
    return left.strip(), right.strip()


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic of the world, in a fixed order."""
    situations = dict(_pair(line) for line in _lines("situations.txt"))
    found: list[Topic] = []
    for path in sorted(DATA.glob("*.txt")):
        if path.name in NOT_TOPICS:
            continue
        for line in _lines(path.name):
            key, _, value = line.partition(":")
            text, extra = _pair(value)
            if key == "topic":
                found.append(Topic(text, extra, situations.get(text, "")))
            else:
                found[-1].facts.setdefault(key, []).append(Fact(text, extra))
    return tuple(found)


@cache
def templates() -> dict[str, list[str]]:
    """Question templates by intent; the follow-up questions lie under ``follow <intent>``."""
    found: dict[str, list[str]] = {}
    for line in _lines("questions.txt"):
        key, _, value = line.partition(":")
        if key not in ("before", "after"):
            found.setdefault(key, []).append(value.strip())
    return found


@cache
def contexts(where: str) -> tuple[tuple[str, str], ...]:
    """What people say about themselves ``before`` or ``after`` a question, each with a fitting remark."""
    pairs = []
    for line in _lines("questions.txt"):
        key, _, value = line.partition(":")
        if key == where:
            pairs.append(_pair(value))
    return tuple(pairs)


@cache
def small_talk() -> tuple[SmallTalk, ...]:
    """The groups of prompts that have no topic."""
    groups: list[SmallTalk] = []
    for line in _lines("smalltalk.txt"):
        key, _, value = line.partition(":")
        if key == "say" and (not groups or groups[-1].replies):
            groups.append(SmallTalk([], []))
        (groups[-1].says if key == "say" else groups[-1].replies).append(value.strip())
    return tuple(groups)


def _bucket(text: str, buckets: int) -> int:
    key = "".join(c for c in text.lower() if c.isalnum() or c == " ")
    return int.from_bytes(hashlib.sha256(" ".join(key.split()).encode()).digest()[:4], "big") % buckets


def is_held_out(question: Question) -> bool:
    """Whether a question is never trained on: one prompt in eight, and one topic-template pair in sixteen."""
    if _bucket(question.text, HELD_OUT_PROMPTS) == 0:
        return True
    return _bucket(f"{question.topic.do} {question.template}", HELD_OUT_TEMPLATES) == 0


def _fill(template: str, topic: Topic) -> str:
    text = template.format(do=topic.do, doing=topic.doing)
    return text if template.startswith("how do i") else text[0].upper() + text[1:]


def every_question() -> list[Question]:
    """All single questions of the world: template x topic x circumstances."""
    found = []
    for topic in topics():
        for intent, texts in templates().items():
            if not intent.startswith("follow"):
                for template in texts:
                    found += _variants(_fill(template, topic), topic, intent, template)
        if topic.situation:
            found += _variants(topic.situation, topic, "how", topic.situation)
    return found


def _variants(text: str, topic: Topic, intent: str, template: str) -> list[Question]:
    made = [Question(text, topic, intent, "", template)]
    if text[-1] not in "?.":
        return made
    for said, remark in contexts("before"):
        made.append(Question(f"{said} {text}", topic, intent, remark, template))
    if text[-1] == "?" and template != topic.situation and intent in ("how", "first", "time"):
        for said, remark in contexts("after"):
            made.append(Question(f"{text[:-1]} {said}?", topic, intent, remark, template))
    return made


@cache
def split() -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Every question of the world as (training, held out)."""
    everything = every_question()
    train = tuple(q for q in everything if not is_held_out(q))
    held = tuple(q for q in everything if is_held_out(q))
    return train, held


def draw(rng: random.Random, held_out: bool = False) -> Question:
    """A random question of one side of the split; half of the time it comes without circumstances."""
    pool = split()[1 if held_out else 0]
    question = rng.choice(pool)
    while question.remark and rng.random() < 0.6:
        question = rng.choice(pool)
    return question


def demo_questions(count: int = 60) -> list[str]:
    """Held-out questions in plain words, of mixed topics and intents, for ``parm-mlx demo``."""
    rng = random.Random(count)
    plain = [q for q in split()[1] if q.text.endswith("?") and q.text[0].isupper() and not q.remark]
    plain = [q for q in plain if " your " not in q.text and q.intent in ("how", "tips", "first", "avoid")]
    chosen: dict[str, str] = {}
    for question in rng.sample(plain, len(plain)):
        chosen.setdefault(question.topic.do, question.text)
    return list(chosen.values())[:count]
