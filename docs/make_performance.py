"""Writes docs/performance.md from the measurements in docs/performance.json.

``make docs`` writes the page; a test checks that it is current. New measurements come in by

    parm-mlx bench --json > bench.json
    python examples/bench/auto.py --json > auto.json
    python examples/bench/rows.py --json > rows.json
    .venv-bench/bin/python examples/bench/peers.py --json > peers.json
    python docs/make_performance.py --bench bench.json --auto auto.json --rows rows.json --peers peers.json --count
"""

import argparse
import io
import json
import re
import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import random_subjects
from parm_mlx.machine import versions
from parm_mlx.mlxlm import make_prompt_cache
from parm_mlx.pblora import PBLoRALinear
from parm_mlx.pblora.adapter import adapted_layers

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
from mlx.utils import tree_unflatten  # isort: skip

FOLDER = Path(__file__).parent
FILL = runpy.run_path(str(FOLDER / "template.py"))["fill"]
OUTPUT, RECORD = FOLDER / "performance.md", FOLDER / "performance.json"
COSTS = FOLDER.parent / "examples" / "experiments" / "costs.json"

# Gigabytes a second, as Apple gives them; an M3 Max with 30 GPU cores has 300.
CHIPS = {"M1": 68, "M2 Pro": 200, "M3 Max (40 GPU cores)": 400, "M2 Ultra": 800}
BITS, CONTEXT, DRAFTED, ACCEPTED, RANK = 4, 1024, 3, (0.6, 0.9), 8
# c(m): the time of a pass over m tokens, of that over one, as others have published it for 4 bits on M-series chips.
CHECK = {3: 1.3, 4: 1.45}
FLOOR_BUDGET, SHARED_BUDGET, ONE_PASS_BUDGET = 0.97, 0.85, 0.9


# --- Operations

# Operations that give another view of the same numbers and compute nothing.
VIEWS = frozenset(("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape")) | frozenset(
    ("Slice", "Split", "Squeeze", "Transpose", "Unflatten")
)


@dataclass(frozen=True)
class Operations:
    """Number of operations in a graph.

    Attributes:
        all: All operations.
        computing: Those that are not views.
    """

    all: int
    computing: int


def operations_per_layer(make: Callable[[int], nn.Module]) -> Operations:
    """Counts what one more layer adds to the graph of a decoded token.

    Args:
        make: Makes a model of a number of layers.
    """
    return _sum(_of_token(make(2)) - _of_token(make(1)))


