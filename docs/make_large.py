"""Writes docs/large.md: the figures of a base of 70B parameters and a guide of 7B on two Macs, computed.

``make docs`` writes the page; a test checks that it is current. The sizes of models and what they read for a token come
from make_performance.py. Nothing here is measured: what is assumed stands in LINKS and MACS, and on the page.
"""

import runpy
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
FILL = runpy.run_path(str(FOLDER / "template.py"))["fill"]
OUTPUT = FOLDER / "large.md"
PAPER = runpy.run_path(str(FOLDER / "make_performance.py"))
ModelSize, LLAMA_7B = PAPER["ModelSize"], PAPER["LLAMA_7B"]
weights_read, cache_read, adapter_read = PAPER["weights_read"], PAPER["cache_read"], PAPER["adapter_read"]

LLAMA_70B = ModelSize(8192, 80, 64, 8, 128, 28672, 32000, 2)
MACHINES = 2
# Gigabytes a second of memory, as Apple gives them; all have Thunderbolt 5.
MACS = {"M4 Pro": 273, "M4 Max": 546, "M3 Ultra": 819}
WIRED = 0.75  # the share of its memory that macOS lets a GPU use, about
CHOICE = 4  # bytes of the token that rank 0 tells the others


class Link(NamedTuple):
    """What is assumed of a link: seconds that an exchange takes at least, and bytes a second."""

    name: str
    latency: float
    speed: float


LINKS = (
    Link("RDMA over Thunderbolt 5 (jaccl)", 20e-6, 6e9),
    Link("TCP over Thunderbolt (ring)", 300e-6, 3e9),
    Link("TCP over gigabit Ethernet (ring)", 500e-6, 0.11e9),
)


def head_read(model: Any) -> float:
    """Bytes of the output layer, which mlx-lm's shard() leaves whole on every machine."""
    numbers = model.vocabulary * model.hidden
    return numbers * PAPER["BITS"] // 8 + numbers // 64 * 4


def embedding_kept(model: Any) -> float:
    """Bytes of the embedding, which every machine keeps whole, and of which a token reads a row."""
    return head_read(model)


def base_read() -> float:
    """Bytes that the base reads for a token."""
    return weights_read(LLAMA_70B) + cache_read(LLAMA_70B)


def guide_read() -> float:
    """Bytes that the guide reads for a token."""
    return weights_read(LLAMA_7B) + cache_read(LLAMA_7B) + adapter_read(LLAMA_7B)


def cut_read(rows: int = 1, adapted: bool = False) -> float:
    """Bytes that one machine reads of a base that is cut in two; a shared backbone has two rows, and an adapter."""
    blocks = weights_read(LLAMA_70B) - head_read(LLAMA_70B) + rows * cache_read(LLAMA_70B)
    return (blocks + adapted * adapter_read(LLAMA_70B)) / MACHINES + head_read(LLAMA_70B)


def exchanges(way: str) -> list[float]:
    """Bytes of every exchange that a token takes: the way's own, and the token that rank 0 chooses."""
    hidden = LLAMA_70B.hidden * LLAMA_70B.itemsize
    own = {
        "alone": [],
        "tensor": [hidden] * (2 * LLAMA_70B.layers),  # after o_proj and after down_proj of every layer
        "tensor, shared": [2 * hidden] * (2 * LLAMA_70B.layers),
        "pipeline": [hidden] * 2,  # from one half to the other, and the result to all
        "apart": [LLAMA_70B.vocabulary * 4],  # logits in float32
    }[way]
    return own + [CHOICE] * (way != "alone")


def bytes_read(way: str) -> float:
    """Bytes that are read one after the other for a token: those of two machines that work at a time count once."""
    return {
        "alone": base_read() + guide_read(),
        "tensor": cut_read() + guide_read(),
        "tensor, shared": cut_read(rows=2, adapted=True),
        "pipeline": base_read() + guide_read(),
        "apart": max(base_read(), guide_read()),
    }[way]


def memory(way: str) -> list[float]:
    """Bytes of weights and caches on each machine."""
    base, guide = (read() + embedding_kept(size) for read, size in ((base_read, LLAMA_70B), (guide_read, LLAMA_7B)))
    cut = embedding_kept(LLAMA_70B)
    return {
        "alone": [base + guide],
        "tensor": [cut_read() + cut + guide] * 2,
        "tensor, shared": [cut_read(rows=2, adapted=True) + cut] * 2,
        "pipeline": [cut_read() + cut + guide] * 2,  # halves of the layers, as of every layer
        "apart": [base, guide],
    }[way]


