"""The Metal kernels against their twins on this machine, and the record that lets them be used."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from math import isfinite
from statistics import median
from typing import Any

import mlx.core as mx

from parm_mlx.diagnostics.findings import Finding
from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Verdict, check_kernels, passed
from parm_mlx.kernels.record import record_path, save_record

NONE = "not available: no Metal; plain operations do the same"
REPORT = "plain operations take its place; please report it with the output of --json"


def look_at_kernels() -> list[Finding]:
    """Checks every kernel and saves which are to be used; without Metal there is nothing to check.

    Raises:
        ConfigError: ``PARM_MLX_KERNELS`` has a wrong value, or asks for kernels where there is no Metal.
    """
    launcher.runs("lowrank", mx.float32)
    broken = record_is_broken()
    if not launcher.available():
        hint = f"delete {record_path()}"
        return [Finding("kernels", "failed", "the record of an earlier check is broken", hint) if broken else _absent()]
    verdicts = check_kernels()
    findings = [judge(kernel, list(own)) for kernel, own in groupby(_sorted(verdicts), lambda v: v.kernel)]
    save_record(passed(verdicts))
    launcher.forget()
    if broken:
        found = "the record of an earlier check was broken; this check has replaced it"
        findings.append(Finding("record", "warning", found, "nothing is left to do"))
    return findings


def judge(kernel: str, verdicts: Sequence[Verdict]) -> Finding:
    """What came of the cases of one kernel.

    Args:
        kernel: Its name.
        verdicts: Of its cases, those of one dtype together.
    """
    name, data = f"kernel {kernel}", {"cases": [_plain(verdict) for verdict in verdicts]}
    wrong = next((verdict for verdict in verdicts if not verdict.passed), None)
    if wrong is not None:
        reason = wrong.problem or f"error {wrong.error:.1e}, and {wrong.limit:.1e} is allowed"
        return Finding(name, "failed", f"{wrong.dtype}, {wrong.size}: {reason}", REPORT, data)
    parts = []
    for dtype, own in groupby(verdicts, lambda v: v.dtype):
        cases = list(own)
        error = max(case.error for case in cases)
        ratios = [case.ratio for case in cases if case.typical and case.ratio is not None]
        speed = f", {median(ratios):.1f} times its twin's speed" if ratios else ""
        parts.append(f"{dtype} error {error:.0e}{speed}{'' if passed(cases) else ', so it is not used'}")
    return Finding(name, "ok", "; ".join(parts), data=data)


def record_is_broken() -> bool:
    """Whether there is a record that cannot be read; one of another machine or version is not broken."""
    try:
        record = json.loads(record_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(record, dict) or not {"made with", "passed"} <= record.keys()


def _absent() -> Finding:
    reason = NONE if not mx.metal.is_available() else "not used: MLX computes on the CPU"
    return Finding("kernels", "ok", reason, data={"available": False})


def _sorted(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """By kernel and dtype; within those, cases keep their order."""
    return sorted(verdicts, key=lambda verdict: (verdict.kernel, verdict.dtype))


def _plain(verdict: Verdict) -> dict[str, Any]:
    """For JSON, which has no infinity: the error of a kernel that did not run is null."""
    return asdict(verdict) | {"error": verdict.error if isfinite(verdict.error) else None, "passed": verdict.passed}
