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
from parm_mlx.errors import InputError
from parm_mlx.files import disk_errors
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import prefill
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.speculation import Drafting, Speculation
from parm_mlx.machine import weights_kept_in_memory
from parm_mlx.mlxlm import BatchGenerator, can_batch, generation_stream, make_prompt_cache
from parm_mlx.preference import Alpha
from parm_mlx.timing import TURN, Generation, Sample, SingleGeneration, Start, time_in_turns

BASE, GUIDE, GUIDED, SHARED = "base", "guide", "guided", "shared"
ENDLESS = 2**31

Way = Callable[[Sequence[Sequence[int]], Sequence[Alpha]], Generation]
Row = dict[str, Any]


@dataclass
class Case:
    """One way to generate, at one number of sequences and one prompt length.

    Attributes:
        name: Name of the way.
        batch: Number of sequences.
        prompt: Prompt tokens of each.
        weights: Bytes of its weights.
        memory: Bytes at its peak: its weights, its cache and its working memory.
        samples: Its times, one per round.
    """

    name: str
    batch: int
    prompt: int
    weights: int
    memory: int
    samples: list[Sample] = field(default_factory=list)


class BatchGeneration:
    """Several sequences, by mlx-lm's BatchGenerator.

    Args:
        model: An mlx-lm model.
        prompts: Token ids, the same number for each sequence.
        caches: A fresh prompt cache for each.
    """

    acceptance: float | None = None

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], caches: list[Cache]) -> None:
        rows = len(prompts)
        self._generator = BatchGenerator(model, max_tokens=ENDLESS, completion_batch_size=rows, prefill_batch_size=rows)
        uids = self._generator.insert([list(prompt) for prompt in prompts], caches=caches)
        self.sequences: list[list[int]] = [[] for _ in uids]
        self._sequence_of = dict(zip(uids, self.sequences, strict=True))

    def read(self) -> None:
        """Reads the prompts, up to the first token of each sequence."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes ``steps`` tokens of each sequence."""
        for _ in range(steps):
            for response in self._generator.next_generated():
                self._sequence_of[response.uid].append(response.token)
        return steps * len(self.sequences)

    def close(self) -> None:
        """Ends the generator."""
        self._generator.close()


class DraftedGeneration:
    """One sequence, by speculative decoding; a step ends when all tokens of a check are taken.

    Args:
        model: A guided model.
        prompt: Token ids.
        cache: A fresh prompt cache.
        drafting: The draft model, or the base.
    """

    def __init__(self, model: GuidedModel, prompt: Sequence[int], cache: Cache, drafting: Drafting) -> None:
        self.sequences: list[list[int]] = [[]]
        self._model, self._prompt, self._cache, self._drafting = model, list(prompt), cache, drafting

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self._speculation.count.rate

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
        return len(tokens) - before

    def close(self) -> None:
        """Nothing is held."""


def _plain(model: nn.Module, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]) -> Generation:
    """Starts a generation by a model without preferences."""
    return _generation(model, prompts, [make_prompt_cache(model) for _ in alphas])


def _preferring(model: nn.Module, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]) -> Generation:
    """Starts a generation by a guide or a guided model, each sequence with its own preference."""
    return _generation(model, prompts, [model.make_cache(alpha) for alpha in alphas])


def _generation(model: nn.Module, prompts: Sequence[Sequence[int]], caches: list[Cache]) -> Generation:
    if len(prompts) == 1:
        return SingleGeneration(model, prompts[0], caches[0])
    return BatchGeneration(model, prompts, caches)


def _drafted(
    model: GuidedModel, drafting: Drafting, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]
) -> Generation:
    """Starts a speculative generation of one sequence."""
    return DraftedGeneration(model, prompts[0], model.make_cache(alphas[0]), drafting)