def operations_of(outputs: list[mx.array]) -> Counter[str]:
    """Counts the operations that lead to arrays, by kind."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *outputs)
    return Counter(re.findall(r'\[label ?="([^"]*)", shape=rectangle\]', graph.getvalue()))


def _of_token(model: nn.Module) -> Counter[str]:
    """Counts the graph of the second token: what is computed once per sequence is done by then."""
    cache = make_prompt_cache(model)
    for tokens in ([1, 2, 3], [4]):
        mx.eval(model(mx.array([tokens]), cache=cache), [entry.state for entry in cache])
    return operations_of([model(mx.array([[5]]), cache=cache)])


def _sum(kinds: Counter[str]) -> Operations:
    return Operations(kinds.total(), sum(number for kind, number in kinds.items() if kind not in VIEWS))


class Straightforward(nn.Module):
    """PBLoRA as its equation is written, all of it at every call: slices, W1, W2(α), scale and casts."""

    def __init__(self, layer: nn.Module, alpha: mx.array) -> None:
        super().__init__()
        self.layer, self.alpha = layer, alpha

    def __call__(self, x: mx.array) -> mx.array:
        """W x + s · (B₁ W1 A₁ x + B₂ W2(α) A₂ x)."""
        layer, r1, r2 = self.layer, self.layer.config.r1, self.layer.config.r2
        w2 = (self.alpha @ layer.w2).reshape(r2, r2)
        first = ((x.astype(mx.float32) @ layer.a[:r1].T) @ layer.w1.T) @ layer.b[:, :r1].T
        second = ((x.astype(mx.float32) @ layer.a[r1:].T) @ w2.T) @ layer.b[:, r1:].T
        return layer.linear(x) + (layer.config.scale * (first + second)).astype(x.dtype)


def straightforward_guide(layers: int) -> nn.Module:
    """A guide of such layers, in bfloat16 with float32 adapters, as they are trained."""
    model = narrow_subjects(layers).guided.guide.model
    alpha = mx.array([0.5, 0.5])
    adapted = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, PBLoRALinear)]
    model.update_modules(tree_unflatten([(name, Straightforward(layer, alpha)) for name, layer in adapted]))
    return model


def narrow_subjects(layers: int) -> Any:
    """Random models of bfloat16 weights; adapters stay float32."""
    subjects = random_subjects(Size(hidden=64, layers=layers, vocabulary=50))
    for model in (subjects.guided.base, subjects.guided.guide.model):
        model.set_dtype(mx.bfloat16)
        for layer in adapted_layers(model).values():
            for name in layer.tensors:
                layer[name] = layer[name].astype(mx.float32)
    return subjects


def count() -> dict[str, Any]:
    """Operations that a layer takes for a token, in each way to decode."""
    ways = {
        "unguided": lambda n: narrow_subjects(n).guided.base,
        "guide, straightforward": straightforward_guide,
        "guide": lambda n: narrow_subjects(n).guided.guide,
        "guided": lambda n: narrow_subjects(n).guided,
        "shared": lambda n: narrow_subjects(n).shared,
    }
    return {name: asdict(operations_per_layer(make)) for name, make in ways.items()} | {"mlx": versions()["mlx"]}


def operations_table(found: dict[str, Any]) -> list[str]:
    """Before and after, a layer of the base and a layer of the guide each."""
    plain, naive, guide = found["unguided"], found["guide, straightforward"], found["guide"]

    def row(name: str, *parts: dict[str, int]) -> str:
        everything, computing = (sum(part[key] for part in parts) for key in ("all", "computing"))
        return f"| {name} | {everything} | {computing} | {computing - plain['computing']} |"

    return [
        "| | operations | of these computing | more than unguided |",
        "| --- | ---: | ---: | ---: |",
        row("unguided", plain),
        row("before: two models, straightforward layer", plain, naive),
        row("two models", found["guided"]),
        row("shared backbone", found["shared"]),
        "",
        f"The adapters of one layer (q, k and v) took {naive['computing'] - plain['computing']} computing operations "
        f"before and take {guide['computing'] - plain['computing']} now.",
    ]


# --- Measured


def bench_table(bench: dict[str, Any]) -> list[str]:
    """Every case of the benchmark."""
    lines = [
        "| sequences | prompt | | prefill | decode | of the floor | of unguided | peak MB | drafts accepted |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in bench["cases"]:
        alone = row["case"] in ("base", "guide")
        floor = "" if alone else f"{row['of_floor']:.2f} ({between(row['of_floor_spread'])})"
        unguided = "" if row["case"] == "base" else f"{row['of_unguided']:.2f} ({between(row['of_unguided_spread'])})"
        accepted = "" if row["accepted"] is None else f"{row['accepted']:.0%}"
        lines.append(
            f"| {row['batch']} | {row['prompt']} | {row['case']} | {row['prefill_tokens_per_second']:.0f} "
            f"| {row['decode_tokens_per_second']:.1f} | {floor} | {unguided} | {row['peak_mb']:.0f} | {accepted} |"
        )
    return lines


def between(spread: list[float]) -> str:
    """The lowest and the highest round."""
    return f"{spread[0]:.2f}–{spread[1]:.2f}"


def peers_table(peers: dict[str, Any]) -> list[str]:
    """Every way beside the official formula."""
    lines = ["| | ms per token | times the peer's speed | tokens |", "| --- | ---: | ---: | --- |"]
    for name, row in peers["decode"].items():
        low, high = row["ms_per_token_spread"]
        same = {None: "", True: "the same", False: "**others**"}[row["same_tokens"]]
        lines.append(f"| {name} | {row['ms_per_token']:.1f} ({low:.1f}–{high:.1f}) | {row['of_peer']:.2f} | {same} |")
    return lines


def budgets_table(bench: dict[str, Any], peers: dict[str, Any]) -> list[str]:
    """What was aimed at, what came out, and whether that is enough."""
    decode, sweep = peers["decode"], peers["sweep"]
    alone = [row for row in bench["cases"] if row["batch"] == 1]
    rows = [
        (f"{name}, prompt of {row['prompt']} tokens", row[ratio], budget)
        for case, name, ratio, budget in (
            ("guided", "two models, of the floor", "of_floor", FLOOR_BUDGET),
            ("shared", "shared, of unguided decoding", "of_unguided", SHARED_BUDGET),
            ("one-pass", "one pass, of unguided decoding", "of_unguided", ONE_PASS_BUDGET),
        )
        for row in alone
        if row["case"] == case
    ]
    answers = f"{sweep['answers']} answers of {sweep['tokens']} tokens in one batch, times the peer's one by one"
    rows += [
        ("two models, times the official formula", decode["guided"]["of_peer"], decode["guided"]["budget"]),
        ("shared, times the official formula", decode["shared"]["of_peer"], decode["shared"]["budget"]),
        (answers, sweep["of_peer"], sweep["budget"]),
    ]
    lines = ["| one sequence | measured | budget | |", "| --- | ---: | ---: | --- |"]
    for name, value, budget in rows:
        lines.append(f"| {name} | {value:.2f} | {budget:g} | {'met' if value >= budget else '**missed**'} |")
    return lines


def auto_table(found: dict[str, Any]) -> list[str]:
    """What was chosen for each pair, and the speed of every way."""
    lines = [
        "| pair | sequences | chosen | of the fastest way | tokens per second |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for row in found["rows"]:
        speeds = ", ".join(f"{way} {speed:.0f}" for way, speed in row["tokens/s"].items())
        ratio = f"{row['of the fastest']:.2f} ({between([row['lowest'], row['highest']])})"
        lines.append(f"| {row['pair']} | {row['sequences']} | {row['chosen']} | {ratio} | {speeds} |")
    return lines


def rows_table(found: dict[str, Any]) -> list[str]:
    """Milliseconds of a step at each number of sequences, and its ratio to the plain model's."""
    rows = {(row["step"], row["n"]): row for row in found["rows"]}
    sizes = sorted({n for _, n in rows})
    heads = "".join(f" n = {n} |" for n in sizes)
    lines = [f"| a step for n sequences |{heads}", "| --- |" + " ---: |" * len(sizes)]
    for step in dict.fromkeys(step for step, _ in rows):
        cells = (f"{rows[step, n]['ms']:.1f} ms ({rows[step, n]['of plain n']:.2f})" for n in sizes)
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    return lines


