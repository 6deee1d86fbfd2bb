"""Times a sweep in continuous batches against the same generations one after another, on the bundled pair.

    python examples/bench/sweep.py

11 preferences × 32 held-out questions, greedy. One after another is mlx-lm's ``generate_step`` on the guided model with
a fresh prompt cache for each answer. Batches and single answers take turns, so that a machine whose speed drifts slows
both alike. Last comes the time of scoring all answers.
"""

import argparse
import json
import time

# isort: split
import mlx.core as mx
from mlx_lm.generate import generate_step

from parm_mlx.evaluation.prompts import Prompt, content_id
from parm_mlx.evaluation.rewards import SCORERS
from parm_mlx.evaluation.sweep import Job, Sweep
from parm_mlx.guidance.loading import BUNDLED, BUNDLED_BASE, BUNDLED_PARM, load_with_tokenizers
from parm_mlx.guidance.model import GuidedModel
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.machine import describe_machine
from parm_mlx.malloc import keep_freed_memory
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.preference import simplex_grid


def alone(model: GuidedModel, tokenizer: TokenizerWrapper, prompter: Prompter, job: Job, max_tokens: int) -> str:
    """One answer by generate_step."""
    prompt = mx.array(prompter(job.prompt.content).base)
    tokens: list[int] = []
    for token, _ in generate_step(prompt, model, max_tokens=max_tokens, prompt_cache=model.make_cache(job.alpha)):
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(int(token))
    return tokenizer.decode(tokens)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--step", type=float, default=0.1)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2, help="parts of the questions that take turns")
    args = parser.parse_args()

    keep_freed_memory()
    model, tokenizer, guide_tokenizer = load_with_tokenizers(BUNDLED_BASE, BUNDLED_PARM)
    prompter = Prompter(tokenizer, guide_tokenizer)
    texts = json.loads((BUNDLED / "held_out_prompts.json").read_text(encoding="utf-8"))[: args.prompts]
    alphas = simplex_grid(len(model.objectives), args.step)
    sweep = Sweep(model, tokenizer, prompter, Sampling(), args.max_tokens, args.batch_size)
    jobs = [[Job(Prompt(content_id(text), text), alpha, 0) for alpha in alphas] for text in texts]
    list(sweep([jobs[0]], ()))  # warm-up
    alone(model, tokenizer, prompter, jobs[0][0], 8)

    batched, single = 0.0, 0.0
    found, expected, tokens = {}, {}, 0
    for block in range(args.blocks):
        part = [job for question in jobs[block :: args.blocks] for job in question]
        began = time.perf_counter()
        results = list(sweep([part], ()))
        batched += time.perf_counter() - began
        found |= {result.key: result.text for result in results}
        tokens += sum(result.tokens for result in results)
        began = time.perf_counter()
        expected |= {job.key: alone(model, tokenizer, prompter, job, args.max_tokens) for job in part}
        single += time.perf_counter() - began
    began = time.perf_counter()
    for text in found.values():
        for name in model.objectives:
            SCORERS[name](text)
    scoring = time.perf_counter() - began

    count = len(found)
    same = sum(found[key] == text for key, text in expected.items())
    print(describe_machine())
    print(f"{len(alphas)} alphas x {len(texts)} prompts, {tokens / count:.0f} tokens each on average")
    print(f"one after another    {single:7.1f} s   {count / single:6.2f} sequences/s")
    print(f"continuous batches   {batched:7.1f} s   {count / batched:6.2f} sequences/s   {single / batched:.2f} times")
    print(f"the same answers     {same} of {count}")
    print(f"scoring              {scoring:7.2f} s   {scoring / (scoring + batched):.1%} of the sweep's time")


if __name__ == "__main__":
    main()
