"""Writes docs/paper.md: the set-up of the paper's safety task, with hours and memory computed.

``make docs`` writes the page; a test checks that it is current. Nothing here is measured: what is assumed stands in
MACHINES, SHARE and LENGTHS, and on the page. Sizes of models come from make_performance.py.
"""

import runpy
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
FILL = runpy.run_path(str(FOLDER / "template.py"))["fill"]
OUTPUT = FOLDER / "paper.md"
SIZES = runpy.run_path(str(FOLDER / "make_performance.py"))
MODEL = SIZES["LLAMA_7B"]

PAIRS, TRAINED, EPOCHS = 10_000, 8_000, 2
PROMPTS, DIFFERENT, TEST = 5_929, 11, 0.15  # different prompts of the data, preferences, share held out
TOGETHER = 32  # answers at a time, the default of evaluate
MICRO_BATCH, LIMIT = 4, 1024  # pairs computed together, tokens of a conversation
SHARE = 0.4  # of a machine's arithmetic that large products are assumed to reach


class Machine(NamedTuple):
    """What its maker gives: memory bandwidth, and arithmetic in the precision that is used."""

    bandwidth: float  # bytes a second
    arithmetic: float  # operations a second


# 32-bit for Apple, dense 16-bit for NVIDIA.
MACHINES = {
    "M2 Ultra": Machine(800e9, 27.2e12),
    "A100 80 GB (SXM)": Machine(2039e9, 312e12),
    "H100 80 GB (SXM)": Machine(3350e9, 989e12),
}


class Lengths(NamedTuple):
    """Tokens of a prompt, of a response in the data, and of an answer that is generated."""

    prompt: int
    response: int
    answer: int


LENGTHS = {"assumed means": Lengths(50, 100, 200), "limits": Lengths(512, 512, 512)}


def numbers() -> float:
    """Weights that a token is multiplied with, the output layer included."""
    q, kv = MODEL.heads * MODEL.head_dim, MODEL.kv_heads * MODEL.head_dim
    block = MODEL.hidden * (2 * q + 2 * kv + 3 * MODEL.intermediate)
    return float(MODEL.layers * block + MODEL.vocabulary * MODEL.hidden)


def prompts() -> int:
    """Different prompts that are held out."""
    return round(TEST * PROMPTS)


def answers() -> int:
    """Answers to them at every preference and by the base alone."""
    return prompts() * (DIFFERENT + 1)


def cache(tokens: float) -> float:
    """Bytes of keys and values of one sequence in 16 bits."""
    return 2 * MODEL.layers * MODEL.kv_heads * MODEL.head_dim * MODEL.itemsize * tokens


def read_seconds(tokens: float, machine: Machine, passes: int = 1) -> float:
    """Seconds of forward passes over so many tokens; 3 with a backward pass and layers that are computed again."""
    return passes * 2 * numbers() * tokens / (SHARE * machine.arithmetic)


def label_seconds(lengths: Lengths, machine: Machine) -> float:
    """Both responses of every pair, by two reward models."""
    return read_seconds(2 * PAIRS * 2 * (lengths.prompt + lengths.response), machine)


def train_seconds(lengths: Lengths, machine: Machine) -> float:
    """Both responses of the training pairs; gradients of the backbone's weights are not computed."""
    return read_seconds(EPOCHS * TRAINED * 2 * (lengths.prompt + lengths.response), machine, passes=3)


def answer_seconds(lengths: Lengths, machine: Machine) -> float:
    """Guided answers, two rows of one backbone each: what takes longer of reading memory and arithmetic."""
    rows = 2 * TOGETHER
    context = lengths.prompt + lengths.answer / 2
    reading = (SIZES["weights_read"](MODEL) + rows * cache(context)) / machine.bandwidth
    return answers() / TOGETHER * lengths.answer * max(reading, read_seconds(rows, machine))


