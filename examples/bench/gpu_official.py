"""The official formula in PyTorch on the shapes of gpu.py, of which it is a part: ``gpu_official.py OUT.json [--toy]``.

The layers are those of official.py, which builds ΔW(α) at every call; the weights are random and made on the device.
bfloat16, eager, greedy. A model has one preference at a time, so that the 16 sequences share one.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from official import PBLoRA
from torch.nn.functional import log_softmax
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SHAPES = {"8B": (4096, 32, 14336, 32, 8), "1B": (2048, 16, 8192, 32, 8)}  # as in gpu_decoding.py
TOY = {"8B": (256, 4, 512, 4, 2), "1B": (128, 2, 256, 4, 2)}
PROMPT, TOKENS, ROUNDS, WARM = 64, 24, 3, 4


def make(name: str, toy: bool, device: str) -> LlamaForCausalLM:
    """A Llama with random weights."""
    hidden, layers, intermediate, heads, kv_heads = (TOY if toy else SHAPES)[name]
    torch.set_default_dtype(torch.float32 if toy else torch.bfloat16)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=1000 if toy else 128256,
        tie_word_embeddings=name == "1B",
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def adapt(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Puts PBLoRA r1 = r2 = 4 for two objectives on q, k and v."""
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            frozen = getattr(layer.self_attn, name)
            out, width = frozen.weight.shape
            shapes = {"a": (8, width), "b": (out, 8), "w1": (4, 4), "w2": (2, 16)}
            like = {"device": frozen.weight.device, "dtype": frozen.weight.dtype}
            tensors = {key: torch.randn(shape, **like) * width**-0.5 for key, shape in shapes.items()}
            adapted = PBLoRA(frozen, tensors, 2.0)
            adapted.alpha = adapted.alpha.to(**like)
            setattr(layer.self_attn, name, adapted)
    return model


def milliseconds(models: list[LlamaForCausalLM], batch: int, tokens: int, device: str) -> float:
    """Returns those of a step of several models, whose log-probabilities are added."""
    caches = [DynamicCache() for _ in models]
    following = torch.arange(PROMPT, device=device).repeat(batch, 1)
    began = 0.0
    with torch.inference_mode():
        for step in range(WARM + tokens):
            if step == WARM:
                began = time.perf_counter()
            parts = (
                log_softmax(model(following, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1], -1)
                for model, cache in zip(models, caches, strict=True)
            )
            following = sum(parts).argmax(-1, keepdim=True)
            following[0, 0].item()  # waits for the device, as printing a token does
    return 1000 * (time.perf_counter() - began) / tokens


def main() -> None:
    """Measures, and writes after every row."""
    out, toy = Path(sys.argv[1]), "--toy" in sys.argv[2:]
    if not toy and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no card here")
    device = "cpu" if toy else "cuda"
    if toy:
        torch.set_num_threads(1)  # several would wait for each other where other programs run
    base, guide = make("8B", toy, device), adapt(make("1B", toy, device))
    name = "CPU" if toy else torch.cuda.get_device_name(0)
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": toy, "rows": []}
    for batch in (1, 2) if toy else (1, 16):
        for way, models in (("base", [base]), ("guide", [guide]), ("guided", [base, guide])):
            times = [milliseconds(models, batch, 4 if toy else TOKENS, device) for _ in range(1 if toy else ROUNDS)]
            spread = [round(min(times), 3), round(max(times), 3)]
            row = {"way": way, "sequences": batch, "prompt": PROMPT, "ms_per_step": round(median(times), 3)}
            found["rows"].append({**row, "ms_spread": spread})
            found["peak_bytes"] = 0 if toy else torch.cuda.max_memory_allocated()
            out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            print(json.dumps(found["rows"][-1]), flush=True)


if __name__ == "__main__":
    main()
