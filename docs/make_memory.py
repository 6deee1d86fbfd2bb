"""Writes docs/memory.md, how much memory training takes, with the estimator that ``parm-mlx train`` uses.

``make docs`` runs it; a test checks that the file is current. No model is loaded.
"""

from dataclasses import replace
from pathlib import Path

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.training.memory import AdapterSize, ModelSize, estimate, plain_weights, uniform_load

OUTPUT = Path(__file__).parent / "memory.md"
PAIRS = 4
LENGTHS = (256, 512, 1024, 2048)
RANK, CORE = 8, 4 * 4 + 2 * 4 * 4
HEADER = f"""# Memory

Before training starts, `parm-mlx train` estimates its peak memory and compares it with what the machine has: on a Mac
what Metal recommends as the working set, elsewhere the physical memory. If it does not fit, a warning names the flags
that help and the peak with them. At the end the measured peak is printed beside the estimate. On small Llamas on a
Linux CPU (hidden 64 to 512, float32, float16 and 4 bits) the estimate came within −7 % and +18 % of the peak.

The table is **computed by that estimator, not run on Apple hardware**. GB (10⁹ bytes) at the peak of a step with
`--batch-size {PAIRS}`, the default adapter (r1 = r2 = 4 on q, k, v, dropout 0.05, two objectives) and 16-bit
activations. Half of every sequence is the prompt, which is read once for both responses. 4 bits means groups of 64.
Python, the tokenizer and memory that MLX keeps for reuse come on top.

"""
FOOTER = """
What helps, and what it costs:

| flag | effect |
| --- | --- |
| `--batch-size 1 --grad-accumulation-steps 4` | what layers keep falls to a quarter; the same step, a bit slower |
| `--grad-checkpoint` | layers keep only their inputs; about a third more time |
| `--max-seq-length` | longer pairs are left out; attention scores grow with the square of the length |
| `--dropout 0` | the adapters keep no dropped copies of their inputs; it changes the result |
| `parm-mlx convert -q` | a quantised backbone: weights in a quarter of the memory |

Logits are computed for 128 response tokens at a time, so they grow with 128 × vocabulary, not with tokens × vocabulary:
`examples/bench/train.py` measures it at 256, 1024 and 4096 tokens.

`make docs` writes this page (`docs/make_memory.py`).
"""
# Sizes as the models' config.json gives them; the last entry says whether the output layer is the embedding.
MODELS = {
    "TinyLlama 1.1B": (ModelSize(2048, 22, 32, 4, 64, 5632, 32000, 2, 0), False),
    "Llama 3.2 3B": (ModelSize(3072, 28, 24, 8, 128, 8192, 128256, 2, 0), True),
    "Llama 2 7B": (ModelSize(4096, 32, 32, 32, 128, 11008, 32000, 2, 0), False),
    "Llama 3 8B": (ModelSize(4096, 32, 32, 8, 128, 14336, 128256, 2, 0), False),
}


def default_adapter(model: ModelSize) -> AdapterSize:
    """PBLoRA with r1 = r2 = 4 on the query, key and value projections, for two objectives."""
    outputs = (model.heads + 2 * model.kv_heads) * model.head_dim
    numbers = model.layers * (RANK * (3 * model.hidden + outputs) + 3 * CORE)
    return AdapterSize(numbers, 3 * model.hidden, model.hidden, dropout=True)


def rows() -> list[str]:
    """One line per model, precision and setting."""
    lines = []
    for name, (size, tied) in MODELS.items():
        for label, bits in (("4 bits", 4), ("16 bits", None)):
            model = replace(size, weights=plain_weights(size, tied, bits))
            for checkpoint in (False, True):
                peaks = [
                    estimate(model, default_adapter(model), uniform_load(PAIRS, length, length // 2), checkpoint).total
                    for length in LENGTHS
                ]
                cells = " | ".join(f"{peak / 1e9:.1f}" for peak in peaks)
                flag = "`--grad-checkpoint`" if checkpoint else ""
                lines.append(f"| {name} | {label} | {model.weights / 1e9:.1f} | {flag} | {cells} |")
    return lines


def page() -> str:
    """The whole page."""
    lengths = " | ".join(f"{length} tokens" for length in LENGTHS)
    head = [f"| model | weights | GB | with | {lengths} |", "| --- | --- | ---: | --- |" + " ---: |" * len(LENGTHS)]
    return HEADER + "\n".join([*head, *rows()]) + "\n" + FOOTER


if __name__ == "__main__":
    OUTPUT.write_text(page(), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")
