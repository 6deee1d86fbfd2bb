"""Times a sweep in continuous batches against the same generations one after another.

    python examples/bench/sweep.py

11 preferences × 32 prompts, greedy, on the bundled pair with its held-out questions, and on a random Llama of the size
that docs/performance.md measures (one backbone, 64 tokens each). One after another is mlx-lm's ``generate_step`` on the
guided model with a fresh prompt cache for each answer; it is timed on every n-th prompt, which takes turns with parts
of the sweep. Last comes the time of scoring all answers by the built-in scorers.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import mlx.core as mx
from mlx_lm.generate import generate_step

from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_subjects
from parm_mlx.evaluation.prompts import Content, Prompt, content_id
from parm_mlx.evaluation.rewards import SCORERS
from parm_mlx.evaluation.sweep import Job, Sweep
from parm_mlx.guidance.loading import BUNDLED, BUNDLED_BASE, BUNDLED_PARM, load_with_tokenizers
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.machine import describe_machine
from parm_mlx.malloc import keep_freed_memory
from parm_mlx.preference import simplex_grid

TURNS = 2


@dataclass
class Case:
    """What is measured: a guided model, what renders prompts and answers, and the prompts."""

    name: str
    model: Any
    tokenizer: Any
    prompter: Callable[[Content], PromptTokens]
    prompts: list[str]
    max_tokens: int


class Numbers:
    """A tokenizer whose texts are token ids; no token ends an answer."""

    eos_token_ids: frozenset[int] = frozenset()

    def decode(self, tokens: list[int]) -> str:
        """The ids as a text."""
        return " ".join(map(str, tokens))


def bundled(count: int) -> Case:
    """The bundled pair and its held-out questions."""
    model, tokenizer, guide_tokenizer = load_with_tokenizers(BUNDLED_BASE, BUNDLED_PARM)
    texts = json.loads((BUNDLED / "held_out_prompts.json").read_text(encoding="utf-8"))[:count]
    return Case("bundled pair", model, tokenizer, Prompter(tokenizer, guide_tokenizer), texts, 120)


def random_llama(count: int) -> Case:
    """A random Llama, hidden 512, 8 layers, vocabulary 8,000, and prompts of 64 tokens."""
    subjects = random_subjects(Size(hidden=512, layers=8, vocabulary=8000))
    prompts = {str(number): row for number, row in enumerate(subjects.prompts(count, 64))}

    def prompter(content: Content) -> PromptTokens:
        return PromptTokens(prompts[str(content)], prompts[str(content)])

    return Case("random Llama", subjects.shared, Numbers(), prompter, list(prompts), 64)


def alone(case: Case, job: Job) -> str:
    """One answer by generate_step."""
    prompt, cache = mx.array(case.prompter(job.prompt.content).base), case.model.make_cache(job.alpha)
    tokens: list[int] = []
    for token, _ in generate_step(prompt, case.model, max_tokens=case.max_tokens, prompt_cache=cache):
        if token in case.tokenizer.eos_token_ids:
            break
        tokens.append(int(token))
    return str(case.tokenizer.decode(tokens))


def measure(case: Case, step: float, batch_size: int, every: int) -> None:
    """Measures and prints."""
    alphas = simplex_grid(len(case.model.objectives), step)
    jobs = [[Job(Prompt(content_id(text), text), alpha, 0) for alpha in alphas] for text in case.prompts]
    sweep = Sweep(case.model, case.tokenizer, case.prompter, Sampling(), case.max_tokens, batch_size)  # type: ignore[arg-type]
    list(sweep([jobs[0]], ()))  # warm-up
    batched = single = 0.0
    found: dict[Any, str] = {}
    expected: dict[Any, str] = {}
    tokens = 0
    for turn in range(TURNS):
        part = [job for question in jobs[turn::TURNS] for job in question]
        began = time.perf_counter()
        results = list(sweep([part], ()))
        batched += time.perf_counter() - began
        found |= {result.key: result.text for result in results}
        tokens += sum(result.tokens for result in results)
        sample = part if every == 1 else [job for question in jobs[turn::TURNS][::every] for job in question]
        began = time.perf_counter()
        expected |= {job.key: alone(case, job) for job in sample}
        single += time.perf_counter() - began
    began = time.perf_counter()
    for text in found.values():
        for scorer in ("warmth", "focus"):
            SCORERS[scorer](text)
    scoring = time.perf_counter() - began
    count, sampled = len(found), len(expected)
    same = sum(found[key] == text for key, text in expected.items())
    ratio = (count / batched) / (sampled / single)
    print(
        f"{case.name}: {len(alphas)} alphas x {len(case.prompts)} prompts, {tokens / count:.0f} tokens each on average"
    )
    print(f"  one after another    {sampled / single:7.2f} sequences/s   ({sampled} of them, {single:.1f} s)")
    print(f"  continuous batches   {count / batched:7.2f} sequences/s   ({count}, {batched:.1f} s)   {ratio:.2f} times")
    print(f"  the same answers     {same} of {sampled}")
    print(
        f"  scoring              {scoring:7.2f} s   {scoring / (scoring + batched):.1%} of the sweep's time", flush=True
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--every", type=int, default=4, help="every n-th prompt is also answered one by one")
    args = parser.parse_args()
    keep_freed_memory()
    print(describe_machine())
    for case in (bundled(args.prompts), random_llama(args.prompts)):
        measure(case, args.step, args.batch_size, args.every)


if __name__ == "__main__":
    main()
