"""Numbers, intervals and sentences of a report, and the table for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Interval = Mapping[str, float]


def number(value: float | None) -> str:
    """Formats a number to three digits, with a true minus sign; a dash stands for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1e-9:  # what rounding leaves of 0
        return "0"
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


def interval(value: Interval) -> str:
    """Formats a value with its confidence interval: ``8.41 [8.02, 8.83]``."""
    return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"


def vector(values: Sequence[float]) -> str:
    """Formats numbers as a point: ``(−2, −2)``."""
    return f"({', '.join(number(value) for value in values)})"


def count(amount: int, noun: str) -> str:
    """Formats a number of things: ``1 prompt``, ``32 prompts``."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def short(name: str, length: int = 28) -> str:
    """Shortens a name in its middle."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[len(name) - (length - 1) // 2 :]}"


def runs_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the runs of a comparison, or the one run."""
    return list(summary["runs"]) if summary["kind"] == "comparison" else [summary]


def unit(summary: Mapping[str, Any]) -> str:
    """Names the unit of the scores."""
    return "σ above unguided" if summary["normalization"]["kind"] == "unguided" else "score"


def reference(summary: Mapping[str, Any]) -> str:
    """Formats the reference point, in the order of the objectives."""
    return vector([summary["reference_point"][name] for name in summary["objectives"]])


def caption(summary: Mapping[str, Any]) -> str:
    """Describes the picture in a few sentences."""
    runs = runs_of(summary)
    level = f"{summary['confidence']['level']:.0%}".replace("%", " %")
    over = f"bootstrap over {count(runs[0]['prompts'], 'prompt')}, {count(len(runs[0]['seeds']), 'seed')}"
    if len(runs) == 1:
        above = f"above the reference point {reference(summary)}"
        figures = f"HV {interval(runs[0]['hv'])} {above}; MIP {interval(runs[0]['mip'])}."
        if len(summary["objectives"]) == 2:
            figures += f" Labels: α = ({', '.join(summary['objectives'])})."
    else:
        figures = f"All runs have the reference point {reference(summary)}."
    return f"{figures} Bars and brackets: {level} intervals ({over})."


def timing(time: Mapping[str, float]) -> str:
    """Describes what was timed in one sentence; empty if nothing was."""
    parts = []
    if "generating_s" in time:
        counts = f"{time['answers']:.0f} answers, {time['tokens']:.0f} tokens in " if "answers" in time else ""
        parts.append(f"{counts}{number(time['generating_s'])} s")
        parts.append(f"scoring {number(time['scoring_s'])} s ({100 * time['scoring_share']:.1f} %)")
    named = {
        "base_token_ms": "the base",
        "guide_token_ms": "the guide",
        "backbone_token_ms": "its backbone without the adapter",
        "guided_token_ms": "both together",
    }
    tokens = [f"{noun} {number(time[name])} ms" for name, noun in named.items() if name in time]
    if tokens:
        parts.append(f"a token takes {', '.join(tokens)}")
    if "across_open" in time:
        passes, left = number(time["across_passes_per_token"]), 100 * time["across_open"]
        parts.append(f"a guide of another vocabulary took {passes} passes per token and left {left:.2g} % open")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def fidelity(measured: Mapping[str, Any] | None) -> str:
    """Describes in two sentences how far one pass is from exact guidance; empty if that was not measured."""
    if not measured or not measured["positions"]:
        return ""

    def figures(row: Mapping[str, Any]) -> str:
        return f"{number(row['total_variation'])}, {100 * row['same_token']:.1f} %"

    rows = [row for row in measured["by_alpha"] if row["positions"]]
    by_alpha = "; ".join(f"{vector(row['alpha'])} {figures(row)}" for row in rows)
    return (
        f"One pass against exact guidance at {measured['positions']} tokens of these answers: total variation "
        f"{number(measured['total_variation'])}, the same likeliest token {100 * measured['same_token']:.1f} %. "
        f"By α: {by_alpha}."
    )


def table(summary: Mapping[str, Any]) -> str:
    """Formats the metrics for a terminal: the points of a run, or the runs of a comparison, and the diagnosis."""
    return _comparison(summary) if summary["kind"] == "comparison" else _run(summary)


def _run(run: Mapping[str, Any]) -> str:
    names, rewards = run["objectives"], list(run["rewards"])
    rows = [["alpha (" + ", ".join(names) + ")", *rewards, *(f"{name} (raw)" for name in rewards), "ended", "front"]]
    for index, point in enumerate([run["unguided"], *run["points"]], -1):
        alpha = "unguided" if point["alpha"] is None else vector(point["alpha"])
        scores = [f"{round(point['scores'][name]['mean'], 2) + 0.0:+.2f}" for name in rewards]
        raw = [f"{point['raw'][name]:.2f}" for name in rewards]
        rows.append([alpha, *scores, *raw, f"{point['ended']:.0%}", "*" if index in run["front"]["indices"] else ""])
    lines = [_aligned(rows), "", f"hypervolume         {interval(run['hv'])}   reference point {reference(run)}"]
    lines.append(f"mean inner product  {interval(run['mip'])}   of which alpha causes {interval(run['mip_gain'])}")
    lines += [f"Spearman {name}  {interval(value)}" for name, value in run["spearman"].items()]
    lines += ["", run["normalization"]["text"], f"Reference point: {run['reference_text']}"]
    lines += [f"In brackets: {run['confidence']['text']}", ""]
    lines += [f"! {f['text']}" for f in run["diagnosis"] if f["found"]] or ["No sign of failure found."]
    return "\n".join([*lines, *filter(None, (timing(run["time"]), fidelity(run.get("fidelity"))))]).rstrip()


def _comparison(summary: Mapping[str, Any]) -> str:
    names = summary["objectives"]
    heads = ["run", "hypervolume", "mean inner product", "of it by alpha"]
    rows = [[*heads, *(f"Spearman {name}" for name in names), "front", "alphas", *(f"corners {n}" for n in names)]]
    for run in summary["runs"]:
        spearman = [interval(run["spearman"][name]) for name in names]
        sizes = [str(run["front"]["size"]), str(len(run["points"]))]
        corners = [interval(run["corner_difference"][name]) for name in names]
        figures = [interval(run[name]) for name in ("hv", "mip", "mip_gain")]
        rows.append([run["name"], *figures, *spearman, *sizes, *corners])
    lines = [_aligned(rows)]
    for one in summary["differences"]:
        mip = f", MIP {interval(one['mip'])}" if "mip" in one else ""
        lines.append(f"{one['run']} less {one['less']}: hypervolume {interval(one['hv'])}{mip} (paired)")
    lines += [f"{run['name']}: {text}" for run in summary["runs"] if (text := fidelity(run.get("fidelity")))]
    lines += [f"They differ in {name}: {', '.join(values)}" for name, values in summary.get("settings", {}).items()]
    lines += ["", f"Joint reference point {reference(summary)}: {summary['reference_text']}"]
    return "\n".join([*lines, summary["normalization"]["text"], f"In brackets: {summary['confidence']['text']}"])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in cells)
