"""Costs of passes on this machine, and what follows for decoding one answer at a time.

What pays depends on the machine and the models: how much longer a pass over m tokens takes than one over a single
token, c(m); whether two rows in one pass take longer than two passes; and how many drafts of guide and base are kept.
All of it is measured on a few greedy answers at the preference and β of the model, once for each machine and set of
models, and kept in the user's cache folder.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import parm_mlx
from parm_mlx.errors import InputError
from parm_mlx.files import cache_folder, read_json
from parm_mlx.fingerprint import digest
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Sampling, likeliest
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting, Speculation, sharpness
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.machine import device_name, versions
from parm_mlx.mlxlm import Snapshot, generate_step, only_grows, wired_limit

FOLDER = "costs"  # in the cache folder
QUESTIONS = (
    "How do I keep a tomato plant alive on a small balcony?",
    "My friend is sad today. What can I say to her?",
    "What should I cook for dinner?",
)
LENGTHS = (1, 2, 4, 8, 12)  # tokens of a pass
ROUNDS = range(2, 20)  # of each pass, fewer where they take longer than ROUNDS_SECONDS
ROUNDS_SECONDS = 0.7
STEPS = 4  # decoded plainly in a turn
TOKENS = 16  # decoded after each question, as long as there is time
SECONDS = 10.0  # after which no more tokens are decoded, plainly or drafted
DRAFTED = 32  # tokens decoded with drafts after each question, as long as there is time
PROMISING = 1.3  # times plain decoding, or the other drafter, up to which a prediction is tried out
GAIN = 1.1  # by which another way must be faster than plain decoding
WAYS = ("off", "apart", "guide", "base")


@dataclass(frozen=True)
class Costs:
    """Costs of one answer at a time.

    Attributes:
        base: Seconds of a pass of the base over each of ``LENGTHS``.
        guide: Those of the guide.
        kept: Share of the drafts that would be kept, by drafter.
        per_token: Seconds per token of an answer: ``"off"`` without drafts, ``"apart"`` without drafts in two passes
            where base and guide share weights, and by drafter, ``"guide"`` and ``"base"``.
    """

    base: list[float]
    guide: list[float]
    kept: dict[str, float] = field(default_factory=dict)
    per_token: dict[str, float] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """True if base and guide are faster in two passes than as two rows of one."""
        return self.per_token.get("apart", float("inf")) * GAIN < self.per_token["off"]

    @property
    def drafter(self) -> str:
        """The fastest way to decode one answer: ``"guide"``, ``"base"`` or ``"off"``."""
        plain = min(self.per_token["off"], self.per_token.get("apart", float("inf")))
        found = [(self.per_token[name], name) for name in ("guide", "base") if name in self.per_token]
        seconds, fastest = min(found, default=(plain, "off"))
        return fastest if seconds * GAIN < plain else "off"

    def __str__(self) -> str:
        """What was measured and what follows, in a line."""
        words = {"off": "without drafts", "apart": "in two passes", "guide": "with guide drafts"}
        words["base"] = "with base drafts"
        rates = ", ".join(f"{1 / self.per_token[way]:.3g} {words[way]}" for way in WAYS if way in self.per_token)
        chosen = f"{self.drafter} drafts"
        if self.drafter == "off":
            chosen = "two passes" if self.apart else "no drafts"
        return f"tokens/s {rates}: {chosen}"


def measure(
    model: GuidedModel,
    prompts: Sequence[PromptTokens],
    ends: frozenset[int] = frozenset(),
    tokens: int = Drafting.tokens,
) -> Costs:
    """Measures passes, answers prompts greedily to see which drafts would be kept, and tries out what promises to pay.

    Drafts are not considered where they could not pay even if all were kept, nor where prompt caches cannot give tokens
    back without reading again (recurrent states, sliding windows).

    Args:
        model: Base and guide, of one vocabulary.
        prompts: What answers are given to, at the model's own preference and β.
        ends: The end-of-sequence tokens.
        tokens: Most tokens drafted at a time.
    """
    with wired_limit(model):
        plainly = {"off": model}
        if isinstance(model, SharedModel):
            plainly["apart"] = GuidedModel(model.base, model.guide, model.beta)
            plainly["apart"].shard = model.shard
        seconds = pass_seconds(model, prompts[0], plainly)
        times = {name: [seconds[name, n] for n in LENGTHS] for name in ("base", "guide")}
        per_token = {name: seconds[name, 1] for name in plainly}
        costs = Costs(times["base"], times["guide"], {}, per_token)
        plain = min(per_token.values())
        checks = {name: lambda n, own=own: float(np.interp(n, LENGTHS, own)) for name, own in times.items()}
        pairs = [("guide", "base"), ("base", "guide")]
        best = min(times[drafter][0] + checks[checker](tokens) / tokens for drafter, checker in pairs)
        if best * GAIN > plain or not only_grows(model.make_cache()):
            return costs
        until = time.perf_counter() + SECONDS
        fates = [fate for prompt in prompts for fate in _fates(model, prompt, ends, until)]
    for drafter, checker in pairs:
        if rounds := _rounds([fate[drafter] for fate in fates], Drafting(None, tokens)):
            drafted, accepted, gained = (sum(column) for column in zip(*rounds, strict=True))
            check = sum(checks[checker](ahead) for ahead, _, _ in rounds)
            per_token[drafter] = (drafted * times[drafter][0] + check) / gained
            costs.kept[drafter] = accepted / drafted
    predicted = {name: per_token[name] for name in costs.kept}
    limit = PROMISING * min(plain, *predicted.values(), float("inf"))
    promising = [name for name, seconds in predicted.items() if seconds < limit]
    per_token |= _drafted_seconds(model, prompts, ends, {n: Drafting(None, tokens, n == "guide") for n in promising})
    return costs


def _drafted_seconds(
    model: GuidedModel, prompts: Sequence[PromptTokens], ends: frozenset[int], ways: Mapping[str, Drafting]
) -> dict[str, float]:
    """Seconds per token of greedy answers with drafts, by name; each prompt is answered in every way, in turns."""
    totals = {name: [0.0, 0] for name in ways}
    until = time.perf_counter() + SECONDS
    for prompt in prompts if ways else ():
        for name, drafting in ways.items():
            cache = model.make_cache()
            last = prefill(model, cache, prompt.base, prompt.guide)
            speculation = Speculation(model, cache, last, drafting, Sampling())
            began, count = time.perf_counter(), 0
            for token in speculation:
                count += 1
                if token in ends or (count >= DRAFTED and count > len(speculation.read)):
                    break
            totals[name][0] += time.perf_counter() - began
            totals[name][1] += count
        if not _has_time(model, until):
            break
    found = [seconds / count for seconds, count in totals.values()]
    return dict(zip(ways, model.decide(found), strict=True))


def _fates(
    model: GuidedModel, prompt: PromptTokens, ends: frozenset[int], until: float
) -> Iterator[dict[str, tuple[bool, float]]]:
    """For each token of a greedy answer: would a draft of guide and of base be it, and how sure would each be?"""
    cache = model.make_cache()
    token = prefill(model, cache, prompt.base, prompt.guide)
    base_cache, guide_cache = model.split_cache(cache)
    sharper = sharpness(model, guide_cache)
    for _ in range(TOKENS):
        inputs = mx.array([[token]])
        base, guide = model.base(inputs, cache=base_cache)[:, -1], model.guide(inputs, cache=guide_cache)[:, -1]
        token = _number(mx.argmax(combine_logits(base[None], guide[None], guide_cache[-1].strength)))
        token, late = model.decide((token, time.perf_counter() > until))
        if token in ends or late:
            return
        fate = {}
        for name, logits in (("base", base), ("guide", guide)):
            scores = widened(logits[0]) * sharper[name]
            top = mx.max(scores) - mx.logsumexp(scores)
            fate[name] = _number(mx.argmax(scores)) == token, _number(mx.exp(top))
        yield fate


def _number(scalar: mx.array) -> Any:
    return scalar.item()


def _rounds(fates: Sequence[tuple[bool, float]], drafting: Drafting) -> list[tuple[int, int, int]]:
    """Drafted tokens, kept ones and tokens gained of each check, where greedy speculation decodes an answer."""
    rounds, at = [], 0
    while at < len(fates):
        ahead, confidence = 0, 1.0
        while at + ahead < len(fates) and ahead < drafting.tokens and confidence >= drafting.confidence:
            confidence *= fates[at + ahead][1]
            ahead += 1
        kept = [*(hit for hit, _ in fates[at : at + ahead]), False].index(False)
        rounds.append((ahead, kept, min(kept + 1, ahead)))
        at += rounds[-1][2]
    return rounds


def _plain(model: GuidedModel, prompt: PromptTokens) -> Callable[[], float]:
    """Plain greedy decoding, as mlx-lm's generator runs it: each call decodes a few tokens more."""
    cache = model.make_cache()
    last = prefill(model, cache, prompt.base, prompt.guide)
    sampler = model.agreed(likeliest)
    steps = generate_step(mx.array([last]), model, max_tokens=-1, prompt_cache=cache, sampler=sampler)

    def run() -> float:
        next(steps)  # what the generator has computed ahead
        began = time.perf_counter()
        list(islice(steps, STEPS))
        return (time.perf_counter() - began) / STEPS

    return run


