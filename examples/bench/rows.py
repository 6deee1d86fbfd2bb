"""Where the time of a shared backbone goes: the second row of every sequence, the adapters, the sum of the logits.

    python examples/bench/rows.py --rounds 40
    python examples/bench/rows.py --model smollm2 --rounds 10

One step at n = 1, 4 and 16 sequences after prompts of 16 tokens, in turns:

    plain n       the model alone: unguided decoding
    plain 2n      the same with twice the rows: what no arrangement of two rows for a sequence can go below
    adapted n     the model with its adapters, each row under its own preference
    adapted 2n    the same with twice the rows
    shared n      base and guide on one backbone
    one pass n    one row with a share of the update, in place of both (--guidance one-pass)

Times are medians over rounds, ratios medians of the ratios to "plain n" in the same round.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import loaded_subjects, random_subjects
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.machine import describe_machine, keep_freed_memory
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.preference import Alpha

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip

PROMPT = 16


def prefilled(model: nn.Module, caches: list[Cache]) -> Cache:
    """The caches as one batch that has read a prompt; a single one as it is."""
    rows = len(caches)
    cache = caches[0] if rows == 1 else [type(column[0]).merge(list(column)) for column in zip(*caches, strict=True)]
    mx.eval(model(mx.array([[5] * PROMPT] * rows), cache=cache))
    return cache


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a model with a name; by default one with random weights (hidden 512, 8 layers)"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    if options.model:
        subjects = loaded_subjects(options.model, [options.model], None, (1.0,))
    else:
        subjects = random_subjects(Size())
    shared = subjects.shared
    assert shared is not None
    plain, guide, one_pass = shared.base, shared.guide, OnePassModel(shared.guide)
    found = []
    for n in (1, 4, 16):
        alphas: list[Alpha] = subjects.alphas(2 * n)
        steps: dict[str, Callable[[], mx.array]] = {}
        for name, model, rows in (
            ("plain n", plain, n),
            ("plain 2n", plain, 2 * n),
            ("adapted n", guide, n),
            ("adapted 2n", guide, 2 * n),
            ("shared n", shared, n),
            ("one pass n", one_pass, n),
        ):
            make = make_prompt_cache if model is plain else None
            cache = prefilled(model, [make(model) if make else model.make_cache(alphas[i]) for i in range(rows)])
            inputs = mx.array([[7]] * rows)
            steps[name] = lambda model=model, inputs=inputs, cache=cache: model(inputs, cache=cache)[:, -1]
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.rounds):
            for name, step in steps.items():
                began = time.perf_counter()
                mx.eval(step())
                times[name].append(time.perf_counter() - began)
        for name, own in times.items():
            ratio = median(t / base for t, base in zip(own, times["plain n"], strict=True))
            found.append({"n": n, "step": name, "ms": round(1000 * median(own), 2), "of plain n": round(ratio, 3)})
            if not options.json:
                print(f"{n:>3}  {name:<11}{found[-1]['ms']:9.2f} ms  {ratio:.3f}", flush=True)
    print(json.dumps({"machine": describe_machine(), "rows": found}) if options.json else describe_machine())


if __name__ == "__main__":
    main()