def seconds(way: str, bandwidth: float, link: Link) -> float:
    """Seconds of a token: reading, and waiting for the link."""
    return bytes_read(way) / bandwidth / 1e9 + sum(link.latency + size / link.speed for size in exchanges(way))


WAYS = {
    "alone": "one Mac for both",
    "tensor": "`--shard tensor`",
    "pipeline": "`--shard pipeline`",
    "apart": "`--shard apart`",
    "tensor, shared": "`--shard tensor`, a PARM of the 70B itself",
}


def speed_table() -> list[str]:
    """Tokens per second at most, by way and Mac; in a cell, those over each link."""
    lines = ["| | " + " | ".join(f"two {mac}" for mac in MACS) + " |", "| --- |" + " ---: |" * len(MACS)]
    for way, name in WAYS.items():
        links = LINKS if way != "alone" else LINKS[:1]
        cells = (" / ".join(f"{1 / seconds(way, speed, link):.1f}" for link in links) for speed in MACS.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def memory_table() -> list[str]:
    """What each machine must hold, and the memory that it needs for that."""
    lines = ["| | first Mac, GB | second Mac, GB | memory of each, at least, GB |", "| --- | ---: | ---: | --- |"]
    for way, name in WAYS.items():
        needed = memory(way)
        cells = [f"{size / 1e9:.1f}" for size in needed] + ["–"] * (2 - len(needed))
        least = " and ".join(f"{smallest_mac(size / 1e9)}" for size in dict.fromkeys(needed))
        lines.append(f"| {name} | {' | '.join(cells)} | {least} |")
    return lines


def smallest_mac(needed: float) -> int:
    """Gigabytes of the smallest Mac whose GPU may use so many."""
    return next(size for size in (16, 24, 32, 36, 48, 64, 96, 128, 256, 512) if WIRED * size >= needed)


def traffic_table() -> list[str]:
    """Exchanges and bytes of a token."""
    lines = ["| | exchanges | kB | " + " | ".join(f"ms, {link.name}" for link in LINKS) + " |"]
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(LINKS))
    for way, name in WAYS.items():
        sizes = exchanges(way)
        waits = (1e3 * sum(link.latency + size / link.speed for size in sizes) for link in LINKS)
        lines.append(f"| {name} | {len(sizes)} | {sum(sizes) / 1e3:.0f} | {' | '.join(f'{ms:.2f}' for ms in waits)} |")
    return lines


def break_even() -> list[str]:
    """The latency up to which cutting the base pays more than apart, by Mac; the link's speed is that of the first."""
    lines = []
    for mac, bandwidth in MACS.items():
        saved = (bytes_read("apart") - bytes_read("tensor")) / bandwidth / 1e9
        sent = (sum(exchanges("tensor")) - sum(exchanges("apart"))) / LINKS[0].speed
        more = len(exchanges("tensor")) - len(exchanges("apart"))
        lines.append(f"{(saved - sent) / more * 1e6:.0f} µs on two {mac}")
    return lines


def prompt_seconds(link: Link) -> float:
    """Seconds on the link for a prompt of CONTEXT tokens whose base is cut."""
    return sum(link.latency + PAPER["CONTEXT"] * size / link.speed for size in exchanges("tensor"))


def page() -> str:
    """The whole page."""
    filled = {
        "speed": "\n".join(speed_table()),
        "memory": "\n".join(memory_table()),
        "traffic": "\n".join(traffic_table()),
        "base_gb": f"{base_read() / 1e9:.1f}",
        "guide_gb": f"{guide_read() / 1e9:.1f}",
        "context": f"{PAPER['CONTEXT']:,}",
        "macs": ", ".join(f"{name} {speed} GB/s" for name, speed in MACS.items()),
        "links": "\n".join(f"- {link.name}: {link.latency * 1e6:.0f} µs, {link.speed / 1e9:g} GB/s" for link in LINKS),
        "break_even": ", ".join(break_even()),
        "wired": f"{WIRED:.0%}",
        "prompt": ", ".join(f"{prompt_seconds(link):.1f} s over {link.name.partition(' (')[0]}" for link in LINKS),
        "steps": str(2 * LLAMA_70B.layers),
    }
    return str(FILL("large", filled))


def main() -> None:
    """Writes the page."""
    OUTPUT.write_text(page(), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")


if __name__ == "__main__":
    main()