def _has_time(model: GuidedModel, until: float) -> bool:
    return model.decide(time.perf_counter() < until)


def pass_seconds(
    model: GuidedModel, prompt: PromptTokens, plain: Mapping[str, GuidedModel] = MappingProxyType({})
) -> dict[tuple[str, int], float]:
    """Seconds of passes of base and guide after a prompt, by name and length; of ``plain`` decoding per token, at 1.

    They take turns, so that a machine whose speed drifts slows them all; the figures are medians.
    """
    cache = model.make_cache()
    prefill(model, cache, prompt.base, prompt.guide)
    base_cache, guide_cache = model.split_cache(cache)
    guide_cache[-1].first_token = None
    tokens = prompt.base * (-(-LENGTHS[-1] // len(prompt.base)))  # different ones, which different experts read
    passes = {
        (name, n): _timed(part, entries, tokens[:n])
        for name, part, entries in (("base", model.base, base_cache), ("guide", model.guide, guide_cache))
        for n in LENGTHS
    }
    passes |= {(name, 1): _plain(each, prompt) for name, each in plain.items()}
    for (_, n), run in passes.items():
        if n == 1:
            run()  # what runs for the first time is compiled
    rounds: list[dict[tuple[str, int], float]] = []
    until = time.perf_counter() + ROUNDS_SECONDS
    while len(rounds) < ROUNDS.start or (len(rounds) < ROUNDS.stop and _has_time(model, until)):
        rounds.append({key: run() for key, run in passes.items()})
    medians = model.decide([median(times[key] for times in rounds) for key in passes])
    return dict(zip(passes, medians, strict=True))


def _timed(model: nn.Module, cache: Cache, tokens: Sequence[int]) -> Callable[[], float]:
    inputs = mx.array([list(tokens)])

    def run() -> float:
        before = Snapshot(cache, len(tokens))
        began = time.perf_counter()
        mx.eval(model(inputs, cache=cache)[:, -1])
        seconds = time.perf_counter() - began
        before.restore(cache, len(tokens), 0)
        return seconds

    return run


def key(models: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """The name of costs: it changes with machine, versions, BLAS, models (by digest) and settings."""
    machine = [versions(), str(device_name()), os.cpu_count(), parm_mlx.FAST_BLAS]
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    return digest(json.dumps([machine, threads, dict(models), dict(settings)], sort_keys=True).encode())


def folder() -> Path | None:
    """The folder of what was measured, to be deleted if it is to be measured again; None where there is no home."""
    with suppress(RuntimeError):
        return cache_folder() / FOLDER
    return None


def known() -> list[tuple[str, Costs]]:
    """What was measured on this machine: the names of models, and their costs, the latest for each name.

    There are others where versions, threads or settings have changed.
    """
    with suppress(OSError):
        paths = sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime) if (place := folder()) else []
        return sorted(dict(record for path in paths if (record := _read(path)) is not None).items(), key=itemgetter(0))
    return []


def recall(name: str) -> Costs | None:
    """Returns costs that were measured before; None where there are none, or none that can be used."""
    place = folder()
    record = _read(place / f"{name}.json") if place else None
    return record[1] if record else None


def _read(path: Path) -> tuple[str, Costs] | None:
    with suppress(InputError, OSError, KeyError, TypeError, AttributeError):
        record: Any = read_json(path, "costs", InputError)
        costs = Costs(**record["costs"])
        numbers = [*costs.base, *costs.guide, *costs.per_token.values()]
        usable = all(type(number) in (int, float) and 0 < number < float("inf") for number in numbers)
        whole = len(costs.base) == len(costs.guide) == len(LENGTHS) and "off" in costs.per_token
        if usable and whole and set(costs.per_token) <= set(WAYS):
            return str(record.get("models")), costs
    return None


def remember(name: str, models: str, costs: Costs) -> None:
    """Keeps costs; nothing happens where the cache folder cannot be written."""
    place = folder()
    if place is None:
        return
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=place, suffix=".partial", delete=False, encoding="utf-8") as file:
            json.dump({"models": models, "costs": asdict(costs)}, file, indent=1)
        Path(file.name).replace(place / f"{name}.json")
