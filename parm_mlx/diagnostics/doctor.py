"""The health of this machine: its equipment, and its results compared with known ones. For bug reports."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, Literal

import mlx.core as mx

import parm_mlx
from parm_mlx.cards import COMPILED, NO_CARD, NO_CARD_HINT, card, compiled_folder
from parm_mlx.errors import ParmError
from parm_mlx.guidance.costs import folder, known
from parm_mlx.guidance.generate import Answer, generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Verdict, check_kernels, passed
from parm_mlx.kernels.launcher import record_path, save_record
from parm_mlx.machine import (
    BLAS_HINT,
    device_name,
    gpu_backend,
    has_gpu,
    has_metal,
    physical_memory,
    usable_memory,
    versions,
)
from parm_mlx.preference import Alpha
from parm_mlx.rewards.builtin import SCORERS

QUESTIONS = 6
MAX_TOKENS = 60
SIDE = 1024
NO_GPU = "not available: neither Metal nor CUDA; plain operations do the same"
REPORT = "plain operations take its place; please report it with the output of --json"


@dataclass(frozen=True)
class Check:
    """The result of one check, in words and in numbers (``data``)."""

    name: str
    status: Literal["ok", "warning", "failed"]  # a warning is worth knowing, a failure is wrong
    found: str
    hint: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the check for JSON, without the path of the user's home folder."""
        named = {"check": self.name, "status": self.status, "found": self.found, "hint": self.hint, "data": self.data}
        return {key: without_home(value) for key, value in named.items()}


