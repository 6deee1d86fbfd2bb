"""Whether this machine computes right, and how it is equipped: what a bug report should say."""

import json
import platform
import time
from collections.abc import Callable, Iterator

import mlx.core as mx

import parm_mlx
from parm_mlx.diagnostics.findings import Finding, examine
from parm_mlx.diagnostics.kernels import look_at_kernels
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import BUNDLED, load
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.requests import Answer, Request
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.machine import BLAS_HINT, device_name, has_metal, physical_memory, usable_memory, versions
from parm_mlx.preference import Alpha
from parm_mlx.rewards.builtin import SCORERS

QUESTIONS = 6
MAX_TOKENS = 60
SIDE = 1024


def examinations() -> dict[str, Callable[[], list[Finding]]]:
    """What there is to look at, by name; each takes seconds. Guidance runs on the kernels that have passed."""
    return {
        "versions": lambda: [look_at_versions()],
        "device": lambda: [look_at_device()],
        "memory": lambda: [look_at_memory()],
        "BLAS": lambda: [look_at_blas()],
        "kernels": look_at_kernels,
        "guidance": lambda: [look_at_guidance()],
    }


def examine_all() -> Iterator[list[Finding]]:
    """Looks at one thing after the other."""
    for name, look in examinations().items():
        yield examine(name, look)


def look_at_versions() -> Finding:
    """What is installed."""
    found = versions() | {"platform": platform.platform()}
    return Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in found.items()), data=found)


def look_at_device() -> Finding:
    """What MLX computes on."""
    data = {"device": device_name(), "metal": mx.metal.is_available()}
    if platform.system() == "Darwin" and not has_metal():
        reason = "MLX was told to use the CPU" if mx.metal.is_available() else "MLX has no Metal here"
        hint = (
            "models run many times faster on the GPU; MLX needs a native Python on Apple silicon with macOS 14 or newer"
        )
        return Finding("device", "warning", f"{data['device']}: {reason}", hint, data)
    return Finding("device", "ok", str(data["device"]), data=data)


def look_at_memory() -> Finding:
    """How large models may be."""
    total, usable = physical_memory(), usable_memory()
    data = {"memory_bytes": total, "usable_bytes": usable}
    if not has_metal():
        return Finding("memory", "ok", f"{total / 1e9:.1f} GB", data=data)
    return Finding("memory", "ok", f"{total / 1e9:.1f} GB; Metal's wired limit is {usable / 1e9:.1f} GB", data=data)


def look_at_blas() -> Finding:
    """How fast float32 matrix products are on the CPU, where the library for them is found."""
    with mx.stream(mx.cpu):
        a = mx.random.normal((SIDE, SIDE), key=mx.random.key(0))
        mx.eval(a, a @ a)
        start = time.perf_counter()
        mx.eval(a @ a)
        speed = 2 * SIDE**3 / (time.perf_counter() - start) / 1e9
    data = {"fast_blas": parm_mlx.FAST_BLAS, "gflops": round(speed, 1)}
    if not parm_mlx.FAST_BLAS:
        return Finding("BLAS", "warning", f"reference BLAS, {speed:.0f} GFLOP/s", BLAS_HINT, data)
    library = "OpenBLAS" if platform.system() == "Linux" else "Accelerate"
    return Finding("BLAS", "ok", f"{library}, {speed:.0f} GFLOP/s in float32 on the CPU", data=data)


def look_at_guidance() -> Finding:
    """Whether the bundled model loads, and whether its answers follow α."""
    model, tokenizer = load()
    prompter = Prompter(tokenizer, tokenizer, guide_template=model.guide.chat_template, limit=model.context_length)
    questions = json.loads((BUNDLED / "held_out_prompts.json").read_text(encoding="utf-8"))[:QUESTIONS]
    k = len(model.objectives)
    corners: list[Alpha] = [tuple(float(i == own) for i in range(k)) for own in range(k)]
    requests = [Request(prompter(text), alpha, Sampling()) for alpha in corners for text in questions]
    start = time.perf_counter()
    answers = sorted(generate_batch(model, tokenizer, requests, MAX_TOKENS), key=lambda answer: answer.index)
    speed = sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - start)
    texts = [[answer.text for answer in answers[i : i + QUESTIONS]] for i in range(0, len(answers), QUESTIONS)]
    finite = all(map(is_finite, [model] * len(answers), requests, answers))
    return judge_guidance(model.objectives, texts, finite, speed)


def is_finite(model: GuidedModel, request: Request, answer: Answer) -> bool:
    """Whether all log-probabilities of an answer, each of every token, are finite."""
    prompt: PromptTokens = request.prompt
    logits = model(mx.array([prompt.base + answer.tokens]), cache=model.make_cache(request.alpha))
    return bool(mx.isfinite(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).all())


def judge_guidance(objectives: tuple[str, ...], texts: list[list[str]], finite: bool, speed: float) -> Finding:
    """What the answers say.

    Args:
        objectives: Names of scorers.
        texts: For each objective, the answers where it has all the weight.
        finite: Whether all log-probabilities are.
        speed: Tokens per second.
    """
    scores = [[sum(map(SCORERS[name], part)) / len(part) for part in texts] for name in objectives]
    moved = []
    follows = True
    for own, (name, means) in enumerate(zip(objectives, scores, strict=True)):
        without = max(mean for i, mean in enumerate(means) if i != own)
        moved.append(f"{name} {without:.1f} → {means[own]:.1f}")
        follows = follows and means[own] > without
    data = {
        "tokens_per_second": round(speed, 1),
        "finite": finite,
        "scores": dict(zip(objectives, scores, strict=True)),
    }
    found = f"{', '.join(moved)} as their weight goes 0 → 1; {speed:.0f} tokens/s"
    hint = "the bundled model computes wrong numbers here; please report it with the output of --json"
    if not finite:
        return Finding("guidance", "failed", f"log-probabilities are not finite; {found}", hint, data)
    if not follows:
        return Finding("guidance", "failed", f"answers do not follow α: {found}", hint, data)
    return Finding("guidance", "ok", found, data=data)
