"""How figures of an evaluation are written, in pictures and on the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Interval = Mapping[str, float | None]


def number(value: float | None, digits: int = 3) -> str:
    """A number to a few digits, with a true minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1e-9:  # what rounding leaves of 0
        return "0"
    return (f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}").replace("-", "−")


def interval(value: Interval, middle: str = "value") -> str:
    """A figure and its confidence interval: ``8.41 [8.02, 8.83]``."""
    if value.get("low") is None:
        return number(value[middle])
    return f"{number(value[middle])} [{number(value['low'])}, {number(value['high'])}]"


def vector(values: Sequence[float]) -> str:
    """Numbers as a point: ``(−2, −2)``."""
    return f"({', '.join(number(value) for value in values)})"


def count(amount: int, what: str) -> str:
    """A number of things: ``1 prompt``, ``32 prompts``."""
    return f"{amount} {what}" if amount == 1 else f"{amount} {what}s"


def short(name: str, length: int = 28) -> str:
    """A name that fits; its middle is left out where it is too long."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2]}…{name[len(name) - (length - 1) // 2 :]}"


def runs_of(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of a comparison, or the one run."""
    return list(summary["runs"]) if summary["kind"] == "comparison" else [summary]


def unit(summary: Mapping[str, Any]) -> str:
    """The unit of the scores, in a few words."""
    return "σ above unguided" if summary["normalization"]["kind"] == "unguided" else "score"


def reference(summary: Mapping[str, Any]) -> str:
    """The reference point, in the order of the objectives."""
    return vector([summary["reference_point"][name] for name in summary["objectives"]])


def intervals(summary: Mapping[str, Any]) -> str:
    """What the intervals are."""
    return f"{summary['confidence']['level']:.0%}".replace("%", " %") + " intervals"


def caption(summary: Mapping[str, Any]) -> str:
    """What a reader must know to read the picture, in a few sentences."""
    runs = runs_of(summary)
    seeds = count(len(runs[0]["seeds"]), "seed")
    over = f"bootstrap over {count(runs[0]['prompts'], 'prompt')}, {seeds}"
    if len(runs) == 1:
        above = f"above the reference point {reference(summary)}"
        figures = f"HV {interval(runs[0]['hv'])} {above}; MIP {interval(runs[0]['mip'])}."
        if len(summary["objectives"]) == 2:
            figures += f" Labels: α = ({', '.join(summary['objectives'])})."
    else:
        figures = f"All runs have the reference point {reference(summary)}."
    return f"{figures} Bars and brackets: {intervals(summary)} ({over})."
