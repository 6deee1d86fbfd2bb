"""Trains the tokenizer and the base language model of the bundled pair from nothing.

    python examples/bundled/make_base.py

The model is a small Llama. It sees an endless seeded stream of conversations from the text world and learns the
assistant's words in them; the held-out questions never occur. A run that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import math
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # OpenBLAS reads it when it is loaded

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import dialogues
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import tokenizer as bpe
import world
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.llama import Model, ModelArgs

from parm_mlx.machine import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
SEED = 20250506
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": bpe.VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


def render(tokenizer: Any, talk: list[dialogues.Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant says (its end mark included)."""
    ids, spoken = [tokenizer.bos_token_id], [False]
    end = tokenizer.eos_token_id
    for message in talk:
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        text = [*tokenizer.encode(message["content"], add_special_tokens=False), end]
        ids += [role, *text]
        spoken += [False] + [message["role"] == "assistant"] * len(text)
    return ids, spoken


def make_batch(tokenizer: Any, step: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of packed conversations for one step: ids (rows, length + 1) and the mask of the targets (rows, length)."""
    stream = dialogues.stream(SEED + 1000 + step)
    ids = np.zeros((rows, length + 1), np.int32)
    mask = np.zeros((rows, length + 1), bool)
    for row in range(rows):
        packed: list[int] = []
        spoken: list[bool] = []
        while len(packed) <= length:
            more, said = render(tokenizer, next(stream))
            packed += more
            spoken += said
        ids[row], mask[row] = packed[: length + 1], spoken[: length + 1]
    return ids, mask[:, 1:]


class Trainer:
    """One compiled training step that spreads the rows of a batch over CPU streams."""

    def __init__(self, model: Model, optimizer: optim.Optimizer, streams: int) -> None:
        self.model, self.optimizer = model, optimizer
        self.streams = [mx.new_stream(mx.default_device()) for _ in range(streams)]
        state = [model.state, optimizer.state]
        grad = nn.value_and_grad(model, self.loss)

        def step(ids: mx.array, places: mx.array, weights: mx.array) -> mx.array:
            loss, gradients = grad(ids, places, weights)
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            return loss

        self.step = mx.compile(step, inputs=state, outputs=state)

    def loss(self, ids: mx.array, places: mx.array, weights: mx.array) -> mx.array:
        """Mean loss of the targets at ``places`` (streams, n), flat indices into each stream's share of the rows."""
        rows = ids.shape[0] // len(self.streams)
        total = []
        for i, stream in enumerate(self.streams):
            with mx.stream(stream):
                share = ids[i * rows : (i + 1) * rows]
                hidden = self.model.model(share[:, :-1])
                hidden = hidden.reshape(-1, hidden.shape[-1])[places[i]]
                logits = self.model.model.embed_tokens.as_linear(hidden)
                losses = nn.losses.cross_entropy(logits, share[:, 1:].reshape(-1)[places[i]])
                total.append((losses * weights[i]).sum())
        return sum(total) / weights.sum()


def targets(mask: np.ndarray, streams: int, share: float = 0.76) -> tuple[np.ndarray, np.ndarray]:
    """The target positions of each stream's rows, cut or padded to a fixed number, and their weights."""
    size = int(mask.size / streams * share)
    places, weights = np.zeros((streams, size), np.int32), np.zeros((streams, size), np.float32)
    for i, part in enumerate(np.split(mask, streams)):
        found = np.flatnonzero(part)[:size]
        places[i, : len(found)], weights[i, : len(found)] = found, 1.0
    return places, weights


def make_optimizer(steps: int, peak: float) -> optim.Optimizer:
    """AdamW with a warm-up of 100 steps and a cosine decay to a fiftieth of the peak."""
    warm_up = optim.linear_schedule(0.0, peak, 100)
    decay = optim.cosine_decay(peak, steps - 100, peak * 0.02)
    return optim.AdamW(optim.join_schedules([warm_up, decay], [100]), betas=[0.9, 0.98], weight_decay=0.05)


def perplexity(model: Model, tokenizer: Any, count: int) -> float:
    """Perplexity per token of the answers to ``count`` held-out questions, end mark included."""
    rng = random.Random(SEED)
    rows = [render(tokenizer, dialogues.dialogue(rng, held_out=True)) for _ in range(count)]
    total, tokens = 0.0, 0
    for start in range(0, count, 16):
        part = rows[start : start + 16]
        width = max(len(ids) for ids, _ in part)
        ids = mx.array([ids + [0] * (width - len(ids)) for ids, _ in part])
        mask = mx.array([spoken + [False] * (width - len(spoken)) for _, spoken in part])[:, 1:]
        losses = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        total += (losses * mask).sum().item()
        tokens += mask.sum().item()
    return math.exp(total / tokens)


def architecture(width: int, layers: int) -> dict[str, Any]:
    """The bundled architecture at another size; a head stays 64 wide."""
    size = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 2 * width}
    return ARCHITECTURE | size | {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}


