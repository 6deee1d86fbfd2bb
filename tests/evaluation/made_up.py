"""Made-up runs: no model, any number of objectives, the same at every call. ``python tests/evaluation/made_up.py``
rewrites tests/fixtures/evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from parm_mlx.answers.store import Result
from parm_mlx.evaluation.summary import Run, compare, summarise
from parm_mlx.preference import format_alpha, simplex_grid

NAMES = ("warmth", "focus", "caution", "detail", "brevity", *(f"objective_{i}" for i in range(6, 13)))
UNITS = (1.5, 12.0, 0.8, 6.0, 20.0, *([1.0] * 7))  # raw scores of different sizes
FIXTURES = Path(__file__).parent.parent / "fixtures" / "evaluation"


def made_up_run(
    k: int = 2,
    step: float = 0.25,
    prompts: int = 24,
    seeds: tuple[int, ...] = (0,),
    effect: float = 1.0,
    noise: float = 0.4,
    name: str = "made-up",
    extra: bool = False,
    seed: int = 0,
) -> Run:
    """A run whose score i is 2·effect·(√α_i − ½) units of the objective above that of the base.

    Args:
        k: Number of objectives, at most 12.
        step: Of the grid.
        prompts: Number of prompts; each has a difficulty that all its answers share.
        seeds: Seeds of the answers.
        effect: What α does; below 0 it is turned around.
        noise: Of each answer, in units.
        name: Of the run.
        extra: Whether there is a reward beside the objectives.
        seed: Of the randomness.
    """
    rng = np.random.default_rng(seed)
    names = [*NAMES[:k], *(["length"] if extra else [])]
    units = np.array([*UNITS[:k], *([30.0] if extra else [])])
    results, scores = [], {}
    for number in range(prompts):
        difficulty = rng.standard_normal(len(names))
        for answer_seed in seeds:
            for alpha in [None, *simplex_grid(k, step)]:
                gain = np.zeros(len(names))
                if alpha is not None:
                    gain[:k] = 2 * effect * (np.sqrt(alpha) - 0.5)
                values = units * (3 + gain + difficulty + noise * rng.standard_normal(len(names)))
                at = "unguided" if alpha is None else format_alpha(alpha, NAMES[:k])
                result = Result(
                    f"p{number:02}",
                    f"What about matter {number} & <its> consequences?",
                    alpha,
                    answer_seed,
                    f"My answer on matter {number}, {at}.\nSeed {answer_seed}; <b>not</b> bold.",
                    int(rng.integers(12, 60)),
                    "length" if rng.random() < 0.05 else "stop",
                )
                results.append(result)
                scores[result.key] = dict(zip(names, values.tolist(), strict=True))
    rewards = {reward: f"builtin:{reward}" for reward in names}
    timing = {"answers": len(results), "tokens": sum(r.tokens for r in results), "generating_s": 42.0, "scoring_s": 2.5}
    timing |= {"base_token_ms": 10.0, "guide_token_ms": 4.0, "guided_token_ms": 13.0}
    return Run(name, NAMES[:k], rewards, results, scores, timing)


def samples() -> dict[str, dict[str, Any]]:
    """The content of tests/fixtures/evaluation, by file."""
    strong, weak = (
        made_up_run(2, 0.1, seeds=(0, 1), name="strong"),
        made_up_run(2, 0.1, effect=0.4, name="weak", seed=1),
    )
    return {
        "metrics_k2.json": summarise(made_up_run(2, 0.1, extra=True)),
        "metrics_k3.json": summarise(made_up_run(3, 0.25)),
        "metrics_k5.json": summarise(made_up_run(5, 0.5)),
        "comparison.json": compare([strong, weak]),
    }


if __name__ == "__main__":
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for file, content in samples().items():
        (FIXTURES / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
