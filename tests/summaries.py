"""Made-up metrics, in the form of metrics.json, for tests of what is drawn and written from them."""

import itertools
import math
from typing import Any

NAMES = ("warm", "brief", "formal", "hedge", "concrete", "question", "upbeat", "polite")


def score(mean: float, spread: float = 0.12) -> dict[str, float]:
    return {"mean": mean, "low": mean - spread, "high": mean + spread}


def interval(value: float, spread: float = 0.2) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def grid(k: int, parts: int) -> list[list[float]]:
    """All α with weights in steps of 1/parts."""
    weights = itertools.product(range(parts + 1), repeat=k)
    return [[weight / parts for weight in row] for row in weights if sum(row) == parts]


def point(alpha: list[float] | None, values: list[float], names: tuple[str, ...]) -> dict[str, Any]:
    scores = {name: score(value) for name, value in zip(names, values, strict=True)}
    raw = {name: 0.4 + value / 10 for name, value in zip(names, values, strict=True)}
    return {"alpha": alpha, "answers": 24, "ended": 0.875, "tokens": 41.5, "scores": scores, "raw": raw}


def run(k: int = 2, parts: int = 10, name: str = "toy", strength: float = 1.0, dent: bool = True) -> dict[str, Any]:
    """A run whose scores rise with the weights, on a curve; with ``dent`` the second point is dominated."""
    names = NAMES[:k]
    points = [point(a, [strength * (2.2 * math.sqrt(w) - 0.4) for w in a], names) for a in grid(k, parts)]
    if dent and len(points) > 3:
        for value in points[1]["scores"].values():
            value.update(score(value["mean"] - 0.6))
    dominated = {1} if dent and len(points) > 3 else set()
    front = [index for index in range(len(points)) if index not in dominated]
    return {
        "format": 1,
        "kind": "run",
        "name": name,
        "objectives": list(names),
        "rewards": {n: f"builtin:{n}" for n in names},
        "prompts": 24,
        "seeds": [0],
        **shared(names),
        "unguided": point(None, [0.0] * k, names),
        "points": points,
        "hv": interval(8.4 * strength),
        "mip": interval(1.1 * strength),
        "spearman": {n: interval(0.93, 0.04) for n in names},
        "corner_difference": {n: interval(2.2 * strength) for n in names},
        "front": {"indices": front, "size": len(front), "spacing": 0.31, "clusters": 4, "jumps": 1},
        "time": {"generating_s": 61.2, "scoring_s": 1.5, "tokens": 11000, "scoring_share": 0.024},
        "diagnosis": [
            {"name": "clustered", "found": False, "text": "The front is spread.", "value": 0.1, "threshold": 0.5},
            {"name": "cost", "found": True, "text": "A token costs too much.", "value": 1.4, "threshold": 1.1},
        ],
    }


def shared(names: tuple[str, ...]) -> dict[str, Any]:
    text = "Scores are standard deviations above the mean of the unguided answers."
    units = {"centre": dict.fromkeys(names, 0.4), "unit": dict.fromkeys(names, 0.1)}
    return {
        "normalization": {"kind": "unguided", "text": text, **units},
        "reference_point": dict.fromkeys(names, -2.0),
        "reference_text": "Two standard deviations below the unguided answers.",
        "confidence": {"level": 0.95, "samples": 1000, "over": "prompts"},
    }


def comparison(k: int = 2, runs: int = 2, parts: int = 10) -> dict[str, Any]:
    names = NAMES[:k]
    compared = [run(k, parts, f"run-{number}", 1 - 0.13 * number) for number in range(runs)]
    return {"format": 1, "kind": "comparison", "objectives": list(names), **shared(names), "runs": compared}
