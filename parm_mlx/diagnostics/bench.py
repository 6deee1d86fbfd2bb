"""The benchmark: which generations are compared, and their times.

Base alone, guide alone and guided decoding take turns on the same prompts. The floor of guided decoding is the time of
the base plus the time of the guide, in the same round.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import mlx.nn as nn

from parm_mlx.diagnostics.plan import Plan
from parm_mlx.diagnostics.runs import Batch, Drafted, Run, Single
from parm_mlx.diagnostics.subjects import Subjects, weight_bytes
from parm_mlx.diagnostics.timing import Sample, Start, memory_of, time_in_turns
from parm_mlx.errors import InputError
from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.machine import weights_kept_in_memory
from parm_mlx.mlxlm import can_batch, make_prompt_cache
from parm_mlx.preference import Alpha

BASE, GUIDE, GUIDED, SHARED = "base", "guide", "guided", "shared"


@dataclass
class Case:
    """One way to generate, at one number of sequences and one prompt length.

    Attributes:
        name: Of the way.
        batch: Number of sequences.
        prompt: Prompt tokens of each.
        weights: Bytes of its weights.
        memory: Bytes at its peak: its weights, its cache and its working memory.
        samples: Its times, one a round.
    """

    name: str
    batch: int
    prompt: int
    weights: int
    memory: int
    samples: list[Sample] = field(default_factory=list)


Way = Callable[[Sequence[Sequence[int]], Sequence[Alpha]], Run]


def plain(model: nn.Module, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]) -> Run:
    """Generation by a model that knows no preference."""
    return _run(model, prompts, [make_prompt_cache(model) for _ in alphas])


def preferring(model: nn.Module, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]) -> Run:
    """Generation by a guide or a guided model, each sequence under its own preference."""
    return _run(model, prompts, [model.make_cache(alpha) for alpha in alphas])


def drafted(model: GuidedModel, drafting: Drafting, prompts: Sequence[Sequence[int]], alphas: Sequence[Alpha]) -> Run:
    """Speculative generation of one sequence."""
    return Drafted(model, prompts[0], model.make_cache(alphas[0]), drafting)


def _run(model: nn.Module, prompts: Sequence[Sequence[int]], caches: list[Cache]) -> Run:
    return Single(model, prompts[0], caches[0]) if len(prompts) == 1 else Batch(model, prompts, caches)


def ways(subjects: Subjects, batch: int = 1) -> dict[str, tuple[list[nn.Module], Way]]:
    """The ways to generate so many sequences at once, with the models that each takes.

    Tokens are drafted for one sequence only.
    """
    guided = subjects.guided
    both = {GUIDED: guided} | ({SHARED: subjects.shared} if subjects.shared else {})
    found: dict[str, tuple[list[nn.Module], Way]] = {
        BASE: ([guided.base], partial(plain, guided.base)),
        GUIDE: ([guided.guide], partial(preferring, guided.guide)),
    }
    found |= {name: ([model], partial(preferring, model)) for name, model in both.items()}
    if batch == 1:
        own = Drafting(None, subjects.drafted)
        found |= {f"{name}+self": ([model], partial(drafted, model, own)) for name, model in both.items()}
        if subjects.draft is not None:
            name, model = list(both.items())[-1]
            other = Drafting(subjects.draft, subjects.drafted)
            found[f"{name}+draft"] = [model, subjects.draft], partial(drafted, model, other)
    return found


def check_batches(subjects: Subjects, plan: Plan) -> None:
    """Checks that the models can generate as many sequences at once as planned.

    Raises:
        InputError: mlx-lm cannot batch their prompt caches.
    """
    caches = make_prompt_cache(subjects.guided.base), subjects.guided.guide.make_cache()
    if max(plan.batches) > 1 and not all(map(can_batch, caches)):
        raise InputError("mlx-lm cannot generate several sequences at once with these models", hint="--batch 1")


def measure(subjects: Subjects, plan: Plan, stopped: Callable[[], bool] = lambda: False) -> Iterator[list[Case]]:
    """Measures, one comparison after the other.

    Args:
        subjects: The models.
        plan: What to measure.
        stopped: Asked before every turn; the round in progress is dropped then.

    Yields:
        The cases of a comparison, after each of its rounds: first without a sample, when every case has run alone
        for its memory, and then with one sample more each time.
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
