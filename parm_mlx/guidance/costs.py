"""Costs of passes on this machine, and what follows for decoding one answer at a time.

What pays depends on the machine and the models: how much longer a pass over m tokens takes than one over a single
token, c(m); whether two rows in one pass take longer than two passes; and how many drafts of guide and base are kept.
All of it is measured on a few greedy answers, once for each machine and each set of models, and kept in the user's
cache folder.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.errors import InputError
from parm_mlx.files import cache_folder, read_json
from parm_mlx.fingerprint import digest
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting, sharpness
from parm_mlx.kernels import widened
from parm_mlx.kernels.combine import combine_logits
from parm_mlx.machine import device_name, versions
from parm_mlx.mlxlm import Snapshot

FILE = "costs.json"
QUESTIONS = (
    "How do I keep a tomato plant alive on a small balcony?",
    "My friend is sad today. What can I say to her?",
    "What should I cook for dinner?",
)
LENGTHS = (1, 2, 4, 8, 12)  # tokens of a pass
ROUNDS = 2
TOKENS = 16  # decoded after each question
GAIN = 1.05  # by which another way must be faster than plain decoding


@dataclass(frozen=True)
class Costs:
    """Costs of one answer at a time.

    Attributes:
        base: Seconds of a pass of the base over each of ``LENGTHS``.
        guide: Those of the guide.
        together: Seconds of one pass over a token of both, where they share weights.
        kept: Share of the drafts that would be kept, by drafter.
        per_token: Seconds per token of an answer: ``"off"`` without drafts, and by drafter, ``"guide"`` and ``"base"``.
    """

    base: list[float]
    guide: list[float]
    together: float | None = None
    kept: dict[str, float] = field(default_factory=dict)
    per_token: dict[str, float] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """True if base and guide are faster in two passes than as two rows of one."""
        return self.together is not None and self.base[0] + self.guide[0] < self.together / GAIN

    @property
    def drafter(self) -> str:
        """The fastest way to decode one answer: ``"guide"``, ``"base"`` or ``"off"``."""
        fastest = min(self.per_token, key=self.per_token.__getitem__)
        return fastest if self.per_token[fastest] * GAIN < self.per_token["off"] else "off"

    def __str__(self) -> str:
        """What was measured and what follows, in a line."""
        speeds = {name: f"{1 / seconds:.3g}" for name, seconds in self.per_token.items()}
        parts = [f"{speeds.pop('off')} tokens/s without drafts"]
        parts += [f"{speed} with {name} drafts" for name, speed in speeds.items()]
        if self.together is not None:
            parts.append(f"{'two passes' if self.apart else 'one pass'} for both")
        chosen = "no drafts" if self.drafter == "off" else f"{self.drafter} drafts"
        return f"{', '.join(parts)}: {chosen}"


def measure(model: GuidedModel, prompts: Sequence[PromptTokens], ends: frozenset[int] = frozenset()) -> Costs:
    """Measures passes, and answers prompts greedily to see which drafts would be kept.

    Args:
        model: Base and guide.
        prompts: What answers are given to, at the model's own preference and β.
        ends: The end-of-sequence tokens.
    """
    seconds = pass_seconds(model, prompts[0])
    times = {name: [seconds[name, n] for n in LENGTHS] for name in ("base", "guide")}
    together = seconds.get(("together", 1))
    off = times["base"][0] + times["guide"][0]
    per_token = {"off": off if together is None else min(together, off)}
    kept: dict[str, float] = {}
    pairs = [("guide", "base"), ("base", "guide")]
    best = min(times[drafter][0] + times[checker][-1] / LENGTHS[-1] for drafter, checker in pairs)  # all are kept
    if best * GAIN > per_token["off"]:
        return Costs(times["base"], times["guide"], together, kept, per_token)
    fates = [fate for prompt in prompts for fate in _fates(model, prompt, ends)]
    for drafter, checker in pairs:
        if rounds := _rounds([fate[drafter] for fate in fates], Drafting(None)):
            drafted, accepted, tokens = (sum(column) for column in zip(*rounds, strict=True))
            checks = sum(float(np.interp(ahead, LENGTHS, times[checker])) for ahead, _, _ in rounds)
            per_token[drafter] = (drafted * times[drafter][0] + checks) / tokens
            kept[drafter] = accepted / drafted
    return Costs(times["base"], times["guide"], together, kept, per_token)


def _fates(model: GuidedModel, prompt: PromptTokens, ends: frozenset[int]) -> list[dict[str, tuple[bool, float]]]:
    """For each token of a greedy answer: would a draft of guide and of base be it, and how sure would each be?"""
    cache = model.make_cache()
    token = prefill(model, cache, prompt.base, prompt.guide)
    base_cache, guide_cache = model.split_cache(cache)
    sharper = sharpness(model, guide_cache)
    fates: list[dict[str, tuple[bool, float]]] = []
    for _ in range(TOKENS):
        inputs = mx.array([[token]])
        base, guide = model.base(inputs, cache=base_cache)[:, -1], model.guide(inputs, cache=guide_cache)[:, -1]
        token = _number(mx.argmax(combine_logits(base[None], guide[None], guide_cache[-1].strength)))
        if token in ends:
            break
        fate = {}
        for name, logits in (("base", base), ("guide", guide)):
            scores = widened(logits[0]) * sharper[name]
            top = mx.max(scores) - mx.logsumexp(scores)
            fate[name] = _number(mx.argmax(scores)) == token, _number(mx.exp(top))
        fates.append(fate)
    return fates


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


def pass_seconds(model: GuidedModel, prompt: PromptTokens) -> dict[tuple[str, int], float]:
    """Seconds of passes after a prompt, in turns, by name and number of tokens; the shortest of ``ROUNDS``."""
    cache = model.make_cache()
    prefill(model, cache, prompt.base, prompt.guide)
    base_cache, guide_cache = model.split_cache(cache)
    guide_cache[-1].first_token = None
    passes: dict[tuple[str, int], Callable[[], float]] = {}
    for name, part, entries in (("base", model.base, base_cache), ("guide", model.guide, guide_cache)):
        for n in LENGTHS:
            passes[name, n] = _timed(part, entries, prompt.base[-1], n)
    if isinstance(model, SharedModel):
        both = model.make_cache()
        prefill(model, both, prompt.base, prompt.base)
        passes["together", 1] = _timed(model, both, prompt.base[-1], 1)
    for (_, n), run in passes.items():
        if n == 1:
            run()  # what runs for the first time is compiled
    rounds = [{key: run() for key, run in passes.items()} for _ in range(ROUNDS)]
    return {key: min(times[key] for times in rounds) for key in passes}


def _timed(model: nn.Module, cache: Cache, token: int, n: int) -> Callable[[], float]:
    inputs = mx.array([[token] * n])

    def run() -> float:
        before = Snapshot(cache, n)
        began = time.perf_counter()
        mx.eval(model(inputs, cache=cache)[:, -1])
        seconds = time.perf_counter() - began
        before.restore(cache, n, 0)
        return seconds

    return run


def key(models: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """The key of costs that were measured: it changes with the machine, versions, models (by digest) and settings."""
    return digest(json.dumps([versions(), str(device_name()), dict(models), dict(settings)], sort_keys=True).encode())


def known() -> dict[str, Any]:
    """Returns what was measured on this machine, by key; nothing where the file cannot be read."""
    with suppress(InputError):
        return read_json(cache_folder() / FILE, "costs", InputError)
    return {}


def recall(name: str) -> Costs | None:
    """Returns costs that were measured before."""
    with suppress(KeyError, TypeError, AttributeError):
        costs = Costs(**known()[name]["costs"])
        if len(costs.base) == len(costs.guide) == len(LENGTHS) and "off" in costs.per_token:
            return costs
    return None


def remember(name: str, models: str, costs: Costs) -> None:
    """Keeps costs; nothing happens where the cache folder cannot be written."""
    path = cache_folder() / FILE
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{path}.partial")
        partial.write_text(json.dumps(known() | {name: {"models": models, "costs": asdict(costs)}}, indent=1))
        partial.replace(path)
