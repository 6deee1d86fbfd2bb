"""The part of gpu.py that trains, in a process of its own: ``gpu_training.py OUT.json [--toy]``.

The training step of train.py in the shapes of SmolLM2-135M (hidden 576, 30 layers, vocabulary 49,152, 9 heads of which
3 for keys and values), bfloat16 weights with float32 adapters: pairs a second of its four ways, and their peak memory.
"""

import json
import sys
from pathlib import Path

from train import compare, random_batch  # first, since it loads the BLAS that MLX then uses

import mlx.core as mx  # isort: skip

from parm_mlx.diagnostics.subjects import randomise_adapters  # isort: skip
from parm_mlx.machine import describe_machine, device_name  # isort: skip
from parm_mlx.mlxlm import llama  # isort: skip
from parm_mlx.pblora import PBLoRAConfig, attach  # isort: skip

SHAPE = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152}
TOY = {"hidden_size": 72, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 500}
CASES = {"8 × (128 + 128)": [(128, 128)] * 8, "8 × (192 + 64)": [(192, 64)] * 8}
TOY_CASES = {"2 × (8 + 8)": [(8, 8)] * 2}


def main() -> None:
    """Measures, and writes after every case."""
    out, toy = Path(sys.argv[1]), "--toy" in sys.argv[2:]
    if toy:
        mx.set_default_device(mx.cpu)
    mx.random.seed(0)
    shape = TOY if toy else SHAPE
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
    model = llama.Model(llama.ModelArgs(model_type="llama", **shape, **heads))
    model.set_dtype(mx.float32 if toy else mx.bfloat16)
    attach(model, PBLoRAConfig(objectives=("a", "b")))
    randomise_adapters(model)
    model.train()
    mx.eval(model.parameters())
    found = {"device": device_name(), "machine": describe_machine(), "toy": toy, "shape": shape, "cases": {}}
    for name, sizes in (TOY_CASES if toy else CASES).items():
        found["cases"][name] = compare(model, random_batch(sizes, shape["vocab_size"]), 1 if toy else 5)
        found["peak_bytes"] = mx.get_peak_memory()
        out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(json.dumps({name: found["cases"][name]}), flush=True)


if __name__ == "__main__":
    main()
