"""The official formula in PyTorch through transformers: the peer that peers.py compares with, in a process of its own.

It is written from the equations of PARM, the way the official code computes them: every adapted layer builds
ΔW(α) = s · (B₁ W1 A₁ + B₂ W2(α) A₂) at every call and adds the output of linear(x, ΔW) to that of the frozen layer;
base and guide are transformers models with a KV cache each; the next token is the likeliest by the sum of their
log-probabilities.

Neither MLX nor the OpenBLAS that parm_mlx loads for it may be in this process: with that library loaded first, PyTorch
on two threads took three to seven times as long, which would flatter us.

    python examples/bench/official.py WEIGHTS.npz CONFIG.json THREADS

One JSON object a line on stdin, {"prompt": ids, "alpha": weights} or {"decode": steps}, is answered by one on stdout.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear, log_softmax
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

ADAPTER = ("a", "b", "w1", "w2")


class PBLoRA(torch.nn.Module):
    """A frozen linear layer and ΔW(α), built anew at every call."""

    def __init__(self, frozen: torch.nn.Linear, tensors: dict[str, torch.Tensor], scale: float) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, scale
        self.a, self.b, self.w1, self.w2 = (tensors[name] for name in ADAPTER)
        self.alpha = torch.full((self.w2.shape[0],), 1 / self.w2.shape[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """W x + ΔW(α) x."""
        r1 = self.w1.shape[0]
        r2 = self.a.shape[0] - r1
        w2 = (self.alpha @ self.w2).view(r2, r2)
        delta = self.b[:, :r1] @ self.w1 @ self.a[:r1] + self.b[:, r1:] @ w2 @ self.a[r1:]
        return self.frozen(x) + linear(x, self.scale * delta)


class Official:
    """Greedy guided decoding of one sequence.

    Args:
        weights: Tensors by name, those of the base after ``base.`` and those of the guide after ``guide.``.
        config: Arguments of LlamaConfig, and ``scale`` of the adapters.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        scale = config.pop("scale")
        self._models = [build(part(weights, name), config, scale) for name in ("base", "guide")]
        self._adapted = [module for module in self._models[1].modules() if isinstance(module, PBLoRA)]
        self._caches: list[DynamicCache] = []

    def start(self, prompt: Sequence[int], alpha: Sequence[float]) -> None:
        """Begins anew, under a preference."""
        for module in self._adapted:
            module.alpha = torch.tensor(alpha)
        self._caches = [DynamicCache() for _ in self._models]
        self._next = torch.tensor([list(prompt)])

    def decode(self, steps: int) -> list[int]:
        """The next tokens; the first call reads the prompt."""
        tokens = []
        with torch.inference_mode():
            for _ in range(steps):
                parts = zip(self._models, self._caches, strict=True)
                logprobs = sum(log_softmax(self._logits(*pair), dim=-1) for pair in parts)
                self._next = logprobs.argmax(-1, keepdim=True)
                tokens.append(int(self._next))
        return tokens

    def _logits(self, model: LlamaForCausalLM, cache: DynamicCache) -> torch.Tensor:
        return model(self._next, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]


def part(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The tensors of one of the models."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def build(tensors: dict[str, torch.Tensor], config: dict[str, Any], scale: float) -> LlamaForCausalLM:
    """A transformers Llama with these weights, and adapters where there are tensors for them."""
    model = LlamaForCausalLM(LlamaConfig(**config))
    plain = {name.replace(".linear.", "."): value for name, value in tensors.items() if name.endswith(".weight")}
    model.load_state_dict(plain)
    for name, module in list(model.named_modules()):
        if f"{name}.a" in tensors:
            parent, _, attribute = name.rpartition(".")
            own = {key: tensors[f"{name}.{key}"] for key in ADAPTER}
            setattr(model.get_submodule(parent), attribute, PBLoRA(module, own, scale))
    return model.eval()


def main() -> None:
    """Answers commands until stdin ends."""
    weights, config, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(weights) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    official = Official(tensors, json.loads(Path(config).read_text(encoding="utf-8")))
    for line in sys.stdin:
        command = json.loads(line)
        if "prompt" in command:
            official.start(command["prompt"], command["alpha"])
        print(json.dumps({"tokens": official.decode(command["decode"]) if "decode" in command else []}), flush=True)


if __name__ == "__main__":
    main()