def score_seconds(lengths: Lengths, machine: Machine) -> float:
    """Every answer, by two reward models."""
    return read_seconds(2 * answers() * (lengths.prompt + lengths.answer), machine)


STEPS = {
    "labels (`data relabel`)": label_seconds,
    "training (`train`)": train_seconds,
    "answers (`evaluate`)": answer_seconds,
    "their scores (`evaluate`)": score_seconds,
}


def hours_table() -> list[str]:
    """Hours of each step, by machine; in a cell at the assumed means and at the limits."""
    lines = ["| | " + " | ".join(MACHINES) + " |", "| --- |" + " ---: |" * len(MACHINES)]
    totals = [[0.0] * len(LENGTHS) for _ in MACHINES]
    for step, seconds in STEPS.items():
        cells = []
        for total, machine in zip(totals, MACHINES.values(), strict=True):
            found = [seconds(lengths, machine) / 3600 for lengths in LENGTHS.values()]
            total[:] = [a + b for a, b in zip(total, found, strict=True)]
            cells.append(hours(found))
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return [*lines, f"| all | {' | '.join(map(hours, totals))} |"]


def hours(found: list[float]) -> str:
    """A cell."""
    return " / ".join(
        f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in found
    )


def quantised() -> float:
    """Bytes of the backbone in 4 bits, its embedding included."""
    embedding = MODEL.vocabulary * MODEL.hidden
    return float(SIZES["weights_read"](MODEL) + embedding * SIZES["BITS"] // 8 + embedding // 64 * 4)


def memory_table() -> list[str]:
    """Gigabytes that each step needs at least, at the limits."""
    plain = 2 * (numbers() + MODEL.vocabulary * MODEL.hidden)
    adapter = SIZES["adapter_read"](MODEL) / MODEL.itemsize * 16  # float32, with gradient and Adam's two moments
    logits = 2 * 4 * 128 * MODEL.vocabulary
    kept = MODEL.layers * 2 * MICRO_BATCH * LIMIT * MODEL.hidden * MODEL.itemsize
    limits = LENGTHS["limits"]
    caches = 2 * TOGETHER * cache(limits.prompt + limits.answer)
    rows = {
        "labels, two reward models in 16 bits": 2 * plain,
        "labels, two reward models in 4 bits": 2 * quantised(),
        "training, 4-bit backbone: weights, adapter, logits": quantised() + adapter + logits,
        f"… and the inputs of all layers for {MICRO_BATCH} pairs of {LIMIT:,} tokens (`--grad-checkpoint`)": quantised()
        + adapter
        + logits
        + kept,
        f"answers, 4-bit backbone, caches of {TOGETHER} at a time": quantised() + caches,
        "answers with both reward models in 4 bits": 3 * quantised() + caches,
    }
    lines = ["| | GB |", "| --- | ---: |"]
    return lines + [f"| {what} | {size / 1e9:.1f} |" for what, size in rows.items()]


def page() -> str:
    """The whole page."""
    machines = (
        f"{name} {m.bandwidth / 1e9:,.0f} GB/s and {m.arithmetic / 1e12:g} TFLOPS" for name, m in MACHINES.items()
    )
    means, limits = LENGTHS.values()
    filled = {
        "hours": "\n".join(hours_table()),
        "memory": "\n".join(memory_table()),
        "machines": ", ".join(machines),
        "share": f"{SHARE:.0%}",
        "numbers": f"{numbers() / 1e9:.2f}",
        "prompts": str(prompts()),
        "answers": f"{answers():,}",
        "means": f"{means.prompt}, {means.response} and {means.answer}",
        "limits": f"{limits.prompt}, {limits.response} and {limits.answer}",
        "together": str(TOGETHER),
    }
    return str(FILL("paper", filled))


def main() -> None:
    """Writes the page."""
    OUTPUT.write_text(page(), encoding="utf-8")
    print(f"wrote {OUTPUT.name}")


if __name__ == "__main__":
    main()