def run_check(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    """Runs one check; an error is its result."""
    try:
        return check()
    except ParmError as error:
        return [Check(name, "failed", str(error), error.hint)]
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return [Check(name, "failed", found, "this was not foreseen; please report it with the output of --json")]


def without_home(value: Any) -> Any:
    """Replaces the user's home folder by ~ in every text."""
    if isinstance(value, dict):
        return {key: without_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_home(inner) for inner in value]
    return value.replace(str(Path.home()), "~") if isinstance(value, str) else value


def checks() -> dict[str, Callable[[], list[Check]]]:
    """Returns the checks by name; each takes seconds. Guidance runs on the kernels that have passed."""
    return {
        "versions": lambda: [check_versions()],
        "device": lambda: [check_device(), *check_compiled()],
        "memory": lambda: [check_memory()],
        "BLAS": lambda: [check_blas()],
        "kernels": check_all_kernels,
        "guidance": lambda: [check_guidance()],
        "costs": check_costs,
    }


def run_checks() -> Iterator[list[Check]]:
    """Runs one check after the other."""
    for name, check in checks().items():
        yield run_check(name, check)


def check_versions() -> Check:
    """Lists the versions of what is installed."""
    found = versions() | {"platform": platform.platform()}
    return Check("versions", "ok", ", ".join(f"{name} {version}" for name, version in found.items()), data=found)


def check_device() -> Check:
    """Names the device that MLX computes on."""
    data: dict[str, Any] = {"device": device_name(), "metal": mx.metal.is_available()}
    if gpu_backend() == "CUDA":
        found = card()
        if found is None:
            return Check("device", "failed", NO_CARD, NO_CARD_HINT, data)
        data |= {"memory_bytes": found.memory, "bandwidth_gb_per_s": found.bandwidth}
        speed = f"{found.bandwidth:.0f} GB/s" if found.bandwidth else "bandwidth unknown"
        return Check("device", "ok", f"{data['device']}, {found.memory / 1e9:.1f} GB, {speed}", data=data)
    if platform.system() == "Darwin" and not has_metal():
        reason = "MLX was told to use the CPU" if mx.metal.is_available() else "MLX has no Metal here"
        hint = (
            "models run many times faster on the GPU; MLX needs a native Python on Apple silicon with macOS 14 or newer"
        )
        return Check("device", "warning", f"{data['device']}: {reason}", hint, data)
    return Check("device", "ok", str(data["device"]), data=data)


def check_compiled() -> list[Check]:
    """Says where compiled kernels are kept, where MLX compiles them: with CUDA."""
    if gpu_backend() != "CUDA":
        return []
    folder, lasting = compiled_folder(), COMPILED in os.environ
    found = f"first runs compile, quantised models for minutes; MLX keeps what it compiles in {folder}"
    hint = None if lasting else f"{COMPILED}=FOLDER keeps it in a folder that lasts: this one is for temporary files"
    return [Check("compiled", "ok", found, hint, {"folder": str(folder), "set": lasting})]


def check_memory() -> Check:
    """Measures memory: models must fit in it."""
    total, usable = physical_memory(), usable_memory()
    data = {"memory_bytes": total, "usable_bytes": usable}
    limit = f"; Metal's wired limit is {usable / 1e9:.1f} GB" if has_metal() else ""
    if found := card():
        data["free_bytes"] = found.free
        limit = f"; the card has {found.memory / 1e9:.1f} GB, of which {found.free / 1e9:.1f} GB are free"
    return Check("memory", "ok", f"{total / 1e9:.1f} GB{limit}", data=data)


def check_blas() -> Check:
    """Times float32 matrix products on the CPU."""
    with mx.stream(mx.cpu):
        a = mx.random.normal((SIDE, SIDE), key=mx.random.key(0))
        mx.eval(a, a @ a)
        start = time.perf_counter()
        mx.eval(a @ a)
        speed = 2 * SIDE**3 / (time.perf_counter() - start) / 1e9
    data = {"fast_blas": parm_mlx.FAST_BLAS, "gflops": round(speed, 1)}
    if not parm_mlx.FAST_BLAS:
        return Check("BLAS", "warning", f"reference BLAS, {speed:.0f} GFLOP/s", BLAS_HINT, data)
    library = "OpenBLAS" if platform.system() == "Linux" else "Accelerate"
    return Check("BLAS", "ok", f"{library}, {speed:.0f} GFLOP/s in float32 on the CPU", data=data)


def check_costs() -> list[Check]:
    """Lists what was measured of models here, by which ``--speculation auto`` and ``--share auto`` decide."""
    if not (found := known()):
        return [Check("costs", "ok", "of no models yet: chat and generate measure them where they are first used")]
    lines = [Check("costs", "ok", f"{name}: {costs}", data={"models": name, **asdict(costs)}) for name, costs in found]
    again = Check("costs", "ok", f"to measure them again, delete {folder()}")
    return [*lines, again]


def check_guidance() -> Check:
    """Checks that the bundled model loads and that its answers follow α."""
    model, tokenizer = load("bundled")
    prompter = Prompter(tokenizer, tokenizer, guide_template=model.guide.chat_template, limit=model.context_length)
    questions = held_out_prompts("bundled")[:QUESTIONS]
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
    """Returns True if the log-probabilities of all tokens at all places of an answer are finite."""
    prompt: PromptTokens = request.prompt
    logits = model(mx.array([prompt.base + answer.tokens]), cache=model.make_cache(request.alpha))
    return bool(mx.isfinite(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).all())


def judge_guidance(objectives: tuple[str, ...], texts: list[list[str]], finite: bool, speed: float) -> Check:
    """Checks that answers follow α: for each objective, ``texts`` has the answers where it has all the weight."""
    scores = {name: [sum(map(SCORERS[name], part)) / len(part) for part in texts] for name in objectives}
    moved, follows = [], True
    for own, (name, means) in enumerate(scores.items()):
        without = max(mean for i, mean in enumerate(means) if i != own)
        moved.append(f"{name} {without:.1f} → {means[own]:.1f}")
        follows = follows and means[own] > without
    data = {"tokens_per_second": round(speed, 1), "finite": finite, "scores": scores}
    found = f"{', '.join(moved)} as their weight goes 0 → 1; {speed:.0f} tokens/s"
    hint = "the bundled model computes wrong numbers here; please report it with the output of --json"
    if not finite:
        return Check("guidance", "failed", f"log-probabilities are not finite; {found}", hint, data)
    if not follows:
        return Check("guidance", "failed", f"answers do not follow α: {found}", hint, data)
    return Check("guidance", "ok", found, data=data)


def check_all_kernels() -> list[Check]:
    """Checks every kernel and records those to use; where MLX computes on the CPU there is nothing to check."""
    launcher.runs("lowrank", mx.float32)  # raises ConfigError for a wrong PARM_MLX_KERNELS
    broken = record_is_broken()
    if not gpu_backend():
        if broken:
            return [Check("kernels", "failed", "the record of an earlier check is broken", f"delete {record_path()}")]
        reason = "not used: MLX computes on the CPU" if has_gpu() else NO_GPU
        return [Check("kernels", "ok", reason, data={"available": False})]
    verdicts = sorted(check_kernels(), key=lambda verdict: (verdict.kernel, verdict.dtype))
    results = [judge_kernel(kernel, list(own)) for kernel, own in groupby(verdicts, lambda v: v.kernel)]
    save_record(passed(verdicts))
    launcher.forget()
    if broken:
        found = "the record of an earlier check was broken; this check has replaced it"
        results.append(Check("record", "warning", found, "nothing is left to do"))
    return results


def judge_kernel(kernel: str, verdicts: Sequence[Verdict]) -> Check:
    """Sums up the cases of one kernel, grouped by dtype."""
    # JSON has no infinity: the error of a kernel that did not run is null.
    cases = [
        asdict(verdict) | {"error": verdict.error if isfinite(verdict.error) else None, "passed": verdict.passed}
        for verdict in verdicts
    ]
    name, data = f"kernel {kernel}", {"cases": cases}
    wrong = next((verdict for verdict in verdicts if not verdict.passed), None)
    if wrong is not None:
        reason = wrong.problem or f"error {wrong.error:.1e}, and {wrong.limit:.1e} is allowed"
        return Check(name, "failed", f"{wrong.dtype}, {wrong.size}: {reason}", REPORT, data)
    parts = []
    for dtype, group in groupby(verdicts, lambda v: v.dtype):
        own = list(group)
        ratios = [verdict.ratio for verdict in own if verdict.typical and verdict.ratio is not None]
        speed = f", {median(ratios):.1f} times its twin's speed" if ratios else ""
        error = max(verdict.error for verdict in own)
        parts.append(f"{dtype} error {error:.0e}{speed}{'' if passed(own) else ', so it is not used'}")
    return Check(name, "ok", "; ".join(parts), data=data)


def record_is_broken() -> bool:
    """Returns True if a record cannot be read; one of another machine or version is not broken."""
    try:
        record = json.loads(record_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(record, dict) or not {"made with", "passed"} <= record.keys()
