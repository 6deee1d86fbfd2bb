"""Speed and memory of training beside the preference trainers of mlx-lm-lora and mlx-tune.

    make bench-peers
    .venv-bench/bin/python examples/bench/train_peers.py --json --rounds 5

The same Llama with random weights (hidden 256, 6 layers, vocabulary 32,000), the same 4 pairs in a step (128 prompt and
128 response tokens), adapters of rank 8 on q, k and v, AdamW. Our trainer (PBLoRA, one α per pair), mlx-lm-lora's ORPO
and its DPO with a reference model take turns; each runs a few steps, of which the first is not counted (it compiles).
Medians over all counted steps are compared. Peak memory is MLX's, from before the first step; the weights are in it,
for DPO those of the reference model too.

mlx-tune's losses are run in the step of its trainer, without gradient checkpointing, which it turns on, and without
compiling, which takes minutes on a CPU: ORPO over the whole batch, and over one pair at a time, where the prompt is
read once for both responses (4 updates are a step here).

mlx-lm-lora is written for Metal and asks MLX for the GPU's memory limit; where there is no GPU, that one question is
answered here with 0.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.data.tokenize import TokenPair, TokenRow
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_llama
from parm_mlx.machine import describe_machine
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.training.batching import make_batch
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import TrainStep

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import mlx.optimizers as optim  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.tuner.callbacks import TrainingCallback  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers  # isort: skip
from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo  # isort: skip
from mlx_lm_lora.trainer.orpo_trainer import ORPOTrainingArgs, train_orpo  # isort: skip

PAIRS = 4
LORA = {"rank": 8, "scale": 2.0, "dropout": 0.0, "keys": [f"self_attn.{name}_proj" for name in "qkv"]}
BUDGETS = {"orpo": {"speed": 2.5, "memory": 0.5}, "dpo": {"speed": 3.0, "memory": None}}
Step = Callable[[], list[float]]


def build(options: argparse.Namespace) -> nn.Module:
    """A Llama with random weights, always the same."""
    model = random_llama(Size(options.hidden, options.layers, options.vocabulary), seed=0, heads=8)
    model.freeze()
    return model


def random_pairs(options: argparse.Namespace) -> list[TokenPair]:
    """Pairs of random tokens, as many as a step takes."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(PAIRS):
        prompt, *responses = (rng.integers(1, options.vocabulary, n) for n in (options.prompt, *[options.response] * 2))
        first, second = (TokenRow(np.concatenate([prompt, r]).astype(np.int32), options.prompt) for r in responses)
        pairs.append(TokenPair((first, second), np.array([0, 1], np.int8), "bench"))
    return pairs


def ours(options: argparse.Namespace) -> tuple[Step, nn.Module]:
    """Steps of our trainer."""
    model, pairs = build(options), random_pairs(options)
    attach(model, PBLoRAConfig(objectives=("a", "b")))
    model.train()
    optimizer = Optimizer(model, peak=1e-5, warmup=0, steps=10**6, weight_decay=0.01)
    train_step = TrainStep(ResponseScorer(model, 2), mx.array([0.1, 0.1]), 0.0, optimizer)
    rng = np.random.default_rng(1)

    def run() -> list[float]:
        seconds = []
        for number in range(options.steps + 1):
            start = time.perf_counter()
            alpha = mx.array(rng.dirichlet([0.5, 0.5], PAIRS).astype(np.float32))
            train_step(number, make_batch(pairs), alpha)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    return run, model


def peer(options: argparse.Namespace, kind: str, folder: Path) -> tuple[Step, nn.Module]:
    """Steps of one of mlx-lm-lora's trainers."""
    model = build(options)
    linear_to_lora_layers(model, options.layers, LORA)
    model.train()
    rows = [
        {"chosen": first.ids, "rejected": second.ids, "chosen_prompt_length": first.start}
        | {"rejected_prompt_length": second.start}
        for first, second in (pair.rows for pair in random_pairs(options))
    ]
    common = {
        "batch_size": PAIRS,
        "iters": options.steps + 1,
        "steps_per_report": 1,
        "steps_per_save": 10**6,
        "adapter_file": str(folder / "adapters.safetensors"),
    }
    optimizer = optim.AdamW(learning_rate=1e-5)
    reference = build(options) if kind == "dpo" else None

    def run() -> list[float]:
        clock = Clock()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if reference is None:
                train_orpo(model, optimizer, rows, None, args=ORPOTrainingArgs(**common), training_callback=clock)
            else:
                arguments = DPOTrainingArgs(**common)
                train_dpo(model, reference, optimizer, rows, None, args=arguments, training_callback=clock)
        return clock.seconds

    return run, model


