"""The parts of gpu.py that decode, each in a process of its own.

    python examples/bench/gpu_decoding.py device                       one line of JSON: the device
    python examples/bench/gpu_decoding.py bfloat16 OUT.json [--toy]    or twins, or 4-bit

Rows are written as they come. With t the milliseconds of a step, which is one token of every sequence:

    of_unguided    t of the base alone / t
    of_two_passes  (t of base alone + t of guide alone) / t
    of_limit       bytes that a step must read / bandwidth / t; 1 is all that the memory can give
"""

import argparse
import gc
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from parm_mlx.machine import NO_BACKEND, lacks_backend  # first, since it loads the BLAS that MLX then uses

try:
    import mlx.core as mx
except ImportError as error:
    from parm_mlx.cards import problem

    raise SystemExit(NO_BACKEND if lacks_backend(error) else (problem(error) or (str(error),))[0]) from None

import mlx.nn as nn
from mlx.utils import tree_flatten

from parm_mlx.cards import NO_CARD, card
from parm_mlx.diagnostics.bench import BASE, GUIDE, GUIDED, ONE_PASS, SHARED, BatchGeneration, ways
from parm_mlx.diagnostics.subjects import Subjects, randomise_adapters
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.shared import SharedModel
from parm_mlx.machine import describe_machine, device_name, gpu_backend, usable_memory
from parm_mlx.mlxlm import llama
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.timing import SingleGeneration, Start, time_in_turns

ADAPTED = "adapted"
# Llama 3 by its sizes: hidden, layers, intermediate, heads, kv heads, parameters in billions.
SHAPES = {
    "8B": (4096, 32, 14336, 32, 8, 8.03),
    "3B": (3072, 28, 8192, 24, 8, 3.21),
    "1B": (2048, 16, 8192, 32, 8, 1.24),
}
TOY = {"8B": (256, 4, 512, 4, 2, 0.003), "1B": (128, 2, 256, 4, 2, 0.001)}
GROUPS = {  # sequences, prompt tokens, tokens decoded of each in a round
    "bfloat16": ((1, 64, 48), (16, 64, 24), (1, 2048, 24)),
    "twins": ((1, 64, 24), (16, 64, 16)),
    "4-bit": ((1, 64, 48), (16, 64, 24)),
}
TOY_GROUPS = ((1, 8, 4), (3, 8, 4))
ROUNDS, TOY_ROUNDS = 3, 1
WARM = 2  # steps before anything is timed: what they need is compiled then
TIED = ("1B", "3B")  # the sizes whose output layer is the embedding


def describe(toy: bool) -> dict[str, Any]:
    """Describes the device.

    Raises:
        SystemExit: It is not a GPU, and the sizes are not those of a toy.
    """
    if toy:
        mx.set_default_device(mx.cpu)
    elif gpu_backend() is None:
        raise SystemExit(
            "MLX has no GPU back end here: pip install 'parm-mlx[cuda13]', or try the script out with --toy"
        )
    found = card()
    if gpu_backend() == "CUDA" and found is None:
        raise SystemExit(NO_CARD)
    return {
        "name": device_name(),
        "memory_bytes": usable_memory(),
        "bandwidth_gb_per_s": found.bandwidth if found else None,
        "machine": describe_machine(),
    }


def base_size(toy: bool, bits: int | None) -> str:
    """Returns the largest base of which two, and the guide, fit into 85% of the memory."""
    if toy:
        return "8B"
    itemsize = 2.0  # also in 4 bits: weights are made in 16 bits first, one model after the other
    for name in ("8B", "3B"):
        kept = SHAPES[name][-1] * (itemsize if bits is None else 0.56)
        if (kept + SHAPES[name][-1] * itemsize + SHAPES["1B"][-1] * itemsize) * 1e9 < 0.85 * usable_memory():
            return name
    return "1B"


def make(name: str, seed: int, bits: int | None, toy: bool) -> nn.Module:
    """A Llama with random weights, made on the device; of the sizes of Llama 3, in bfloat16 or in 4 bits."""
    hidden, layers, intermediate, heads, kv_heads, _ = (TOY if toy else SHAPES)[name]
    mx.random.seed(seed)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=1000 if toy else 128256,
            tie_word_embeddings=name in TIED,
            rope_theta=500000.0,
        )
    )
    model.set_dtype(mx.float32 if toy else mx.bfloat16)
    if bits:
        nn.quantize(model, 64, bits)
    for layer in (*model.layers, model):  # one by one: all at once would need the memory twice
        mx.eval(layer.parameters())
    model.eval()
    return model


def make_guide(name: str, seed: int, bits: int | None, toy: bool) -> Guide:
    """The same as a guide: PBLoRA r1 = r2 = 4 on q, k and v, with an effect."""
    backbone, config = make(name, seed, bits, toy), PBLoRAConfig(objectives=("a", "b"))
    attach(backbone, config)
    randomise_adapters(backbone)
    return Guide(backbone, config)


def weights_read(model: nn.Module) -> int:
    """Returns the bytes of weights that a step reads: all but an embedding that is not the output layer too."""
    flat = tree_flatten(model.parameters())
    untied = any("lm_head" in name for name, _ in flat)
    return sum(tensor.nbytes for name, tensor in flat if not (untied and "embed_tokens" in name))