def ways(subjects: Subjects, batch: int = 1) -> dict[str, tuple[list[nn.Module], Way]]:
    """Returns the ways to generate a batch, with the models that each needs.

    Tokens are drafted for one sequence only.
    """
    guided = subjects.guided
    both = {GUIDED: guided} | ({SHARED: subjects.shared} if subjects.shared else {})
    found: dict[str, tuple[list[nn.Module], Way]] = {
        BASE: ([guided.base], partial(_plain, guided.base)),
        GUIDE: ([guided.guide], partial(_preferring, guided.guide)),
    }
    found |= {name: ([model], partial(_preferring, model)) for name, model in both.items()}
    if batch == 1:
        own = Drafting(None, subjects.drafted)
        found |= {f"{name}+self": ([model], partial(_drafted, model, own)) for name, model in both.items()}
        if subjects.draft is not None:
            name, model = list(both.items())[-1]
            other = Drafting(subjects.draft, subjects.drafted)
            found[f"{name}+draft"] = [model, subjects.draft], partial(_drafted, model, other)
    return found


def check_batches(subjects: Subjects, plan: Plan) -> None:
    """Checks that the models can generate the planned batches.

    Raises:
        InputError: mlx-lm cannot batch their prompt caches.
    """
    caches = make_prompt_cache(subjects.guided.base), subjects.guided.guide.make_cache()
    if max(plan.batches) > 1 and not all(map(can_batch, caches)):
        raise InputError("mlx-lm cannot generate several sequences at once with these models", hint="--batch 1")


def measure(subjects: Subjects, plan: Plan, stopped: Callable[[], bool] = lambda: False) -> Iterator[list[Case]]:
    """Measures one comparison after the other.

    Args:
        subjects: The models.
        plan: What to measure.
        stopped: Asked before every turn; the round in progress is dropped then.

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
        cases.append(Case(name, batch, prompt, weights, weights + memory_of(starts[name])))
    yield cases
    for _ in range(plan.rounds):
        samples = time_in_turns(starts, plan.tokens, stopped)
        if samples is None:
            return
        for case in cases:
            case.samples.append(samples[case.name])
        yield cases


def memory_of(start: Start) -> int:
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

    Args:
        cases: The cases of one comparison with base and guide, with one sample per round.

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
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: _digits(median(values)), f"{name}_spread": [_digits(min(values)), _digits(max(values))]}


def _digits(value: float) -> float:
    """Rounds to five significant digits, more than a measurement has."""
    return float(f"{value:.5g}")


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draws decode tokens/s and their share of unguided decoding over the batch, and prefill tokens/s over the prompt.

    Lines go through medians; bars show the lowest and the highest round.

    Args:
        rows: The rows of all comparisons.
        out: The picture; its suffix decides the format.

    Raises:
        ImportError: matplotlib is not installed; see :func:`parm_mlx.drawing.can_draw`.
        RunError: The picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    first = rows[0]
    batched = [row for row in rows if row["prompt"] == first["prompt"]]
    read = [row for row in rows if row["batch"] == first["batch"]]
    _lines(left, batched, "batch", "decode_tokens_per_second")
    left.set(
        title=f"decoding, prompts of {first['prompt']} tokens", xlabel="sequences", ylabel="tokens/s, all sequences"
    )
    _lines(middle, batched, "batch", "of_unguided")
    middle.set(title="speed relative to unguided decoding", xlabel="sequences")
    _lines(right, read, "prompt", "prefill_tokens_per_second")
    right.set(
        title=f"reading prompts, {first['batch']} at once", xlabel="prompt tokens", ylabel="tokens/s, all sequences"
    )
    for axis in (left, middle, right):
        axis.set_ylim(bottom=0)
        axis.grid(color="0.9")
        axis.legend(fontsize="small", frameon=False)
    with disk_errors(out):
        figure.savefig(out, dpi=120)


def _lines(axis: Any, rows: Sequence[Row], across: str, what: str) -> None:
    """Draws a line for each case."""
    for number, name in enumerate(dict.fromkeys(row["case"] for row in rows)):
        points = sorted((row[across], row[what], *row[f"{what}_spread"]) for row in rows if row["case"] == name)
        places, values, low, high = zip(*points, strict=True)
        below = [value - bound for value, bound in zip(values, low, strict=True)]
        above = [bound - value for value, bound in zip(values, high, strict=True)]
        colour, dashes, marker = STYLES[number % len(STYLES)]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "capsize": 2}
        axis.errorbar(places, values, yerr=[below, above], label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row[across] for row in rows}), [str(x) for x in sorted({row[across] for row in rows})])
    axis.minorticks_off()
