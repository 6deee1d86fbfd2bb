"""Measures the bundled pair on held-out questions and writes its model card.

    python examples/bundled/measure.py

Every held-out question is answered at eleven preferences and by the base alone, at temperature 1 with fixed seeds.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parm_mlx  # loads the fast BLAS before mlx

# isort: split
import card
import mlx.core as mx
import mlx.nn as nn
import world

from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.machine import keep_freed_memory
from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.rewards.builtin import SCORERS

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "parm_mlx" / "models"
SEED = 2026
MAX_TOKENS = 180
SHOWN = 10


@dataclass(frozen=True)
class Sample:
    """One answer, with its tokens and whether it ended by itself."""

    text: str
    tokens: list[int]
    ended: bool


def held_out_questions(count: int) -> list[world.Question]:
    """Different held-out questions, always the same."""
    rng = random.Random(SEED)
    found: dict[str, world.Question] = {}
    while len(found) < count:
        question = world.draw(rng, held_out=True)
        found.setdefault(question.text, question)
    return list(found.values())


def answer_all(model: Any, tokenizer: Any, prompts: list[PromptTokens], alpha: Alpha | None) -> list[Sample]:
    """One answer per prompt at temperature 1, guided at α or, without one, by the base alone."""
    sampling = Sampling(temp=1.0, seed=SEED)
    requests = [Request(prompt, alpha, sampling, number) for number, prompt in enumerate(prompts)]
    answers: dict[int, Sample] = {}
    for answer in generate_batch(model, tokenizer, requests, MAX_TOKENS):
        answers[answer.index] = Sample(answer.text, answer.tokens, answer.finish_reason == "stop")
    return [answers[i] for i in range(len(prompts))]


def base_perplexity(base: nn.Module, end: int, prompts: Sequence[PromptTokens], samples: Sequence[Sample]) -> float:
    """Perplexity per token of answers under the base alone, the end mark included."""
    total, count = 0.0, 0
    for prompt, sample in zip(prompts, samples, strict=True):
        answer = [*sample.tokens, end] if sample.ended else sample.tokens
        ids = mx.array([prompt.base + answer])
        losses = nn.losses.cross_entropy(base(ids[:, :-1]), ids[:, 1:])[0, len(prompt.base) - 1 :]
        total += losses.sum().item()
        count += len(answer)
    return float(mx.exp(mx.array(total / count)).item())


def on_topic(question: world.Question, text: str) -> bool:
    """Whether an answer says at least one thing that the world knows about the topic of its question, word for word."""
    facts = (fact for kind in question.topic.facts.values() for fact in kind)
    return any(fact.text.rstrip(".?").lower() in text.lower() for fact in facts)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties at their mean."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one of them never changes."""
    if min(len(set(x)), len(set(y))) < 2:
        return 0.0
    return statistics.correlation(ranks(x), ranks(y))


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Area dominated by points in two dimensions, above a reference point; larger is better on both axes."""
    area, height = 0.0, reference[1]
    for x, y in sorted(points, reverse=True):
        if x > reference[0] and y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area


def describe(
    model: Any, tokenizer: Any, questions: list[world.Question], prompts: list[PromptTokens], samples: list[Sample]
) -> dict[str, Any]:
    """Mean scores and quality of the answers at one preference."""
    return {
        "scores": {name: statistics.mean(SCORERS[name](s.text) for s in samples) for name in model.objectives},
        "on_topic": statistics.mean(on_topic(q, s.text) for q, s in zip(questions, samples, strict=True)),
        "ended": statistics.mean(s.ended for s in samples),
        "base_perplexity": base_perplexity(model.base, tokenizer.eos_token_id, prompts, samples),
    }


def summarise(names: Sequence[str], rows: list[dict[str, Any]], plain: list[Sample]) -> dict[str, Any]:
    """Spearman, the difference of the corners, HV and MIP.

    Args:
        names: The two objectives.
        rows: One per α: ``alpha``, ``scores``.
        plain: The base's own answers; they give the unit (one standard deviation) and the origin of HV and MIP.
    """
    unit = {name: statistics.stdev(SCORERS[name](s.text) for s in plain) for name in names}
    centre = {name: statistics.mean(SCORERS[name](s.text) for s in plain) for name in names}
    points = [[(row["scores"][name] - centre[name]) / unit[name] for name in names] for row in rows]
    found: dict[str, Any] = {"unguided_sd": unit, "hv_reference": [-2.0, -2.0]}
    for i, name in enumerate(names):
        weights, means = [row["alpha"][i] for row in rows], [row["scores"][name] for row in rows]
        low, high = means[weights.index(min(weights))], means[weights.index(max(weights))]
        found[name] = {"spearman": spearman(weights, means), "corner_difference_sd": (high - low) / unit[name]}
    found["hv"] = hypervolume(points, found["hv_reference"])
    found["mip"] = statistics.mean(
        sum(a * p for a, p in zip(row["alpha"], point, strict=True)) for row, point in zip(rows, points, strict=True)
    )
    return found


def measure(model: Any, tokenizer: Any, count: int, step: float) -> dict[str, Any]:
    """Answers held-out questions by the base alone and at every α of a grid, and measures the answers.

    Args:
        model: The guided model.
        tokenizer: The tokenizer of base and guide.
        count: Number of questions.
        step: Distance between neighbouring weights of the grid.
    """
    begin = time.perf_counter()
    questions = held_out_questions(count)
    prompter = Prompter(tokenizer, tokenizer)
    prompts = [prompter(question.text) for question in questions]
    plain = answer_all(model, tokenizer, prompts, None)
    unguided = describe(model, tokenizer, questions, prompts, plain)
    print("unguided", json.dumps(unguided), flush=True)
    rows, shown = [], []
    for number, alpha in enumerate(simplex_grid(2, step)):
        samples = answer_all(model, tokenizer, prompts, alpha)
        rows.append({"alpha": list(alpha)} | describe(model, tokenizer, questions, prompts, samples))
        print(json.dumps(rows[-1]), flush=True)
        shown.append((questions[number % count].text, alpha, samples[number % count].text))
    return {
        "questions": len(questions),
        "unguided": unguided,
        "guided": rows,
        "summary": summarise(model.objectives, rows, plain),
        "answers": [{"question": q, "alpha": list(a), "answer": t} for q, a, t in shown[:SHOWN]],
        "measuring_minutes": round((time.perf_counter() - begin) / 60, 1),
    }


def main() -> None:
    """Measures, prints and writes results.json and the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=MODELS / "base")
    parser.add_argument("--parm", type=Path, default=MODELS / "parm")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bundled")
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--no-card", action="store_true", help="only print and write results.json to --work")
    args = parser.parse_args()
    keep_freed_memory()

    model, tokenizer = parm_mlx.load(args.base, args.parm)
    results = measure(model, tokenizer, args.questions, args.step)
    print(json.dumps(results["summary"], indent=2), flush=True)
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if not args.no_card:
        card.publish(args.work, MODELS)


if __name__ == "__main__":
    main()
