"""Decoding and training on a graphics card: parts in processes of their own, with limits; none stops the others.

    python examples/bench/gpu.py --out gpu                    on an NVIDIA card: pip install 'parm-mlx[cuda]' first
    python examples/bench/gpu.py --out gpu --tiny             tries the script out on any machine

    doctor       what parm-mlx finds
    bfloat16     an 8B base and a 1B guide in the shapes of Llama 3, random weights: 1 and 16 sequences, and 1 after
                 2,048 tokens; base, guide, two models, one shared backbone
    training     the training step of examples/bench/train.py
    smollm2      the training of the SmolLM2 PARM, 20 steps, where --data names its pairs
    bits         as bfloat16, in 4 bits; the last, since the first quantised product on CUDA compiles for minutes

Each part writes PART.json or PART.txt as soon as it has something to say. MLX_PTX_CACHE_DIR keeps what CUDA compiles.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"doctor": 60, "bfloat16": 240, "training": 120, "smollm2": 240, "bits": 300}  # seconds
SHAPES = {
    "8B": (4096, 32, 14336, 32, 8),
    "1B": (2048, 16, 8192, 32, 8),
}  # hidden, layers, intermediate, heads, kv heads
TINY = {"8B": (256, 4, 512, 4, 2), "1B": (128, 2, 256, 4, 2)}
GROUPS = ((1, 64, 48), (16, 64, 32), (1, 2048, 24))  # sequences, prompt, tokens
TINY_GROUPS = ((1, 8, 4), (4, 8, 4))
ROUNDS = 3


def decode(out: Path, bits: int | None, tiny: bool) -> None:
    """Measures decoding, and writes the rows that are done after every comparison."""
    import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

    # isort: split
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.models import llama

    from parm_mlx.diagnostics.bench import measure, summarise
    from parm_mlx.diagnostics.plan import Plan
    from parm_mlx.diagnostics.subjects import Subjects, randomise_adapters
    from parm_mlx.guidance.guide import Guide
    from parm_mlx.guidance.guided import GuidedModel
    from parm_mlx.guidance.shared import SharedModel
    from parm_mlx.machine import describe_machine
    from parm_mlx.pblora import PBLoRAConfig, attach

    vocabulary = 1000 if tiny else 128256

    def make(name: str, seed: int) -> nn.Module:
        hidden, layers, intermediate, heads, kv_heads = (TINY if tiny else SHAPES)[name]
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
                vocab_size=vocabulary,
                tie_word_embeddings=name == "1B",
                rope_theta=500000.0,
            )
        )
        model.set_dtype(mx.float32 if tiny else mx.bfloat16)
        if bits:
            nn.quantize(model, 64, bits)
        for layer in (*model.layers, model):  # one by one: all at once would need the memory twice
            mx.eval(layer.parameters())
        model.eval()
        return model

    def guide(name: str, seed: int) -> Guide:
        backbone, config = make(name, seed), PBLoRAConfig(objectives=("a", "b"))  # r1 = r2 = 4 on q, k, v
        attach(backbone, config)
        randomise_adapters(backbone)
        return Guide(backbone, config)

    guided, shared = GuidedModel(make("8B", 0), guide("1B", 1)), SharedModel(guide("8B", 0))
    rows = []
    for batch, prompt, tokens in TINY_GROUPS if tiny else GROUPS:
        subjects, plan = Subjects(guided, tuple(range(100)), shared), Plan((batch,), (prompt,), tokens, ROUNDS)
        *_, cases = measure(subjects, plan)
        rows += summarise(cases)
        out.write_text(json.dumps({"machine": describe_machine(), "bits": bits, "cases": rows}, indent=1) + "\n")
        print(json.dumps(rows[-4:]), flush=True)


def command(part: str, options: argparse.Namespace) -> list[str] | None:
    """Returns the command of a part; None where something that it needs is not given."""
    cli = [sys.executable, "-m", "parm_mlx.cli.main"]
    if part == "doctor":
        return [*cli, "doctor", "--json"]
    if part == "training":
        return [
            sys.executable,
            str(ROOT / "examples/bench/train.py"),
            "--json",
            "--rounds",
            "1" if options.tiny else "5",
        ]
    if part == "smollm2":
        settings = ["--config", str(ROOT / "examples/smollm2/train.yaml"), "--iters", "20", "--val-batches", "0"]
        where = ["--data", str(options.data), "--model", options.model, "--out", str(options.out / "smollm2-parm")]
        return [*cli, "train", *settings, *where] if options.data else None
    own = [sys.executable, __file__, "--out", str(options.out), "--part", part]
    return [*own, "--tiny"] if options.tiny else own


def main() -> None:
    """Runs the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--part", choices=("bfloat16", "bits"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="pairs.jsonl of examples/smollm2, to train on")
    parser.add_argument("--model", default="smollm2", help="backbone to train on them (default: smollm2)")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=LIMITS, help="parts to run (default: all)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        decode(options.out / f"{options.part}.json", 4 if options.part == "bits" else None, options.tiny)
        return
    for part in options.parts:
        limit, run = LIMITS[part], command(part, options)
        if run is None:
            print(f"{part}: left out, since --data is not given", flush=True)
            continue
        began = time.perf_counter()
        with (options.out / f"{part}.txt").open("w") as log:
            try:
                code = subprocess.run(run, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False).returncode
                ended = "done" if code == 0 else f"exit {code}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit} s"
        print(f"{part}: {ended}, {time.perf_counter() - began:.0f} s, {log.name}", flush=True)


if __name__ == "__main__":
    main()
