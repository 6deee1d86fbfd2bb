"""What the times of a benchmark say: rates, spread, and the ratios to the floor and to unguided decoding."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from parm_mlx.diagnostics.bench import BASE, GUIDE, Case

Row = dict[str, Any]


def summarise(cases: Sequence[Case]) -> list[Row]:
    """The figures of one comparison, a row for each case.

    With t the seconds that each sequence takes for a token in a round, from one case to the next of the same round:

        of_floor    = (t of the base + t of the guide) / t
        of_unguided = t of the base / t

    Args:
        cases: The cases of one comparison, base and guide among them, with one sample a round each.

    Returns:
        Rows for JSON. Ratios and rates are medians over the rounds, with the lowest and the highest as ``…_spread``.
    """
    times = {case.name: [s.decode / s.tokens * case.batch for s in case.samples] for case in cases}
    floor = [base + guide for base, guide in zip(times[BASE], times[GUIDE], strict=True)]
    return [_row(case, times[case.name], times[BASE], floor) for case in cases]


def _row(case: Case, times: list[float], base: list[float], floor: list[float]) -> Row:
    accepted = [s.acceptance for s in case.samples if s.acceptance is not None]
    return {
        "case": case.name,
        "batch": case.batch,
        "prompt": case.prompt,
        "rounds": len(times),
        **_spread("prefill_tokens_per_second", [case.batch * case.prompt / s.read for s in case.samples]),
        **_spread("decode_tokens_per_second", [case.batch / t for t in times]),
        **_spread("ms_per_token", [1000 * t for t in times]),
        **_spread("of_floor", [f / t for f, t in zip(floor, times, strict=True)]),
        **_spread("of_unguided", [b / t for b, t in zip(base, times, strict=True)]),
        "weights_mb": round(case.weights / 1e6, 1),
        "peak_mb": round(case.memory / 1e6, 1),
        "accepted": round(median(accepted), 3) if accepted else None,
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {name: _digits(median(values)), f"{name}_spread": [_digits(min(values)), _digits(max(values))]}


def _digits(value: float) -> float:
    """Five significant digits, more than a measurement has."""
    return float(f"{value:.5g}")


def comparisons(rows: Sequence[Row]) -> Mapping[tuple[int, int], list[Row]]:
    """Rows by the comparison that they belong to: (sequences, prompt tokens)."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["batch"], row["prompt"]), []).append(row)
    return groups
