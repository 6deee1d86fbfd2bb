"""Makes the PARM of the bundled pair: warmth against focus.

    python examples/bundled/make_parm.py

The base answers training questions twice at temperature 1, and pairs of even length are kept. Two deterministic
scorers say which answer is warmer and which has more substance, and ``parm_mlx.training`` learns the adapter from these
pairs. Held-out questions never occur.

Why even length: the loss compares log-probabilities summed over tokens, so the shorter answer of an uneven pair wins as
soon as every token becomes less likely, and the longer one as soon as every token becomes more likely. A small model
finds this before it finds the words that matter, and rambles.
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import dialogues
import mlx.core as mx
from mlx_lm.generate import batch_generate
from rich.console import Console

from parm_mlx.guidance.loading import load_base
from parm_mlx.machine import keep_freed_memory
from parm_mlx.rewards.builtin import SCORERS
from parm_mlx.training.checkpoint import CheckpointFolder
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.curves import PICTURE_FILE
from parm_mlx.training.logging import METRICS_FILE
from parm_mlx.training.progress import ConsoleProgress
from parm_mlx.training.run import train

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "parm_mlx" / "models"
OBJECTIVES = ("warmth", "focus")
SEED = 20250506
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_TOKENS = 180
CHUNK = 1000
MAX_TOKEN_DIFFERENCE = 8
Prompt = list[dialogues.Message]


def training_prompts(count: int) -> list[Prompt]:
    """Different conversations of the training side, each up to a question of the user."""
    rng = random.Random(SEED + 1)
    found: dict[str, Prompt] = {}
    while len(found) < count:
        talk = dialogues.dialogue(rng)
        ends = [i for i, message in enumerate(talk) if message["role"] == "user"]
        end = ends[0] if rng.random() < 0.7 else rng.choice(ends)
        prompt = talk[: end + 1]
        found.setdefault(json.dumps(prompt), prompt)
    return list(found.values())


def sample(model: Any, tokenizer: Any, prompts: list[Prompt], seed: int) -> list[str]:
    """One answer per prompt at temperature 1; "" where it did not end."""
    mx.random.seed(seed)
    rows = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for prompt in prompts]
    texts: list[str] = []
    for start in range(0, len(rows), CHUNK):
        out = batch_generate(
            model,
            tokenizer,
            rows[start : start + CHUNK],
            max_tokens=MAX_TOKENS,
            sampler=mx.random.categorical,
            completion_batch_size=64,
            prefill_batch_size=16,
            return_token_ids=True,
        )
        ended = [len(tokens) < MAX_TOKENS for tokens in out.token_ids]
        texts += [text if end else "" for text, end in zip(out.texts, ended, strict=True)]
        print(f"seed {seed}: {len(texts)} of {len(rows)} answers", flush=True)
    return texts


def are_even(tokenizer: Any, responses: tuple[str, str]) -> bool:
    """Whether two finished answers differ by at most MAX_TOKEN_DIFFERENCE tokens."""
    first, second = (len(tokenizer.encode(text, add_special_tokens=False)) for text in responses)
    return all(responses) and abs(first - second) <= MAX_TOKEN_DIFFERENCE


def label(prompt: Prompt, responses: tuple[str, str]) -> dict[str, Any] | None:
    """A row of preference data: each objective names its better response, unless the two score the same."""
    preferred = {}
    for name in OBJECTIVES:
        first, second = (SCORERS[name](text) for text in responses)
        if first != second:
            preferred[name] = 0 if first > second else 1
    if not preferred:
        return None
    asked: str | Prompt = prompt[0]["content"] if len(prompt) == 1 else prompt
    return {"prompt": asked, "responses": list(responses), "preferred": preferred}


def make_pairs(base: Path, out: Path, count: int) -> dict[str, Any]:
    """Samples, labels and writes the pairs; returns how many there are and how often the objectives disagree."""
    model, tokenizer = load_base(base)
    prompts = training_prompts(count)
    begin = time.perf_counter()
    both = zip(sample(model, tokenizer, prompts, SEED), sample(model, tokenizer, prompts, SEED + 1), strict=True)
    even = [(prompt, pair) for prompt, pair in zip(prompts, both, strict=True) if are_even(tokenizer, pair)]
    rows = [row for prompt, pair in even if (row := label(prompt, pair))]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labelled = [row["preferred"] for row in rows if len(row["preferred"]) == len(OBJECTIVES)]
    return {
        "prompts": count,
        "pairs": len(rows),
        "labelled_by_both": len(labelled),
        "disagree": round(sum(p["warmth"] != p["focus"] for p in labelled) / len(labelled), 3),
        "sampling_minutes": round((time.perf_counter() - begin) / 60, 1),
    }


def ensure_pairs(base: Path, work: Path, prompts: int) -> None:
    """Makes ``pairs.jsonl`` in the work folder, unless it is there already, and shows what is in it."""
    work.mkdir(parents=True, exist_ok=True)
    pairs, summary = work / "pairs.jsonl", work / "pairs.json"
    if not summary.exists():
        print(f"sampling 2 × {prompts} answers to make pairs of, once", flush=True)
        summary.write_text(json.dumps(make_pairs(base, pairs, prompts), indent=2) + "\n", encoding="utf-8")
    print(summary.read_text(encoding="utf-8").strip(), flush=True)


def settings(base: Path, pairs: Path, out: Path, **others: Any) -> TrainConfig:
    """How adapters are trained on the pairs; ``others`` are settings that differ."""
    common = {
        "model": str(base),
        "data": str(pairs),
        "out": str(out),
        "objectives": OBJECTIVES,
        "learning_rate": 3e-3,
        "beta_objective": (0.1,),
        "dropout": 0.0,
        "target_modules": TARGET_MODULES,
        "max_seq_length": 256,
        "val_batches": 4,
        "steps_per_eval": 100,
        "seed": SEED % 1000,
    }
    return TrainConfig(**(common | others))


def main() -> None:
    """Runs both halves: the pairs, unless they are there already, and the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=MODELS / "base")
    parser.add_argument("--out", type=Path, default=MODELS / "parm")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bundled")
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--beta-objective", type=float, default=0.1)
    args = parser.parse_args()
    keep_freed_memory()

    ensure_pairs(args.base, args.work, args.prompts)
    begin = time.perf_counter()
    config = settings(
        args.base,
        args.work / "pairs.jsonl",
        args.out,
        iters=args.iters,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        beta_objective=(args.beta_objective,),
    )
    result = train(config, force=True, progress=ConsoleProgress(Console(stderr=True)))
    if result.signal is not None:
        raise SystemExit(128 + result.signal)
    for name in (METRICS_FILE, PICTURE_FILE):
        if (args.out / name).exists():
            (args.out / name).replace(args.work / name)
    shutil.rmtree(CheckpointFolder(args.out, config.keep_checkpoints).path, ignore_errors=True)
    minutes = {"training_minutes": round((time.perf_counter() - begin) / 60, 1)}
    (args.work / "parm.json").write_text(json.dumps(minutes, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(minutes))


if __name__ == "__main__":
    main()
