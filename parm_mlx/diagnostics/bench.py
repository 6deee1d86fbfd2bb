"""The benchmark: which generations are compared, their times, and the figures and the picture of them.

Base alone, guide alone and guided decoding take turns on the same prompts. The floor of guided decoding is the time of
the base plus the time of the guide, in the same round.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.diagnostics.plan import Plan
from parm_mlx.diagnostics.subjects import Subjects, weight_bytes
from parm_mlx.drawing import STYLES
from parm_mlx.errors import InputError, RunError
from parm_mlx.files import disk_errors
from parm_mlx.guidance.costs import LENGTHS, pass_seconds
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import NOT_FINITE, Sampling
from parm_mlx.guidance.speculation import Drafting, Speculation
from parm_mlx.machine import weights_kept_in_memory
from parm_mlx.mlxlm import BatchGenerator, can_batch, generation_stream, make_prompt_cache
from parm_mlx.preference import Alpha
from parm_mlx.timing import TURN, Generation, Sample, SingleGeneration, Start, time_in_turns

BASE, GUIDE, GUIDED, SHARED, ONE_PASS = "base", "guide", "guided", "shared", "one-pass"
ENDLESS = 2**31

Way = Callable[[Sequence[Sequence[int]], Sequence[Alpha]], Generation]
Row = dict[str, Any]


@dataclass
class Case:
    """One way to generate, at one number of sequences and one prompt length."""

    name: str
    batch: int
    prompt: int  # tokens of each
    weights: int  # bytes
    memory: int  # bytes at its peak: its weights, its cache and its working memory
    samples: list[Sample] = field(default_factory=list)  # one per round


class BatchGeneration(Generation):
    """Several sequences, by mlx-lm's BatchGenerator: prompts of one length, each with a fresh prompt cache."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], caches: list[Cache]) -> None:
        rows = len(prompts)
        self._generator = BatchGenerator(model, max_tokens=ENDLESS, completion_batch_size=rows, prefill_batch_size=rows)
        uids = self._generator.insert([list(prompt) for prompt in prompts], caches=caches)
        self.sequences = [[] for _ in uids]
        self._sequence_of = dict(zip(uids, self.sequences, strict=True))

    def decode(self, steps: int) -> int:
        """Decodes ``steps`` tokens of each sequence."""
        for _ in range(steps):
            for response in self._generator.next_generated():
                self._sequence_of[response.uid].append(response.token)
        return steps * len(self.sequences)

    def close(self) -> None:
        """Closes the generator."""
        self._generator.close()