def cache_read(model: nn.Module, batch: int, length: int) -> int:
    """Returns the bytes of keys and values that a step reads, for sequences of a length, in the models' activations."""
    args = (model.model if isinstance(model, Guide) else model).args
    width = args.num_key_value_heads * args.hidden_size // args.num_attention_heads
    itemsize = 4 if mx.default_device() == mx.cpu else 2
    return 2 * args.num_hidden_layers * width * itemsize * batch * length


def bytes_read(subjects: Subjects, batch: int, length: int) -> dict[str, int]:
    """Returns the bytes that a step must read, of the ways whose steps are all alike."""
    assert subjects.shared is not None
    base, guide, adapted = subjects.guided.base, subjects.guided.guide, subjects.shared.guide
    alone = {
        name: weights_read(model) + cache_read(model, batch, length)
        for name, model in ((BASE, base), (GUIDE, guide), (ADAPTED, adapted))
    }
    shared = alone[ADAPTED] + cache_read(adapted, batch, length)  # two rows for every sequence
    return alone | {GUIDED: alone[BASE] + alone[GUIDE], SHARED: shared, ONE_PASS: alone[ADAPTED]}


def starts_of(subjects: Subjects, batch: int, prompt: int) -> dict[str, Start]:
    """Returns the ways to decode, by name: those of `parm-mlx bench`, and the adapted base alone."""
    assert subjects.shared is not None
    prompts, alphas, adapted = subjects.prompts(batch, prompt), subjects.alphas(batch), subjects.shared.guide

    def start() -> Any:
        caches = [adapted.make_cache(alpha) for alpha in alphas]
        return (
            SingleGeneration(adapted, prompts[0], caches[0])
            if batch == 1
            else BatchGeneration(adapted, prompts, caches)
        )

    return {name: partial(way, prompts, alphas) for name, (_, way) in ways(subjects, batch).items()} | {ADAPTED: start}


def measure(
    subjects: Subjects, group: tuple[int, int, int], rounds: int, bandwidth: float | None, drafts: bool
) -> list[dict[str, Any]]:
    """Measures all ways, with drafts or without, at a number of sequences and a length of prompt, in turns."""
    batch, prompt, tokens = group
    starts = {name: start for name, start in starts_of(subjects, batch, prompt).items() if drafts or "+" not in name}
    mx.reset_peak_memory()
    time_in_turns(starts, WARM)
    rows: dict[str, list[Any]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name, sample in (time_in_turns(starts, tokens) or {}).items():
            rows[name].append(sample)
    ms = {name: [1000 * s.decode * batch / s.tokens for s in samples] for name, samples in rows.items()}
    needed = bytes_read(subjects, batch, prompt + tokens // 2)
    t = {name: median(values) for name, values in ms.items()}

    def row(name: str) -> dict[str, Any]:
        accepted = [s.acceptance for s in rows[name] if s.acceptance is not None]
        limit = needed[name] / bandwidth / 1e6 if bandwidth and name in needed else None
        return {
            "way": name,
            "sequences": batch,
            "prompt": prompt,
            "ms_per_step": round(t[name], 3),
            "ms_spread": [round(min(ms[name]), 3), round(max(ms[name]), 3)],
            "prompt_seconds": round(median(s.read for s in rows[name]), 4),
            "of_unguided": round(t[BASE] / t[name], 3),
            "of_two_passes": round((t[BASE] + t[GUIDE]) / t[name], 3) if GUIDE in t else None,
            "bytes_per_step": needed.get(name),
            "of_limit": round(limit / t[name], 3) if limit else None,
            "accepted": round(median(accepted), 3) if accepted else None,
        }

    return [row(name) for name in starts]


def main() -> None:
    """Describes the device, or measures one part."""
    parser = argparse.ArgumentParser(description="A part of gpu.py.")
    parser.add_argument("part", choices=("device", *GROUPS))
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--bandwidth", type=float)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    device = describe(options.toy)
    if options.part == "device":
        print(json.dumps(device))
        return
    bits = 4 if options.part == "4-bit" else None
    size = base_size(options.toy, bits)
    base, guide = make(size, 0, bits, options.toy), make_guide("1B", 1, bits, options.toy)
    shared = SharedModel(make_guide(size, 0, bits, options.toy))
    gc.collect()
    mx.clear_cache()
    subjects = Subjects(GuidedModel(base, guide), tuple(range(100)), shared)
    found: dict[str, Any] = {
        "device": device,
        "base": size,
        "guide": "1B",
        "bits": bits,
        "toy": options.toy,
        "rows": [],
    }
    bandwidth = options.bandwidth or device["bandwidth_gb_per_s"]
    failed = False
    for group in TOY_GROUPS if options.toy else GROUPS[options.part]:
        try:
            rounds = TOY_ROUNDS if options.toy else ROUNDS
            found["rows"] += measure(subjects, group, rounds, bandwidth, drafts=options.part != "twins")
        except Exception as error:  # the next group may do, and what there is stays
            failed = True
            found["rows"].append(
                {"sequences": group[0], "prompt": group[1], "error": f"{type(error).__name__}: {error}"}
            )
        found["peak_bytes"] = mx.get_peak_memory()
        options.out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(json.dumps(found["rows"][-1]), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
