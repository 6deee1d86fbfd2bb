"""What ``--speculation auto`` and ``--share auto`` choose, beside what turns out to be the fastest.

    make bench
    python examples/bench/auto.py --rounds 5 --pairs bundled deep

Six pairs of base and guide, greedy, at 1, 4 and 16 sequences. The choice is made as in a chat, from passes and drafts
that are measured first; then every way decodes the same questions, a few tokens each in turn:

    bundled, two    the bundled pair (3 million parameters each) as two models
    bundled, one    on one backbone
    deep            the bundled guide and a base of four times the layers, of which three quarters add nothing: what a
                    small guide of a large base costs, with the drafts of the bundled pair
    smollm2, two    SmolLM2-135M and its PARM as two models
    smollm2, one    on one backbone
    random          a base and a guide of an eighth of its size with random weights: drafts are never kept

Beyond one sequence, mlx-lm has no drafts; answers could be drafted one after the other, which is the speed of one.
Ratios are medians over rounds, of the speed of the choice to that of the fastest way.
"""

import argparse
import json
import sys
from functools import partial
from statistics import median
from typing import Any

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.diagnostics.bench import BatchGeneration, DraftedGeneration
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_llama, randomise_adapters
from parm_mlx.guidance.costs import QUESTIONS, Costs, measure
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.session import load_session
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.machine import describe_machine, keep_freed_memory
from parm_mlx.mlxlm import llama
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.timing import Generation, SingleGeneration, time_in_turns

import mlx.core as mx  # isort: skip

BATCHES = (1, 4, 16)
DEPTH = 4

Pair = tuple[GuidedModel, list[PromptTokens], frozenset[int]]


def named(name: str, share: Any) -> Pair:
    """A pair that everybody has."""
    session = load_session(name, share=share)
    prompts = [session.prompter([{"role": "user", "content": question}]) for question in QUESTIONS]
    return session.model, prompts, frozenset(session.tokenizer.eos_token_ids)


def deep() -> Pair:
    """The bundled pair, with layers in the base whose attention and feed-forward parts give zero."""
    model, prompts, ends = named("bundled", "off")
    arguments = model.base.args
    number = arguments.num_hidden_layers * DEPTH
    changed = {"num_hidden_layers": number, "layer_types": arguments.layer_types[:1] * number}
    base = llama.Model(type(arguments)(**{**vars(arguments), **changed}))
    for layer in base.model.layers:
        layer.self_attn.o_proj.weight = mx.zeros_like(layer.self_attn.o_proj.weight)
        layer.mlp.down_proj.weight = mx.zeros_like(layer.mlp.down_proj.weight)
    base.model.layers[: len(model.base.model.layers)] = model.base.model.layers
    base.model.embed_tokens, base.model.norm = model.base.model.embed_tokens, model.base.model.norm
    if "lm_head" in model.base:
        base.lm_head = model.base.lm_head
    base.eval()
    mx.eval(base.parameters())
    return GuidedModel(base, model.guide, model.beta), prompts, ends


def random() -> Pair:
    """Random weights: 8 layers of 512 guided by 4 of 256."""
    base, backbone = random_llama(Size(512, 8), 0), random_llama(Size(256, 4), 1)
    config = PBLoRAConfig(objectives=("a", "b"))
    attach(backbone, config)
    randomise_adapters(backbone)
    backbone.eval()
    prompts = [[(7 * row + i) % 100 for i in range(20)] for row in range(len(QUESTIONS))]
    return GuidedModel(base, Guide(backbone, config)), [PromptTokens(each, each) for each in prompts], frozenset()


PAIRS = {
    "bundled, two": partial(named, "bundled", "off"),
    "bundled, one": partial(named, "bundled", "auto"),
    "deep": deep,
    "smollm2, two": partial(named, "smollm2", "off"),
    "smollm2, one": partial(named, "smollm2", "auto"),
    "random": random,
}


def ways(model: GuidedModel, prompts: list[PromptTokens], batch: int) -> dict[str, Any]:
    """Starts of every way to decode ``batch`` sequences."""
    tokens = [prompts[i % len(prompts)].base for i in range(batch)]

    def single(apart: bool) -> Generation:
        if isinstance(model, SharedModel):
            model.apart = apart
        return SingleGeneration(model, tokens[0], model.make_cache())

    def drafted(by_guide: bool) -> Generation:
        return DraftedGeneration(model, tokens[0], model.make_cache(), Drafting(None, by_guide=by_guide))

    drafts = {f"{name} drafts": partial(drafted, name == "guide") for name in ("guide", "base")}
    if batch > 1:
        return {"off": lambda: BatchGeneration(model, tokens, [model.make_cache() for _ in tokens]), **drafts}
    if not isinstance(model, SharedModel):
        return {"off": partial(single, False), **drafts}
    # A model that takes two passes for one sequence is another object, or both would run at once as the last one says.
    two = GuidedModel(model.base, model.guide, model.beta)
    return {
        "off": partial(single, False),
        "two passes": lambda: SingleGeneration(two, tokens[0], two.make_cache()),
        **drafts,
    }


def choice(costs: Costs, batch: int) -> str:
    """What the commands would take."""
    if batch > 1:
        return "off"
    if costs.drafter != "off":
        return f"{costs.drafter} drafts"
    return "two passes" if costs.apart else "off"


def compare(name: str, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """The figures of one pair, at every number of sequences."""
    model, prompts, ends = PAIRS[name]()
    costs = measure(model, prompts, ends)
    rows = []
    for batch in BATCHES:
        chosen = choice(costs, batch)
        samples = [time_in_turns(ways(model, prompts, batch), tokens) for _ in range(rounds)]
        seconds = [{way: s.decode / s.tokens for way, s in sample.items()} for sample in samples if sample]
        ratios = [min(each.values()) / each[chosen] for each in seconds]
        row = {"pair": name, "sequences": batch, "chosen": chosen, "of the fastest": round(median(ratios), 3)}
        row["lowest"], row["highest"] = round(min(ratios), 3), round(max(ratios), 3)
        row["tokens/s"] = {way: round(1 / median(each[way] for each in seconds), 1) for way in seconds[0]}
        row["passes"] = {way: s.passes for way, s in (samples[-1] or {}).items() if s.passes}
        rows.append(row)
    return rows


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="decoded in a round, of each sequence")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for name in options.pairs:
        for row in compare(name, options.rounds, options.tokens):
            rows.append(row)
            speeds = ", ".join(f"{way} {speed}" for way, speed in row["tokens/s"].items())
            spread = f"[{row['lowest']:.2f}, {row['highest']:.2f}]"
            line = f"{name:<14}{row['sequences']:>3}  {row['chosen']:<13}{row['of the fastest']:.2f} {spread}  {speeds}"
            print(line, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"machine": describe_machine(), "rows": rows}))
    else:
        print(describe_machine())


if __name__ == "__main__":
    main()
