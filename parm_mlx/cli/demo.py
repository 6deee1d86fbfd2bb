"""``parm-mlx demo``: the bundled model answers unseen questions at several preferences."""

import json
import random
from collections import defaultdict
from typing import Annotated

from parm_mlx.cli import console
from parm_mlx.cli.generate import Job, answers
from parm_mlx.cli.options import ALPHAS, GuideOptions, MaxTokens, ModelOptions, declared, flag, grouped
from parm_mlx.cli.session import open_session, read_alpha
from parm_mlx.preference import Alpha, format_alpha, parse_alpha
from parm_mlx.ranges import SEED
from parm_mlx.settings import SamplingSettings

QUESTIONS = 3
WEIGHTS = (1.0, 0.5, 0.0)


@grouped
def demo(
    prompt: Annotated[
        list[str] | None, flag("Ask this instead; may be repeated.", default_text="unseen questions", metavar="<str>")
    ] = None,
    alpha: Annotated[list[str] | None, flag(ALPHAS, default_text="1,0 and 0.5,0.5 and 0,1", metavar="<str>")] = None,
    beta: Annotated[str, declared(GuideOptions, "beta")] = "1.0",
    temp: Annotated[float, declared(SamplingSettings, "temp")] = 1.0,
    max_tokens: MaxTokens = 120,
    seed: Annotated[int, flag("Seed of the choice of questions and of the sampling.", SEED)] = 0,
) -> None:
    """Show what a preference does: the same questions at several preferences, with measured scores.

    Runs on the bundled model, which is small and knows everyday questions only; nothing is downloaded.

    \b
    Examples:
      parm-mlx demo
      parm-mlx demo --prompt "How do I bake bread?" --alpha 0.8,0.2
    """
    session = open_session(ModelOptions(beta=beta))
    from parm_mlx.guidance.loading import BUNDLED
    from parm_mlx.rewards.builtin import SCORERS

    objectives = session.objectives
    if alpha:
        alphas = [read_alpha(spec, objectives) for spec in alpha]
    else:
        alphas = [parse_alpha((weight, 1 - weight), objectives) for weight in WEIGHTS]
    questions = prompt
    if not questions:  # those that the bundled model was never trained on
        unseen: list[str] = json.loads((BUNDLED / "held_out_prompts.json").read_text(encoding="utf-8"))
        questions = random.Random(seed).sample(unseen, QUESTIONS)
    jobs: list[Job] = [(number, text, weights) for number, text in enumerate(questions) for weights in alphas]
    scores: dict[Alpha, list[list[float]]] = defaultdict(list)
    asked = None
    for (_, text, weights), answer in answers(session, jobs, SamplingSettings(temp=temp, seed=seed), max_tokens):
        if text != asked:
            console.echo(f"\n▌ {text}\n")
            asked = text
        scores[weights].append([SCORERS[name](answer.text) for name in objectives])
        measured = "  ".join(f"{name} {score:.1f}" for name, score in zip(objectives, scores[weights][-1], strict=True))
        console.echo(f"  [{format_alpha(weights, objectives)}]  →  {measured}")
        console.echo(f"  {answer.text.strip()}\n")
    console.echo(_summary(objectives, scores))
    me = console.program()
    console.note(f'next: {me} chat --alpha 0.5,0.5   or   {me} demo --prompt "How do I bake bread?"')


def _summary(objectives: tuple[str, ...], scores: dict[Alpha, list[list[float]]]) -> str:
    """Returns a line of each objective's mean score from its lowest to its highest weight."""
    parts = []
    for i, name in enumerate(objectives):
        low, high = min(scores, key=lambda a: a[i]), max(scores, key=lambda a: a[i])
        if low[i] == high[i]:
            continue
        before, after = (sum(row[i] for row in scores[a]) / len(scores[a]) for a in (low, high))
        parts.append(f"{name} {before:.1f} → {after:.1f} as its weight goes {low[i]:g} → {high[i]:g}")
    return "What moved (mean score): " + ("; ".join(parts) or "nothing, there is one preference only")
