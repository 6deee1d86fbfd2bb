"""Times a sweep in continuous batches against the same generations one after another.

    python examples/bench/sweep.py

11 preferences × 32 prompts, greedy, on the bundled pair with its held-out questions, and on a random Llama of the size
that docs/performance.md measures (one backbone, 64 tokens each). One after another is mlx-lm's ``generate_step`` on
the guided model with a fresh prompt cache for each answer, timed on every n-th prompt. The sweep runs in one process
and, as ``mlx.launch`` would share it out, in one process for each core. Last comes the time of scoring.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import mlx.core as mx
from mlx_lm.generate import generate_step

from parm_mlx.answers.sweep import GROUP, Job, Sweep
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_subjects
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.prompts import Prompt, Prompter, PromptTokens, content_id
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.templates import Content
from parm_mlx.machine import describe_machine, keep_freed_memory
from parm_mlx.preference import simplex_grid
from parm_mlx.rewards.builtin import SCORERS


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
    model, tokenizer, guide_tokenizer = load_with_tokenizers("bundled", "bundled")
    texts = held_out_prompts("bundled")[:count]
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


CASES = {"bundled": bundled, "random": random_llama}


def work(case: Case, step: float) -> list[Job]:
    """All answers, prompt by prompt."""
    alphas = simplex_grid(len(case.model.objectives), step)
    return [Job(Prompt(content_id(text), text), alpha, 0) for text in case.prompts for alpha in alphas]


def groups(jobs: list[Job]) -> list[list[Job]]:
    """The work as a sweep deals it."""
    return [jobs[i : i + GROUP] for i in range(0, len(jobs), GROUP)]


def batched(case: Case, jobs: list[Job], batch_size: int, rank: int = 0, size: int = 1) -> dict[Any, str]:
    """The answers of one process of several."""
    sweep = Sweep(case.model, case.tokenizer, case.prompter, Sampling(), case.max_tokens, batch_size)  # type: ignore[arg-type]
    return {result.key: result.text for result in sweep(groups(jobs)[rank::size], ())}


def process(name: str, args: argparse.Namespace, rank: int, barrier: Any, answers: Any) -> None:
    """One process of several; it waits for the others before it begins and when it has ended."""
    keep_freed_memory()
    case = CASES[name](args.prompts)
    jobs = work(case, args.step)
    batched(case, jobs[: len(jobs) // args.prompts], args.batch_size)  # warm-up
    barrier.wait()
    found = batched(case, jobs, args.batch_size, rank, args.processes)
    barrier.wait()
    answers.put(found)


def in_processes(name: str, args: argparse.Namespace) -> tuple[dict[Any, str], float]:
    """The answers of all processes, and the seconds they took."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by the processes when they load it
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(args.processes + 1), context.Queue()
    ranks = [context.Process(target=process, args=(name, args, r, barrier, answers)) for r in range(args.processes)]
    for rank in ranks:
        rank.start()
    barrier.wait()
    began = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - began
    found = {key: text for _ in ranks for key, text in answers.get().items()}
    for rank in ranks:
        rank.join()
    return found, seconds


def measure(name: str, args: argparse.Namespace) -> None:
    """Measures and prints."""
    case = CASES[name](args.prompts)
    jobs = work(case, args.step)
    per_prompt = len(jobs) // args.prompts
    batched(case, jobs[:per_prompt], args.batch_size)  # warm-up
    sample = [job for i, job in enumerate(jobs) if i // per_prompt % args.every == 0]
    began = time.perf_counter()
    expected = {job.key: alone(case, job) for job in sample}
    single = (time.perf_counter() - began) / len(sample)
    began = time.perf_counter()
    found = batched(case, jobs, args.batch_size)
    one = (time.perf_counter() - began) / len(jobs)
    began = time.perf_counter()
    for text in found.values():
        for scorer in ("warmth", "focus"):
            SCORERS[scorer](text)
    scoring = (time.perf_counter() - began) / len(jobs)
    several, seconds = in_processes(name, args)
    seconds /= len(jobs)

    print(f"{case.name}: {per_prompt} alphas x {args.prompts} prompts")
    print(f"  one after another             {1 / single:7.2f} sequences/s   (measured on {len(sample)})")
    for label, each, texts in (("one process", one, found), (f"{args.processes} processes", seconds, several)):
        same = sum(texts[key] == text for key, text in expected.items())
        print(
            f"  batches, {label:<17}{1 / each:10.2f} sequences/s   {single / each:5.2f} times   "
            f"{same} of {len(sample)} answers the same; scoring {scoring / (scoring + each):.2%} of the time",
            flush=True,
        )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--every", type=int, default=4, help="every n-th prompt is also answered one by one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    keep_freed_memory()
    print(describe_machine())
    for name in CASES:
        measure(name, args)


if __name__ == "__main__":
    main()
