"""``parm-mlx demo``: a model answers questions, alone and at several preferences."""

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from parm_mlx.cli import console
from parm_mlx.cli.answers import Job, answers, stream
from parm_mlx.cli.options import ALPHAS, BASE_ALONE, GuideOptions, ModelOptions, declared, flag, grouped
from parm_mlx.cli.reply import say
from parm_mlx.cli.session import open_session, read_alpha
from parm_mlx.errors import InputError
from parm_mlx.preference import Alpha, format_alpha
from parm_mlx.ranges import MAX_TOKENS, SEED, TEMP
from parm_mlx.settings import SamplingSettings

if TYPE_CHECKING:
    from parm_mlx.rewards.registry import Reward

QUESTIONS = 3
CORNERS = (BASE_ALONE, "1,0", "0.5,0.5", "0,1")


@dataclass(frozen=True)
class Show:
    """How a pair of models is shown."""

    temp: float
    max_tokens: int


SHOWS = {"smollm2": Show(0.7, 40), "bundled": Show(1.0, 120)}


@grouped
def demo(
    prompt: Annotated[
        list[str] | None,
        flag(
            "Ask this instead; may be repeated.", default_text="questions that the PARM has not seen", metavar="<str>"
        ),
    ] = None,
    alpha: Annotated[list[str] | None, flag(ALPHAS, default_text=", ".join(CORNERS), metavar="<str>")] = None,
    model: Annotated[
        Literal["smollm2", "bundled"] | None,
        flag("The models: SmolLM2-135M, or the small ones of this package.", default_text="smollm2"),
    ] = None,
    beta: Annotated[str | None, declared(GuideOptions, "beta")] = None,
    temp: Annotated[float | None, flag("Sampling temperature; 0 is greedy.", TEMP, default_text="0.7")] = None,
    max_tokens: Annotated[int | None, flag("Longest answer, in tokens.", MAX_TOKENS, default_text="40")] = None,
    seed: Annotated[int, flag("Seed of the choice of questions and of the sampling.", SEED)] = 0,
) -> None:
    """Show what a preference does: the base alone and several preferences, side by side, with measured scores.

    SmolLM2-135M (98 MB) is fetched on first use. The small models need no network and know everyday questions only.

    \b
    Examples:
      parm-mlx demo
      parm-mlx demo --prompt "How do I bake bread?" --alpha 0.8,0.2
      parm-mlx demo --model bundled
    """
    session = open_session(ModelOptions(model=model, beta=beta))
    from parm_mlx.guidance.named import held_out_prompts

    objectives, show = session.objectives, SHOWS[session.base]
    rewards = _rewards(objectives)
    alphas = [read_alpha(spec, objectives) for spec in alpha or CORNERS]
    questions = prompt or random.Random(seed).sample(held_out_prompts(session.base), QUESTIONS)
    sampling = SamplingSettings(temp=show.temp if temp is None else temp, seed=seed)
    scores: dict[Alpha | None, list[dict[str, float]]] = defaultdict(list)

    def title(job: Job) -> None:
        number, _, weights = job
        if weights == alphas[0]:
            console.echo(f"\n▌ {questions[number]}\n")
        console.echo(f"  [{format_alpha(weights, objectives)}]")

    def score(job: Job, answer: str) -> None:
        _, text, weights = job
        found = {name: reward([text], [answer])[0] for name, reward in rewards.items()}
        scores[weights].append(found)
        console.echo("  →  " + "  ".join(f"{name} {value:.1f}" for name, value in found.items()) + "\n")

    first, *rest = [(number, text, weights) for number, text in enumerate(questions) for weights in alphas]
    longest = max_tokens or show.max_tokens
    title(first)
    score(first, stream(session, first, sampling, longest, indent="  ", mark_cut=True).text)
    for job, answer in answers(session, rest, sampling, longest):
        title(job)
        say(answer, indent="  ")
        score(job, answer.text)
    console.echo(_summary(objectives, scores))
    console.note(
        "a short answer scores by chance, too: parm-mlx evaluate asks many questions (the scores: docs/rewards.md)"
    )
    named = "" if session.base == "smollm2" else f" --model {session.base}"
    me = console.program()
    console.note(f'next: {me} chat{named} --alpha 0.5,0.5   or   {me} demo{named} --prompt "How do I bake bread?"')


def _rewards(objectives: tuple[str, ...]) -> "dict[str, Reward]":
    """Returns the scorers of the objectives that are installed."""
    from parm_mlx.rewards.registry import load_rewards

    found: dict[str, Reward] = {}
    for name in objectives:
        try:
            found |= load_rewards([f"{name}={name}"])
        except InputError as error:
            console.note(f"{name} is not scored: {error} ({error.hint})")
    return found


def _summary(objectives: tuple[str, ...], scores: dict[Alpha | None, list[dict[str, float]]]) -> str:
    """Returns lines of each objective's mean score: the base's, and from the lowest to the highest weight."""
    parts = []
    for i, name in enumerate(objectives):
        means = {
            weights: sum(row[name] for row in rows) / len(rows)
            for weights, rows in scores.items()
            if all(name in row for row in rows)
        }
        low, high = (choose(filter(None, means), key=lambda a: a[i], default=None) for choose in (min, max))
        if low is None or high is None or low[i] == high[i]:
            continue
        alone = f", the base alone {means[None]:.1f}" if None in means else ""
        parts.append(
            f"\n  {name} {means[low]:.1f} → {means[high]:.1f} as its weight goes {low[i]:g} → {high[i]:g}{alone}"
        )
    return "What moved (mean score):" + ("".join(parts) or " nothing, there is one preference only")
