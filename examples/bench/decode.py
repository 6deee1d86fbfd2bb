"""Speed of guided decoding against its floor, the time of its two forward passes.

    make bench
    python examples/bench/decode.py --json --tokens 128

A base and a guide of the same size with random weights (Llama, hidden 512, 8 layers, vocabulary 8,000; PBLoRA
r1 = r2 = 4 on q, k, v) decode greedily through mlx-lm's generate_step. Base alone, guide alone and guided take turns of
a few tokens; medians over rounds are compared, and the floor is time(base) + time(guide).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.guidance.model import Guide, GuidedModel
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import adapted_layers

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
from mlx_lm.generate import generate_step, generation_stream  # isort: skip
from mlx_lm.models import llama  # isort: skip

BUDGET = 0.97
ALPHA = (0.3, 0.7)


def build(hidden: int, layers: int, vocabulary: int, bits: int | None, seed: int) -> nn.Module:
    """A Llama with random weights."""
    mx.random.seed(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=hidden * 8 // 3 // 32 * 32,
            num_attention_heads=hidden // 64,
            rms_norm_eps=1e-5,
            vocab_size=vocabulary,
            tie_word_embeddings=False,
        )
    )
    if bits:
        nn.quantize(model, 64, bits)
    model.eval()
    mx.eval(model.parameters())
    return model


def build_guide(model: nn.Module) -> Guide:
    """A guide with random adapters."""
    config = PBLoRAConfig(objectives=("a", "b"))
    attach(model, config)
    for layer in adapted_layers(model).values():
        layer.b = 0.02 * mx.random.normal(layer.b.shape)
    model.eval()
    mx.eval(model.parameters())
    return Guide(model, config, ALPHA)


def decode_in_turns(models: dict[str, nn.Module], prompt: int, tokens: int, turn: int) -> dict[str, float]:
    """Seconds per token of each model, the prompt's own time not counted.

    The models take turns of a few tokens, so that a machine whose speed drifts slows them all alike. generate_step
    computes one token ahead; a turn waits for that one too, or the next model would pay for it.
    """
    steps = {name: generate_step(mx.arange(prompt) % 100, model, max_tokens=-1) for name, model in models.items()}
    for run in steps.values():
        next(run)
    mx.synchronize(generation_stream)
    seconds = dict.fromkeys(steps, 0.0)
    for _ in range(tokens // turn):
        for name, run in steps.items():
            start = time.perf_counter()
            for _ in range(turn):
                next(run)
            mx.synchronize(generation_stream)
            seconds[name] += time.perf_counter() - start
    return {name: total / (tokens // turn * turn) for name, total in seconds.items()}


def measure(models: dict[str, nn.Module], rounds: int, prompt: int, tokens: int, turn: int) -> dict[str, list[float]]:
    """Seconds per token of every model in every round, after one round that is not counted."""
    decode_in_turns(models, prompt, turn, turn)
    taken = [decode_in_turns(models, prompt, tokens, turn) for _ in range(rounds)]
    return {name: [one[name] for one in taken] for name in models}


def report(times: dict[str, list[float]], settings: dict[str, Any]) -> dict[str, Any]:
    """Medians, spread and the ratio to the floor."""
    median = {name: statistics.median(values) for name, values in times.items()}
    floor = median["base"] + median["guide"]
    ratios = [(b + g) / t for b, g, t in zip(times["base"], times["guide"], times["guided"], strict=True)]
    return {
        "settings": settings,
        "ms_per_token": {name: round(1000 * value, 3) for name, value in median.items()},
        "spread_ms": {name: [round(1000 * min(v), 3), round(1000 * max(v), 3)] for name, v in times.items()},
        "floor_ms": round(1000 * floor, 3),
        "floor_ratio": round(floor / median["guided"], 4),
        "floor_ratio_per_round": [round(ratio, 4) for ratio in ratios],
        "budget": BUDGET,
        "peak_memory_mb": round(mx.get_peak_memory() / 1e6, 1),
        "machine": f"{platform.system()} {platform.machine()}, MLX {version('mlx')}, mlx-lm {version('mlx-lm')}, "
        f"{mx.default_device()}",
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Speed of guided decoding against its floor.")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--bits", type=int, help="quantise base and guide to this width")
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="decoded tokens in a round")
    parser.add_argument("--turn", type=int, default=8, help="tokens in a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    base = build(options.hidden, options.layers, options.vocabulary, options.bits, seed=0)
    guide = build_guide(build(options.hidden, options.layers, options.vocabulary, options.bits, seed=1))
    guided = GuidedModel(base, guide)
    models = {"base": base, "guide": guide, "guided": guided}
    times = measure(models, options.rounds, options.prompt, options.tokens, options.turn)
    result = report(times, {k: v for k, v in vars(options).items() if k != "json"})
    if options.json:
        print(json.dumps(result))
        return
    for name, milliseconds in result["ms_per_token"].items():
        low, high = result["spread_ms"][name]
        print(f"{name:<8}{milliseconds:8.2f} ms/token   [{low:.2f} – {high:.2f}]   {1000 / milliseconds:7.1f} tokens/s")
    print(
        f"floor   {result['floor_ms']:8.2f} ms/token   guided runs at {result['floor_ratio']:.3f} of its speed", end=""
    )
    print(f" (budget {BUDGET})")
    print(result["machine"], file=sys.stderr)


if __name__ == "__main__":
    main()
