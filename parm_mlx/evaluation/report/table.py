"""The metrics as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(summary: Mapping[str, Any]) -> str:
    """What ``parm-mlx evaluate`` prints: the points of a run or the runs of a comparison, and what was found."""
    return _comparison(summary) if summary["kind"] == "comparison" else _run(summary)


def interval(found: Mapping[str, Any]) -> str:
    """A value with its confidence interval."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _run(run: Mapping[str, Any]) -> str:
    names, rewards = run["objectives"], list(run["rewards"])
    rows = [["alpha (" + ", ".join(names) + ")", *rewards, *(f"{name} (raw)" for name in rewards), "ended", "front"]]
    for number, point in enumerate([run["unguided"], *run["points"]]):
        alpha = "unguided" if point["alpha"] is None else ", ".join(f"{weight:.3g}" for weight in point["alpha"])
        scores = [f"{round(point['scores'][name]['mean'], 2) + 0.0:+.2f}" for name in rewards]
        raw = [f"{point['raw'][name]:.2f}" for name in rewards]
        on_front = "*" if number - 1 in run["front"]["indices"] else ""
        rows.append([alpha, *scores, *raw, f"{point['ended']:.0%}", on_front])
    lines = [_aligned(rows), "", f"hypervolume         {interval(run['hv'])}   reference point {_point(run)}"]
    lines.append(f"mean inner product  {interval(run['mip'])}")
    lines += [f"Spearman {name}  {interval(found)}" for name, found in run["spearman"].items()]
    lines += ["", run["normalization"]["text"], f"Reference point: {run['reference_text']}", _confidence(run), ""]
    return "\n".join(lines + _diagnosis(run) + _time(run))


def _comparison(summary: Mapping[str, Any]) -> str:
    names = summary["objectives"]
    rows = [["run", "hypervolume", "mean inner product", *(f"Spearman {name}" for name in names), "front", "alphas"]]
    for run in summary["runs"]:
        spearman = [interval(run["spearman"][name]) for name in names]
        sizes = [str(run["front"]["size"]), str(len(run["points"]))]
        rows.append([run["name"], interval(run["hv"]), interval(run["mip"]), *spearman, *sizes])
    lines = [_aligned(rows)]
    for one in summary["differences"]:
        lines.append(
            f"{one['run']} less {one['less']}: hypervolume {interval(one['hv'])}, MIP {interval(one['mip'])} (paired)"
        )
    lines += [f"They differ in {name}: {', '.join(values)}" for name, values in summary.get("settings", {}).items()]
    lines += ["", f"Joint reference point {_point(summary)}: {summary['reference_text']}"]
    return "\n".join([*lines, summary["normalization"]["text"], _confidence(summary)])


def _point(summary: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in summary["reference_point"].values()) + ")"


def _confidence(summary: Mapping[str, Any]) -> str:
    confidence = summary["confidence"]
    return f"[ ]: {confidence['level']:.0%} intervals, {confidence['samples']} bootstrap samples of the prompts"


def _diagnosis(run: Mapping[str, Any]) -> list[str]:
    found = [finding["text"] for finding in run["diagnosis"] if finding["found"]]
    return [f"! {text}" for text in found] or ["No sign of failure found."]


def _time(run: Mapping[str, Any]) -> list[str]:
    time = run["time"]
    if "generating_s" not in time:
        return []
    cost = []
    if time.get("base_token_ms", 0) > 0 and "guided_token_ms" in time:
        ratio = time["guided_token_ms"] / time["base_token_ms"]
        cost.append(f"a guided token takes {time['guided_token_ms']:.1f} ms, {ratio:.2f} times one of the base alone")
    share = time["scoring_s"] / max(time["generating_s"] + time["scoring_s"], 1e-9)
    return [
        f"{time['answers']:.0f} answers, {time['tokens']:.0f} tokens in {time['generating_s']:.1f} s; "
        f"scoring {time['scoring_s']:.1f} s, {share:.0%} of the time",
        *cost,
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)
