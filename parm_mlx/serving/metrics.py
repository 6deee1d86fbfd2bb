"""Counts and sizes in Prometheus's text format."""

import mlx.core as mx

from parm_mlx.serving.engine import Engine

HELP = {
    "requests": "Answers that were asked for.",
    "failed": "Answers that could not be given.",
    "cancelled": "Answers whose client went away.",
    "prompt_tokens": "Tokens of prompts.",
    "cached_tokens": "Tokens of prompts that had been read before.",
    "tokens": "Tokens that were generated.",
}


def metrics(engine: Engine) -> str:
    """The report of an engine."""
    lines = []
    for name, value in engine.counts.items():
        lines += _lines(f"{name}_total", HELP[name], "counter", value)
    lines += _lines("active", "Answers that are generated now.", "gauge", engine.active)
    lines += _lines("queued", "Answers that wait.", "gauge", engine.queued)
    lines += _lines("prompt_cache_bytes", "Bytes of kept prompts and answers.", "gauge", engine.cached_bytes)
    lines += _lines("active_memory_bytes", "Bytes that MLX holds.", "gauge", mx.get_active_memory())
    lines += _lines("peak_memory_bytes", "Most bytes that MLX held.", "gauge", mx.get_peak_memory())
    return "\n".join(lines) + "\n"


def _lines(name: str, what: str, kind: str, value: int) -> list[str]:
    name = f"parm_mlx_{name}"
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {value}"]