def save_model(model: Model, tokenizer: Any, out: Path) -> int:
    """Writes a model directory that mlx-lm loads, weights in float16; returns its size in bytes."""
    config = {name: getattr(model.args, name) for name in ARCHITECTURE}
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(out))
    weights = {name: value.astype(mx.float16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    (out / "config.json").write_text(json.dumps(config | ends, indent=2) + "\n", encoding="utf-8")
    return sum(path.stat().st_size for path in out.iterdir())


def save_state(path: Path, step: int, seconds: float, trainer: Trainer) -> None:
    """Writes everything that is needed to go on after ``step`` steps, which took so many seconds."""
    state = {f"model.{k}": v for k, v in tree_flatten(trainer.model.parameters())}
    state |= {f"optimizer.{k}": v for k, v in tree_flatten(trainer.optimizer.state)}
    part = path.with_name("part.safetensors")
    mx.save_safetensors(str(part), state, metadata={"step": str(step), "seconds": str(seconds)})
    part.replace(path)


def load_state(path: Path, model: Model, optimizer: optim.Optimizer) -> tuple[int, float]:
    """Restores what save_state wrote; returns the number of steps done and the seconds they took."""
    arrays, metadata = mx.load(str(path), return_metadata=True)
    parts: dict[str, list[tuple[str, mx.array]]] = {"model": [], "optimizer": []}
    for name, value in arrays.items():
        owner, _, rest = name.partition(".")
        parts[owner].append((rest, value))
    model.load_weights(parts["model"])
    optimizer.state = tree_unflatten(parts["optimizer"])
    return int(metadata["step"]), float(metadata["seconds"])


def fit(trainer: Trainer, tokenizer: Any, args: argparse.Namespace, begin: float) -> list[float]:
    """Trains up to ``args.steps`` steps, from the checkpoint if there is one; returns the losses.

    Reports every 50 steps; writes a checkpoint and the model every 400.
    """
    model, checkpoint = trainer.model, args.work / "base_state.safetensors"
    done, seconds = load_state(checkpoint, model, trainer.optimizer) if checkpoint.exists() else (0, 0.0)
    clock, seen, losses = time.perf_counter(), 0, []
    for step in range(done, args.steps):
        ids, mask = make_batch(tokenizer, step, args.rows, args.length)
        places, weights = targets(mask, args.streams)
        loss = trainer.step(mx.array(ids), mx.array(places), mx.array(weights))
        mx.eval(loss, model.state, trainer.optimizer.state)
        losses.append(loss.item())
        seen += args.rows * args.length
        if (step + 1) % 50 == 0:
            speed = seen / (time.perf_counter() - clock)
            left = (args.steps - step - 1) * args.rows * args.length / speed / 60
            mean = statistics.mean(losses[-50:])
            print(f"step {step + 1}  loss {mean:.3f}  {speed:.0f} tokens/s  {left:.1f} min left", flush=True)
        if (step + 1) % 400 == 0 or step + 1 == args.steps:
            save_state(checkpoint, step + 1, seconds + time.perf_counter() - begin, trainer)
            save_model(model, tokenizer, args.out)
            print(f"step {step + 1}  held-out perplexity {perplexity(model, tokenizer, 96):.3f}", flush=True)
    return losses


def main() -> None:
    """Trains, and writes the model, the demo's held-out questions and the numbers for the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "parm_mlx" / "models" / "base")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bundled")
    parser.add_argument("--steps", type=int, default=2700)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=ARCHITECTURE["hidden_size"], help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=ARCHITECTURE["num_hidden_layers"])
    parser.add_argument("--streams", type=int, default=2 if mx.default_device() == mx.Device(mx.cpu) else 1)
    args = parser.parse_args()
    keep_freed_memory()

    begin = time.perf_counter()
    args.work.mkdir(parents=True, exist_ok=True)
    mx.random.seed(SEED)
    tokenizer = bpe.train(SEED)
    model = Model(ModelArgs.from_dict(architecture(args.width, args.layers)))
    optimizer = make_optimizer(args.steps, args.learning_rate)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    size = sum(value.size for _, value in tree_flatten(model.parameters()))
    print(f"{size / 1e6:.2f} M parameters, {args.steps} steps of {args.rows} x {args.length} tokens", flush=True)
    losses = fit(Trainer(model, optimizer, args.streams), tokenizer, args, begin)

    total = save_model(model, tokenizer, args.out)
    prompts = "\n".join(world.demo_questions())
    (args.out.parent / "bundled_held_out.txt").write_text(prompts + "\n", encoding="utf-8")
    result = {
        "parameters": size,
        "tokens": args.steps * args.rows * args.length,
        "final_loss": round(statistics.mean(losses[-100:]), 4) if losses else None,
        "held_out_perplexity": round(perplexity(model, tokenizer, 800), 4),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "bytes": total,
    }
    (args.work / "base.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2), flush=True)


if __name__ == "__main__":
    main()
