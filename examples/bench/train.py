"""Time and memory of a training step: what each saving of the trainer is worth.

    make bench
    python examples/bench/train.py --json --rounds 9

A PARM (PBLoRA r1 = r2 = 4 on q, k, v) on a Llama with random weights (hidden 256, 6 layers, vocabulary 32,000), 4 pairs
in a step, each with its own α. Loss and gradients are computed in four ways, which take turns in every round:

    naive      logits of every token of both sequences of a pair
    responses  logits of response tokens only
    chunked    the same, 128 tokens at a time
    shared     the same, and the prompt of a pair is read once for both responses

Medians over rounds are compared, and the gradients with those of the naive way: largest difference relative to the
largest number of each tensor. Then the memory of the output layer alone, over the number of response tokens.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_llama, randomise_adapters
from parm_mlx.kernels.logprob import target_logprobs
from parm_mlx.machine import describe_machine
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training.batching import Batch, PackedBatch, make_batch
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer, chunked_logprobs_with_grad
from parm_mlx.training.train_step import TrainStep

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

CASES = {
    "128 + 128": [(128, 128)] * 4,
    "192 + 64": [(192, 64)] * 4,
    "160…192 + 64": [(192, 64), (181, 64), (170, 64), (160, 64)],
}
TOKENS = (256, 1024, 4096)


class Naive(ResponseScorer):
    """Logits of every token."""

    def token_logprobs(self, packed: PackedBatch) -> mx.array:
        """The log-probability of every response token, picked from those of all tokens."""
        logits = self.model(packed.inputs)
        every = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return every.reshape(-1, every.shape[-1])[packed.positions, packed.targets]


class Responses(ResponseScorer):
    """Logits of response tokens, all at once."""

    def token_logprobs(self, packed: PackedBatch) -> mx.array:
        """The log-probability of every response token."""
        trunk, head = self.trunk_and_head
        hidden = trunk(packed.inputs)
        return target_logprobs(head(hidden.reshape(-1, hidden.shape[-1])[packed.positions]), packed.targets)


WAYS: dict[str, Callable[[nn.Module], ResponseScorer]] = {
    "naive": lambda model: Naive(model, 2, share=False),
    "responses": lambda model: Responses(model, 2, share=False),
    "chunked": lambda model: ResponseScorer(model, 2, share=False),
    "shared": lambda model: ResponseScorer(model, 2),
}


def build(size: Size) -> nn.Module:
    """A Llama with random weights and random adapters."""
    model = random_llama(size, seed=0, heads=8)
    attach(model, PBLoRAConfig(objectives=("a", "b")))
    randomise_adapters(model)
    model.train()
    return model


def random_batch(sizes: list[tuple[int, int]], vocabulary: int) -> Batch:
    """Pairs of so many prompt tokens and so many tokens in each response."""
    rng = np.random.default_rng(0)
    pairs = []
    for prompt, response in sizes:
        ids = rng.integers(1, vocabulary, prompt + 2 * response).astype(np.int32)
        first = TokenRow(ids[: prompt + response], prompt)
        second = TokenRow(np.concatenate([ids[:prompt], ids[prompt + response :]]), prompt)
        pairs.append(TokenPair((first, second), np.array([0, 1], np.int8), "bench"))
    return make_batch(pairs)


def compare(model: nn.Module, batch: Batch, rounds: int) -> dict[str, Any]:
    """Seconds, peak memory and gradient error of every way on one batch."""
    alpha = mx.array(np.random.default_rng(1).dirichlet([0.5, 0.5], len(batch.pairs)).astype(np.float32))
    optimizer = Optimizer(model, peak=5e-4, warmup=0, steps=1, weight_decay=0.0)
    steps = {name: TrainStep(way(model), mx.array([0.1, 0.1]), 0.0, optimizer) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks, errors = {}, {}
    reference: dict[str, mx.array] = {}
    for name, train_step in steps.items():
        mx.clear_cache()
        mx.reset_peak_memory()
        _, grads = train_step.batch_gradients(batch, alpha)
        mx.eval(grads)
        peaks[name] = round(mx.get_peak_memory() / 1e6, 1)
        flat = dict(tree_flatten(grads))
        reference = reference or flat
        errors[name] = max((mx.abs(flat[k] - v).max() / mx.abs(v).max()).item() for k, v in reference.items())
    for _ in range(rounds):
        for name, train_step in steps.items():
            start = time.perf_counter()
            mx.eval(train_step.batch_gradients(batch, alpha))
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "ms": round(1000 * median[name], 1),
            "spread_ms": [round(1000 * min(times[name]), 1), round(1000 * max(times[name]), 1)],
            "of_naive": round(median[name] / median["naive"], 3),
            "of_responses": round(median[name] / median["responses"], 3),
            "pairs_per_second": round(len(batch.pairs) / median[name], 2),
            "peak_mb": peaks[name],
            "gradient_error": errors[name],
        }
        for name in steps
    }


def output_layer_memory(hidden: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Peak memory in MB of log-probabilities and their gradient, weights not counted, at each number of tokens."""
    layer = nn.Linear(hidden, vocabulary, bias=False)
    mx.eval(layer.parameters())
    layer.freeze()
    peaks: dict[str, dict[str, float]] = {"whole": {}, "chunked": {}}
    for tokens in TOKENS:
        h, y = mx.random.normal((tokens, hidden)), mx.random.randint(0, vocabulary, (tokens,))
        mx.eval(h, y)
        for name, score in (
            ("whole", lambda h, y: target_logprobs(layer(h), y)),
            ("chunked", lambda h, y: chunked_logprobs_with_grad(layer, h, y)),
        ):
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(mx.value_and_grad(lambda h, y, score=score: score(h, y).sum())(h, y))
            peaks[name][str(tokens)] = round((mx.get_peak_memory() - before) / 1e6, 1)
    return peaks


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step.")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    model = build(Size(options.hidden, options.layers, options.vocabulary))
    steps = {name: compare(model, random_batch(s, options.vocabulary), options.rounds) for name, s in CASES.items()}
    memory = output_layer_memory(options.hidden, options.vocabulary)
    machine = describe_machine()
    if options.json:
        print(json.dumps({"settings": vars(options), "steps": steps, "output_layer_mb": memory, "machine": machine}))
        return
    for case, ways in steps.items():
        print(f"4 pairs of {case} tokens")
        for name, way in ways.items():
            low, high = way["spread_ms"]
            print(
                f"  {name:<10}{way['ms']:8.1f} ms [{low:.1f} – {high:.1f}]  {way['of_naive']:.2f} of naive  "
                f"{way['of_responses']:.2f} of responses  peak {way['peak_mb']:6.0f} MB  "
                f"gradient error {way['gradient_error']:.0e}"
            )
    print("output layer alone, MB at " + ", ".join(map(str, TOKENS)) + " tokens")
    for name, peaks in memory.items():
        print(f"  {name:<10}" + "".join(f"{peak:8.0f}" for peak in peaks.values()))
    print(machine, file=sys.stderr)


if __name__ == "__main__":
    main()