def tune(options: argparse.Namespace, at_once: int) -> tuple[Step, nn.Module]:
    """Steps with mlx-tune's ORPO loss, ``at_once`` pairs in an update."""
    losses = tune_losses()
    model, pairs = build(options), random_pairs(options)
    linear_to_lora_layers(model, options.layers, LORA)
    model.train()
    optimizer = optim.AdamW(learning_rate=1e-5)

    def loss(pairs: list[TokenPair]) -> mx.array:
        rows = [mx.array(np.stack([pair.rows[i].ids for pair in pairs])) for i in (0, 1)]
        lengths = [mx.array([len(pair.rows[i]) for pair in pairs]) for i in (0, 1)]
        known = [pairs[0].rows[0].start, *(len(row) for row in pairs[0].rows)] if at_once == 1 else []
        value: mx.array = losses.orpo_loss(model, *rows, *lengths, 0.1, *known)[0]
        return value

    value_and_grad = nn.value_and_grad(model, loss)

    def run() -> list[float]:
        seconds = []
        for _ in range(options.steps + 1):
            start = time.perf_counter()
            for i in range(0, PAIRS, at_once):
                value, grads = value_and_grad(pairs[i : i + at_once])
                optimizer.update(model, grads)
                mx.eval(value, model.trainable_parameters(), optimizer.state)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    return run, model


def tune_losses() -> Any:
    """mlx-tune's losses; the rest of the package needs models of sound and sight."""
    package = importlib.util.find_spec("mlx_tune")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "losses.py"
    spec = importlib.util.spec_from_file_location("mlx_tune_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock(TrainingCallback):
    """The time from each report to the next; a report ends a step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """A step is done."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def peak_of(make: Callable[[], tuple[Step, nn.Module]]) -> float:
    """Peak memory in MB of a trainer that is alone in memory."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run, _ = make()
    run()
    return (mx.get_peak_memory() - before) / 1e6


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds per step, peak memory and trainable numbers of each trainer, and the ratios to ours."""
    makers: dict[str, Callable[[], tuple[Step, nn.Module]]] = {
        "ours": lambda: ours(options),
        "orpo": lambda: peer(options, "orpo", folder),
        "dpo": lambda: peer(options, "dpo", folder),
        "tune": lambda: tune(options, PAIRS),
        "tune-1": lambda: tune(options, 1),
    }
    peaks = {name: peak_of(make) for name, make in makers.items()}
    trainers = {name: make() for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(options.rounds):
        for name, (run, _) in trainers.items():
            times[name] += run()
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "ms": round(1000 * median[name], 1),
            "spread_ms": [round(1000 * min(times[name]), 1), round(1000 * max(times[name]), 1)],
            "pairs_per_second": round(PAIRS / median[name], 2),
            "peak_mb": round(peaks[name], 1),
            "trainable": sum(value.size for _, value in tree_flatten(model.trainable_parameters())),
            "our_speed": round(median[name] / median["ours"], 3),
            "our_memory": round(peaks["ours"] / peaks[name], 3),
            "budget": BUDGETS.get(name),
        }
        for name, (_, model) in trainers.items()
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Training speed and memory beside mlx-lm-lora and mlx-tune.")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--response", type=int, default=128, help="response tokens")
    parser.add_argument("--steps", type=int, default=3, help="counted steps in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    machine = describe_machine("mlx-lm-lora", "mlx-tune")
    if mx.default_device() == mx.Device(mx.cpu):
        mx.device_info = lambda *_: {"max_recommended_working_set_size": 0}
        mx.set_wired_limit = lambda limit: limit

    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    if options.json:
        print(json.dumps({"settings": vars(options), "trainers": result, "machine": machine}))
        return
    for name, row in result.items():
        low, high = row["spread_ms"]
        print(
            f"{name:<8}{row['ms']:9.1f} ms/step [{low:.1f} – {high:.1f}]  {row['pairs_per_second']:6.2f} pairs/s  "
            f"peak {row['peak_mb']:7.1f} MB  {row['trainable']:,} trainable  "
            f"ours: {row['our_speed']:.2f} times its speed, {row['our_memory']:.2f} of its memory"
        )
    print(machine, file=sys.stderr)


if __name__ == "__main__":
    main()