# --- On paper


class ModelSize(NamedTuple):
    """A Llama, by the names of its config.json; ``itemsize`` is the bytes of a number in its activations."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    itemsize: int


LLAMA_7B = ModelSize(4096, 32, 32, 32, 128, 11008, 32000, 2)
TINY_1B = ModelSize(2048, 22, 32, 4, 64, 5632, 32000, 2)


def weights_read(model: ModelSize) -> float:
    """Bytes of the weights that a forward pass reads, quantised in groups of 64 with a 16-bit scale and bias.

    Of the embedding it reads a row a token, which is not counted.
    """
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    block = model.hidden * (2 * q + 2 * kv + 3 * model.intermediate)
    numbers = model.layers * block + model.vocabulary * model.hidden
    return numbers * BITS // 8 + numbers // 64 * 4


def cache_read(model: ModelSize) -> float:
    """Bytes of keys and values in 16 bits that one sequence reads at a token."""
    return 2 * model.layers * model.kv_heads * model.head_dim * model.itemsize * CONTEXT


def adapter_read(model: ModelSize) -> float:
    """Bytes of A and of B with the core folded in, in 16 bits, on q, k and v."""
    outputs = (model.heads + 2 * model.kv_heads) * model.head_dim
    return model.layers * RANK * (3 * model.hidden + outputs) * model.itemsize


def tokens_of_check(accepted: float, drafted: int, one_more: bool) -> float:
    """Tokens that a check brings, when each draft is accepted independently: 1 + a + a² + …

    A draft model's last draft, when it is accepted, is followed by one more token; that of base or guide is not,
    because the token after it has not been read.
    """
    return sum(accepted**i for i in range(drafted + one_more))


def bytes_per_token() -> dict[str, float]:
    """Bytes read for a token, by the way to decode."""
    base = weights_read(LLAMA_7B) + cache_read(LLAMA_7B)
    guide = base + adapter_read(LLAMA_7B)
    small = weights_read(TINY_1B) + cache_read(TINY_1B)
    small_guide = small + adapter_read(TINY_1B)
    shared = guide + cache_read(LLAMA_7B)
    found = {
        "unguided 7B": base,
        "two models, 7B + 7B": base + guide,
        "two models, 7B + 1.1B guide": base + small_guide,
        "shared backbone, 7B": shared,
    }
    for a in ACCEPTED:
        own, other = tokens_of_check(a, DRAFTED, False), tokens_of_check(a, DRAFTED, True)
        c, c_one_more = CHECK[DRAFTED], CHECK[DRAFTED + 1]
        found |= {
            f"two models, 7B + 1.1B, guide drafts, {a:.0%} accepted": (DRAFTED * small_guide + c * base) / own,
            f"two models, 7B + 1.1B, base drafts, {a:.0%} accepted": (DRAFTED * base + c * small_guide) / own,
            f"two models, 7B + 7B, base or guide drafts, {a:.0%} accepted": (DRAFTED * base + c * guide) / own,
            f"shared backbone, base or guide drafts, {a:.0%} accepted": (DRAFTED * base + c * guide) / own,
            f"shared backbone, 1.1B drafts, {a:.0%} accepted": (DRAFTED * small + c_one_more * shared) / other,
        }
    return found


def paper_table() -> list[str]:
    """Tokens per second on each chip, were reading all that takes time."""
    lines = [
        "| | GB per token | " + " | ".join(f"{name}, {speed} GB/s" for name, speed in CHIPS.items()) + " |",
        "| --- |" + " ---: |" * (1 + len(CHIPS)),
    ]
    for name, size in bytes_per_token().items():
        cells = " | ".join(f"{speed * 1e9 / size:.0f}" for speed in CHIPS.values())
        lines.append(f"| {name} | {size / 1e9:.2f} | {cells} |")
    return lines


# --- The page


def page(record: dict[str, Any]) -> str:
    """The whole page."""
    bench, peers = record["bench"], record["peers"]
    machine = bench["machine"]
    named = [machine["platform"], *(f"{name} {machine[name]}" for name in ("mlx", "mlx-lm")), machine["device"]]
    named.append(f"load per core before the run {machine['load_per_core']:.2f}")
    filled = {
        "budgets": "\n".join(budgets_table(bench, peers)),
        "bench": "\n".join(bench_table(bench)),
        "bench_machine": ", ".join(named),
        "rounds": str(bench["settings"]["rounds"]),
        "tokens": str(bench["settings"]["tokens"]),
        "peers": "\n".join(peers_table(peers)),
        "peers_machine": peers["machine"],
        **{f"{name}_machine": record[name]["machine"] for name in ("auto", "rows")},
        "auto": "\n".join(auto_table(record["auto"])),
        "rows": "\n".join(rows_table(record["rows"])),
        **{f"costs_{name}": value for name, value in json.loads(COSTS.read_text(encoding="utf-8"))["page"].items()},
        "peers_rounds": str(peers["settings"]["rounds"]),
        "same_answers": f"{peers['sweep']['same_answers']} of {peers['sweep']['answers']}",
        "operations": "\n".join(operations_table(record["operations"])),
        "operations_mlx": record["operations"]["mlx"],
        "paper": "\n".join(paper_table()),
        "context": str(CONTEXT),
        "drafted": str(DRAFTED),
        "check": str(CHECK[DRAFTED]),
        "check_more": str(CHECK[DRAFTED + 1]),
    }
    return str(FILL("performance", filled))


def main() -> None:
    """Takes measurements in, and writes the page."""
    parser = argparse.ArgumentParser(description="Writes docs/performance.md.")
    parser.add_argument("--bench", type=Path, help="what `parm-mlx bench --json` printed")
    parser.add_argument("--peers", type=Path, help="what examples/bench/peers.py --json printed")
    for name in ("auto", "rows"):
        parser.add_argument(f"--{name}", type=Path, help=f"what examples/bench/{name}.py --json printed")
    parser.add_argument("--count", action="store_true", help="count operations anew")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name in ("bench", "peers", "auto", "rows"):
        if file := getattr(options, name):
            record[name] = json.loads(file.read_text(encoding="utf-8"))
    if options.count:
        record["operations"] = count()
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    OUTPUT.write_text(page(record), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")


if __name__ == "__main__":
    main()
