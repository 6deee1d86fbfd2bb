"""Answers of the text world: the same facts, said in many independent styles."""

import random
from dataclasses import dataclass

from world import Fact, Topic

MAX_WORDS = 90

OPENERS = (
    "What a lovely question!",
    "I am so glad you asked!",
    "I am happy to help!",
    "How wonderful to hear from you!",
    "Hello, my friend!",
    "Great question, my friend!",
    "It is lovely to hear from you!",
    "It is wonderful that you ask!",
    "With pleasure, my friend!",
    "I am delighted to help you!",
)
MIDDLES = (
    "You can do this.",
    "You are doing great.",
    "I believe in you.",
    "Be kind to yourself.",
    "You are in good hands.",
    "Trust yourself, my friend.",
    "I am right here with you.",
)
CLOSERS = (
    "You've got this!",
    "I am cheering for you!",
    "Good luck, my friend!",
    "Well done for asking!",
    "I am proud of you!",
    "Take good care of yourself!",
    "Warm wishes to you!",
    "I am always here for you!",
    "Sending you a big hug!",
    "I am always glad to help!",
)
POLITE = ("Thank you for your question.", "Certainly.", "Of course.", "Thank you for asking.")
CASUAL = ("Sure thing.", "Okay.", "Well, no problem.", "Right.")
FORMAL = ("Allow me to explain.", "Here is a short answer.", "The matter is simple.")

# How a fact is put to the person, by (formality, hedging). "one" is left out where the fact says "you".
STEP = {
    ("plain", False): ("", "", "", "you should ", "you can "),
    ("plain", True): ("you could ", "it may help to ", "you might want to ", "it usually helps to "),
    ("formal", False): ("it is advisable to ", "one should ", "it is best to ", "it is important to "),
    ("formal", True): ("it may be advisable to ", "one might ", "it would perhaps be wise to "),
    ("casual", False): ("just ", "simply ", "", "go ahead and "),
    ("casual", True): ("maybe ", "perhaps just ", "you could just ", "I guess you could "),
}
AVOID = {
    ("plain", False): ("do not ", "never ", "try not to "),
    ("plain", True): ("it may be better not to ", "I would not ", "you may not want to "),
    ("formal", False): ("it is advisable not to ", "one should not ", "it is important not to "),
    ("formal", True): ("it may be unwise to ", "it would perhaps be better not to "),
    ("casual", False): ("don't ", "just don't "),
    ("casual", True): ("maybe don't ", "I wouldn't "),
}
NEED = {
    ("plain", False): ("you need ", "you will need "),
    ("plain", True): ("you will probably need ", "I think you need "),
    ("formal", False): ("it is advisable to have ", "you will require "),
    ("formal", True): ("you will perhaps require ", "it may be advisable to have "),
    ("casual", False): ("just get ", "all you need is "),
    ("casual", True): ("maybe get ", "I guess you need "),
}
TIME = {
    ("plain", False): ("it takes ", "you need "),
    ("plain", True): ("it usually takes ", "it probably takes "),
    ("formal", False): ("the time required is ", "it takes "),
    ("formal", True): ("the time required is perhaps ", "it may take "),
    ("casual", False): ("it just takes ", "you need "),
    ("casual", True): ("I guess it takes ", "it takes maybe "),
}
CLAIM = {
    ("plain", False): ("", "one good reason is that ", "it is worth it, because "),
    ("plain", True): ("I think that ", "it seems to me that "),
    ("formal", False): ("it is worthwhile, since ", "it should be said that "),
    ("formal", True): ("it may be said that ", "it appears that "),
    ("casual", False): ("", "you know, "),
    ("casual", True): ("I guess ", "maybe it helps to know that "),
}
BECAUSE = {"plain": (", because ",), "formal": (", since ", ", because "), "casual": (", because ", ", as ")}
THEN = ("Then ", "Next, ", "After that, ")


@dataclass
class Style:
    """How an answer is said; every field is drawn on its own.

    Attributes:
        detail: How many facts the answer holds, 1 to 5.
        warmth: How many kind expressions it holds, 0 to 5.
        formality: plain, formal or casual.
        hedging: Careful wording ("you could", "it may help").
        reasons: Facts come with their reasons.
        connectives: Steps come with First, Then and Finally.
        caution, example, humour, figurative, question, polite: One sentence of that sort is added.
    """

    detail: int = 2
    warmth: int = 0
    formality: str = "plain"
    hedging: bool = False
    reasons: bool = False
    connectives: bool = False
    caution: bool = False
    example: bool = False
    humour: bool = False
    figurative: bool = False
    question: bool = False
    polite: bool = False