class DraftedGeneration(Generation):
    """One sequence, by speculative decoding; a step ends when all tokens of a check are taken."""

    def __init__(self, model: GuidedModel, prompt: Sequence[int], cache: Cache, drafting: Drafting) -> None:
        self.sequences = [[]]
        self._model, self._prompt, self._cache, self._drafting = model, list(prompt), cache, drafting

    def read(self) -> None:
        """Reads the prompt, up to the tokens of the first check."""
        last = prefill(self._model, self._cache, self._prompt, self._prompt)
        draft = self._drafting.make_cache()
        self._drafting.prefill(draft, self._prompt)
        self._speculation = Speculation(self._model, self._cache, last, self._drafting, Sampling(), draft=draft)
        self._tokens = iter(self._speculation)
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes at least ``steps`` tokens."""
        tokens = self.sequences[0]
        before = len(tokens)
        while len(tokens) < before + steps or len(tokens) <= len(self._speculation.read):
            tokens.append(next(self._tokens))
            if tokens[-1] == NOT_FINITE:
                raise RunError("the logits of these models are not finite, so their speed says nothing")
        count = self._speculation.count
        self.acceptance = count.rate
        self.passes = count.base_passes / count.tokens, count.guide_passes / count.tokens
        return len(tokens) - before


def _generation(
    model: nn.Module, preferring: bool, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]
) -> Generation:
    caches = [model.make_cache(alpha) if preferring else make_prompt_cache(model) for alpha in alphas]
    if len(prompts) == 1:
        return SingleGeneration(model, prompts[0], caches[0])
    return BatchGeneration(model, prompts, caches)


def _drafted(
    model: GuidedModel, drafting: Drafting, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]
) -> Generation:
    return DraftedGeneration(model, prompts[0], model.make_cache(alphas[0]), drafting)


def ways(subjects: Subjects, batch: int = 1) -> dict[str, tuple[list[nn.Module], Way]]:
    """Returns the ways to generate a batch, with the models that each needs; tokens are drafted for batch 1 only."""
    guided = subjects.guided
    both = {GUIDED: guided} | ({SHARED: subjects.shared} if subjects.shared else {})
    found: dict[str, tuple[list[nn.Module], Way]] = {BASE: ([guided.base], partial(_generation, guided.base, False))}
    once = {ONE_PASS: OnePassModel(subjects.shared.guide, subjects.shared.beta)} if subjects.shared else {}
    for name, model in {GUIDE: guided.guide, **both, **once}.items():
        found[name] = [model], partial(_generation, model, True)
    if batch == 1:
        for name, model in both.items():
            for drafter in ("guide", "base"):
                own = Drafting(None, subjects.drafted, by_guide=drafter == "guide")
                found[f"{name}+{drafter}"] = [model], partial(_drafted, model, own)
        if subjects.draft is not None:
            name, model = list(both.items())[-1]
            other = Drafting(subjects.draft, subjects.drafted)
            found[f"{name}+draft"] = [model, subjects.draft], partial(_drafted, model, other)
    return found


def pass_ratios(subjects: Subjects, plan: Plan) -> dict[str, dict[int, float]]:
    """Returns c(m) for base and guide, by m: the time of a pass over m tokens, of that over one."""
    prompt = subjects.prompts(1, plan.prompts[0])[0]
    seconds = pass_seconds(subjects.guided, PromptTokens(prompt, prompt))
    return {name: {m: seconds[name, m] / seconds[name, 1] for m in LENGTHS} for name in (BASE, GUIDE)}


def check_batches(subjects: Subjects, plan: Plan) -> None:
    """Raises InputError if mlx-lm cannot batch the models' prompt caches and the plan asks for it."""
    caches = make_prompt_cache(subjects.guided.base), subjects.guided.guide.make_cache()
    if max(plan.batches) > 1 and not all(map(can_batch, caches)):
        raise InputError("mlx-lm cannot generate several sequences at once with these models", hint="--batch 1")


def measure(subjects: Subjects, plan: Plan, stopped: Callable[[], bool] = lambda: False) -> Iterator[list[Case]]:
    """Measures one comparison after the other, until ``stopped``, which drops the round in progress.

    Yields:
        The cases of a comparison: first without samples, when every case has run alone for its memory, and then after
        each round with one more sample.
    """
    with weights_kept_in_memory():
        for batch, prompt in plan.groups():
            yield from _compare(subjects, plan, batch, prompt, stopped)
            if stopped():
                return


def _compare(
    subjects: Subjects, plan: Plan, batch: int, prompt: int, stopped: Callable[[], bool]
) -> Iterator[list[Case]]:
    prompts, alphas = subjects.prompts(batch, prompt), subjects.alphas(batch)
    starts: dict[str, Start] = {}
    cases = []
    for name, (models, way) in ways(subjects, batch).items():
        if stopped():
            return
        starts[name] = partial(way, prompts, alphas)
        weights = weight_bytes(*models)
        cases.append(Case(name, batch, prompt, weights, weights + _memory(starts[name])))
    yield cases
    for _ in range(plan.rounds):
        samples = time_in_turns(starts, plan.tokens, stopped)
        if samples is None:
            return
        for case in cases:
            case.samples.append(samples[case.name])
        yield cases


