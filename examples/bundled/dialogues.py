"""Endless seeded streams of dialogues: a question, its answer, and often a turn or two more."""

import random
from collections.abc import Iterator

import world
from answers import Writer, draw_style

Message = dict[str, str]
SYSTEM = ("You are a helpful assistant.", "Answer the question.", "You are a friendly assistant.", "Be helpful.")
FOLLOW_UPS = ("how", "first", "need", "why", "avoid", "time", "example", "reason", "more")


def answer(question: world.Question, rng: random.Random) -> str:
    """One answer to a question in a random style."""
    return Writer(question.topic, draw_style(rng), rng).write(question.intent, question.remark)


def _small_talk(rng: random.Random) -> list[Message]:
    group = rng.choice(world.small_talk())
    return [
        {"role": "user", "content": rng.choice(group.says)},
        {"role": "assistant", "content": rng.choice(group.replies)},
    ]


def dialogue(rng: random.Random, held_out: bool = False) -> list[Message]:
    """One conversation of one to four turns.

    Args:
        rng: The source of every choice.
        held_out: Take the questions from the held-out side, and only these (no small talk, no further turns).
    """
    if held_out:
        question = world.draw(rng, held_out=True)
        return [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer(question, rng)}]
    talk: list[Message] = []
    if rng.random() < 0.1:
        talk += [{"role": "system", "content": rng.choice(SYSTEM)}]
    if rng.random() < 0.1:
        talk += _small_talk(rng)
        if rng.random() < 0.5:
            return talk
    for _ in range(rng.choices((1, 2), (85, 15))[0]):
        talk += _topic_turns(rng)
    if rng.random() < 0.05:
        thanks = next(group for group in world.small_talk() if "Thanks!" in group.says)
        talk.append({"role": "user", "content": rng.choice(thanks.says)})
        talk.append({"role": "assistant", "content": rng.choice(thanks.replies)})
    return talk


def _topic_turns(rng: random.Random) -> list[Message]:
    question = world.draw(rng)
    writer = Writer(question.topic, draw_style(rng), rng)
    talk = [
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": writer.write(question.intent, question.remark)},
    ]
    said = list(writer.used)
    for _ in range(rng.choices((0, 1, 2), (62, 26, 12))[0]):
        intent = rng.choice(FOLLOW_UPS)
        writer = Writer(question.topic, draw_style(rng), rng)
        talk.append({"role": "user", "content": rng.choice(world.templates()[f"follow {intent}"])})
        talk.append({"role": "assistant", "content": writer.write(intent, "", said)})
        said += writer.used
    return talk


def stream(seed: int) -> Iterator[list[Message]]:
    """Training conversations without end, always the same for a seed."""
    rng = random.Random(seed)
    while True:
        yield dialogue(rng)