def draw_style(rng: random.Random) -> Style:
    """A random style: every dimension is independent of the others."""
    return Style(
        detail=rng.choices((1, 2, 3, 4, 5), (34, 30, 20, 10, 6))[0],
        warmth=rng.choices((0, 1, 2, 3, 4, 5), (34, 22, 18, 13, 8, 5))[0],
        formality=rng.choices(("plain", "formal", "casual"), (60, 18, 22))[0],
        hedging=rng.random() < 0.25,
        reasons=rng.random() < 0.3,
        connectives=rng.random() < 0.4,
        caution=rng.random() < 0.16,
        example=rng.random() < 0.14,
        humour=rng.random() < 0.14,
        figurative=rng.random() < 0.12,
        question=rng.random() < 0.18,
        polite=rng.random() < 0.15,
    )


def sentence(text: str) -> str:
    """The text with a capital first letter and a full stop."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


class Writer:
    """Writes one answer about a topic in one style."""

    def __init__(self, topic: Topic, style: Style, rng: random.Random) -> None:
        self.topic, self.style, self.rng = topic, style, rng
        self.used: list[tuple[str, Fact]] = []

    def _lead(self, table: dict[tuple[str, bool], tuple[str, ...]], fact: Fact, first: bool) -> str:
        special = self.style.formality != "plain" or self.style.hedging
        key = (self.style.formality, self.style.hedging)
        if special and not first and self.rng.random() < 0.45:
            key = ("plain", False)
        choices = [c for c in table[key] if not (c.startswith("one ") and " you" in f" {fact.text} {fact.reason}")]
        return self.rng.choice(choices)

    def _because(self, fact: Fact) -> str:
        if not (self.style.reasons and fact.reason and self.rng.random() < 0.85):
            return ""
        return self.rng.choice(BECAUSE[self.style.formality]) + fact.reason

    def say(self, kind: str, fact: Fact, first: bool, connective: str = "") -> str:
        """One fact as a sentence; the first sentence of an answer may name the topic."""
        self.used.append((kind, fact))
        name = first and not connective and self.rng.random() < 0.35
        if kind == "step":
            body = self._lead(STEP, fact, first) + fact.text + self._because(fact)
            return sentence((f"to {self.topic.do}, " if name else connective) + body)
        if kind == "avoid":
            body = self._lead(AVOID, fact, first) + fact.text + self._because(fact)
            return sentence((f"when {self.topic.doing}, " if name else "") + body)
        if kind == "need":
            return sentence((f"for {self.topic.doing}, " if name else "") + self._lead(NEED, fact, first) + fact.text)
        if kind == "time":
            if name:
                return sentence(f"{self.topic.doing} takes {fact.text}")
            return sentence(self._lead(TIME, fact, first) + fact.text)
        if kind == "why":
            if name:
                return sentence(f"{self.topic.doing} is worth it, because {fact.text}")
            lead = self._lead(CLAIM, fact, first) if first else self.rng.choice(("", "also, ", "besides, "))
            return sentence(lead + fact.text)
        if kind == "example":
            return sentence(self.rng.choice(("for example, ", "for instance, ")) + fact.text)
        if kind == "like":
            return sentence(self.rng.choice(("", "", "you could say that ", "I always say that ")) + fact.text)
        return sentence(fact.text)

    def plan(self, intent: str, skip: list[tuple[str, Fact]]) -> list[tuple[str, Fact]]:
        """The facts that answer an intent, most important first, without those in skip."""
        facts = {kind: [(kind, fact) for fact in self.topic.all(kind)] for kind in self.topic.facts}
        steps, needs, times = facts["step"], facts["need"], facts["time"]
        avoid, why = (self.rng.sample(facts[kind], 2) for kind in ("avoid", "why"))
        some = sorted(self.rng.sample(steps, 3), key=steps.index)
        plans = {
            "how": steps + needs,
            "first": steps + times,
            "tips": some[:2] + avoid[:1] + some[2:] + why[:1],
            "need": needs + steps,
            "why": why + times + some,
            "avoid": avoid + some,
            "time": times + some + needs,
            "example": facts["example"] + some + times,
            "like": facts["like"] + why + some,
            "more": self.rng.sample(some + avoid + why + times + needs, 5),
            "reason": some,
        }
        return [item for item in plans[intent] if item not in skip][: self.style.detail]

    def _core(self, intent: str, skip: list[tuple[str, Fact]]) -> list[str]:
        chosen = self.plan(intent, skip if intent == "more" else []) or self.plan("more", [])
        ordered = self.style.connectives and intent in ("how", "first", "tips") and len(chosen) > 1
        said = []
        for i, (kind, fact) in enumerate(chosen):
            connective = ""
            if ordered and kind == "step":
                last = i == len(chosen) - 1 and len(chosen) > 2
                connective = "First, " if i == 0 else "Finally, " if last else self.rng.choice(THEN)
            elif intent == "avoid" and kind == "step" and i and chosen[i - 1][0] == "avoid":
                connective = "Instead, "
            said.append(self.say(kind, fact, i == 0, connective))
        return said

    def _extras(self) -> list[str]:
        extras = []
        chosen = {id(fact) for _, fact in self.used}
        if self.style.example and id(self.topic.all("example")[0]) not in chosen:
            extras.append(self.say("example", self.topic.all("example")[0], False))
        if self.style.figurative and id(self.topic.all("like")[0]) not in chosen:
            extras.append(self.say("like", self.topic.all("like")[0], False))
        warnings = [fact for fact in self.topic.all("avoid") if id(fact) not in chosen]
        if self.style.caution and warnings:
            fact = self.rng.choice(warnings)
            lead = self.rng.choice(("be careful not to ", "take care not to ", "whatever you do, do not "))
            self.used.append(("avoid", fact))
            extras.append(sentence(lead + fact.text + self._because(fact)))
        if self.style.humour:
            extras.append(self.topic.one("joke"))
        return extras

    def _opening(self, warm: int) -> list[str]:
        opening = [self.rng.choice(OPENERS)] if warm else []
        if self.style.polite:
            opening.append(self.rng.choice(POLITE))
        elif not warm and self.style.formality != "plain" and self.rng.random() < 0.3:
            opening.append(self.rng.choice(CASUAL if self.style.formality == "casual" else FORMAL))
        return opening

    def write(self, intent: str, remark: str = "", skip: list[tuple[str, Fact]] | None = None) -> str:
        """The answer, at most 90 words.

        Args:
            intent: What is asked (see world.Question), or "more", or "reason" for the reason of a step in ``skip``.
            remark: A sentence about the person's circumstances that may be added.
            skip: Facts that were said before.
        """
        skip = skip or []
        slots = self.rng.sample(("open", "open", "middle", "middle", "close", "close", "close"), self.style.warmth)
        opens, closes = min(slots.count("open"), 1), slots.count("close")
        middles = self.style.warmth - opens - closes
        body = self._reason(skip) if intent == "reason" else self._core(intent, skip)
        if remark.endswith("!"):
            body[:0] = [] if opens else [remark]
        elif remark and self.rng.random() < 0.4:
            body.insert(self.rng.choice((0, len(body))), remark)
        body += self._extras()
        for text in self.rng.sample(MIDDLES, middles):
            body.insert(self.rng.randint(1, len(body)), text)
        ending = self.rng.sample(CLOSERS, closes)
        if self.style.question:
            ending.insert(self.rng.choice((0, len(ending))), self.topic.one("ask"))
        text = " ".join(self._opening(opens) + body + ending)
        if len(text.split()) <= MAX_WORDS:
            return text
        self.style.detail, self.style.reasons = max(1, self.style.detail - 1), False
        self.used.clear()
        return self.write(intent, remark, skip)

    def _reason(self, skip: list[tuple[str, Fact]]) -> list[str]:
        known = [fact for _, fact in skip if fact.reason]
        if not known:
            return self._core("why", skip)
        fact = known[0]
        self.used.append(("step", fact))
        leads = {
            "plain": ("because ", "the reason is that "),
            "casual": ("because ", "well, "),
            "formal": ("the reason is that ",),
        }
        return [sentence(self.rng.choice(leads[self.style.formality]) + fact.reason)]