def _memory(start: Start) -> int:
    """Returns the peak bytes of a generation that runs alone, beyond those held before: its cache and work space."""
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    generation = start()
    try:
        generation.read()
        generation.decode(TURN)
        mx.synchronize(generation_stream)
    finally:
        generation.close()
    return max(0, mx.get_peak_memory() - held)


def summarise(cases: Sequence[Case]) -> list[Row]:
    """Returns the figures of one comparison, a row for each case.

    With t the seconds per token of each sequence, compared within a round:

        of_floor    = (t of the base + t of the guide) / t
        of_unguided = t of the base / t

    Returns:
        Rows for JSON. Ratios and rates are medians over the rounds, with the lowest and the highest as ``…_spread``.
    """
    times = {case.name: [s.decode / s.tokens * case.batch for s in case.samples] for case in cases}
    floor = [base + guide for base, guide in zip(times[BASE], times[GUIDE], strict=True)]
    return [_row(case, times[case.name], times[BASE], floor) for case in cases]


def _row(case: Case, times: list[float], base: list[float], floor: list[float]) -> Row:
    accepted = [s.acceptance for s in case.samples if s.acceptance is not None]
    return {
        "case": case.name,
        "batch": case.batch,
        "prompt": case.prompt,
        "rounds": len(times),
        **_spread("prefill_tokens_per_second", [case.batch * case.prompt / s.read for s in case.samples]),
        **_spread("decode_tokens_per_second", [case.batch / t for t in times]),
        **_spread("ms_per_token", [1000 * t for t in times]),
        **_spread("of_floor", [f / t for f, t in zip(floor, times, strict=True)]),
        **_spread("of_unguided", [b / t for b, t in zip(base, times, strict=True)]),
        "weights_mb": round(case.weights / 1e6, 1),
        "peak_mb": round(case.memory / 1e6, 1),
        "accepted": round(median(accepted), 3) if accepted else None,
        "passes": None if case.samples[-1].passes is None else [round(n, 3) for n in case.samples[-1].passes],
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    # Five significant digits are more than a measurement has.
    middle, low, high = (float(f"{value:.5g}") for value in (median(values), min(values), max(values)))
    return {name: middle, f"{name}_spread": [low, high]}


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draws decode tokens/s and their share of unguided decoding over the batch, and prefill tokens/s over the prompt.

    Lines go through medians; bars show the lowest and the highest round. The suffix of ``out`` decides the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    first = rows[0]
    batched = [row for row in rows if row["prompt"] == first["prompt"]]
    _lines(left, batched, "batch", "decode_tokens_per_second")
    speed = "tokens/s, all sequences"
    left.set(title=f"decoding, prompts of {first['prompt']} tokens", xlabel="sequences", ylabel=speed)
    _lines(middle, batched, "batch", "of_unguided")
    middle.set(title="speed relative to unguided decoding", xlabel="sequences")
    _lines(right, [row for row in rows if row["batch"] == first["batch"]], "prompt", "prefill_tokens_per_second")
    right.set(title=f"reading prompts, {first['batch']} at once", xlabel="prompt tokens", ylabel=speed)
    for axis in (left, middle, right):
        axis.set_ylim(bottom=0)
        axis.grid(color="0.9")
        axis.legend(fontsize="small", frameon=False)
    with disk_errors(out):
        figure.savefig(out, dpi=120)


def _lines(axis: Any, rows: Sequence[Row], across: str, what: str) -> None:
    for number, name in enumerate(dict.fromkeys(row["case"] for row in rows)):
        points = sorted((row[across], row[what], *row[f"{what}_spread"]) for row in rows if row["case"] == name)
        places, values, low, high = zip(*points, strict=True)
        below = [value - bound for value, bound in zip(values, low, strict=True)]
        above = [bound - value for value, bound in zip(values, high, strict=True)]
        colour, dashes, marker = STYLES[number % len(STYLES)]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "capsize": 2}
        axis.errorbar(places, values, yerr=[below, above], label=name, **style)
    axis.set_xscale("log", base=2)
    ticks = sorted({row[across] for row in rows})
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
