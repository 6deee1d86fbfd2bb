"""95 % intervals over the questions and the seeds of an experiment, of whatever is computed from its runs.

A mean over n seeds is uncertain for two reasons: other seeds, and other questions, which all runs share. The half width
is the root of the sum of squares of

    t(n) · s / √n                              s the standard deviation over the seeds
    t(g) · √((g − 1) / g · Σ_j (m_j − m̄)²)     m_j the mean over the seeds without the j-th of g groups of questions

The second is the jackknife, which holds for differences, ratios and hypervolumes alike. What a seed's answers to the
same questions vary by is in both, so that the intervals are rather too wide.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parm_mlx.evaluation.summary import Run, compare

T_95 = {1: 0.0, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 20: 2.093}  # Student's t of so many values
GROUPS = 20  # of questions
Found = Mapping[str, Mapping[str, Any]]  # summaries of runs by name


class Sweeps:
    """Runs on one scale, measured with all questions and without each group of them.

    Args:
        runs: Answers to the same questions.
        samples: Of the bootstrap of the summary's own intervals.

    Attributes:
        summary: That of :func:`~parm_mlx.evaluation.summary.compare`.
        found: The runs' summaries by name.
    """

    def __init__(self, runs: Sequence[Run], samples: int):
        self.summary = compare(runs, samples=samples)
        self.found = _by_name(self.summary)
        reference = list(self.summary["reference_point"].values())
        questions = sorted({result.id for run in runs for result in run.results})
        groups = [set(questions[i::GROUPS]) for i in range(min(GROUPS, len(questions)))]
        self._without: list[Found] = []
        for group in groups if len(groups) > 1 else ():
            left = [replace(run, results=[each for each in run.results if each.id not in group]) for run in runs]
            self._without.append(_by_name(compare(left, reference=reference, samples=1)))

    def interval(self, by_seed: Callable[[Found], Sequence[float]]) -> dict[str, float]:
        """Mean and interval of a number that each seed has, as a function of the runs' summaries."""
        values = by_seed(self.found)
        without = [statistics.mean(by_seed(found)) for found in self._without]
        questions = math.sqrt(statistics.pvariance(without) * (len(without) - 1)) if without else 0.0
        return _around(statistics.mean(values), math.hypot(_over_seeds(values), _t(len(without)) * questions))

    def spread(self, runs: Sequence[Run], *path: str) -> dict[str, float]:
        """Mean and interval of a number of the summaries of one system's runs."""
        return self.interval(lambda found: [number(found[run.name], *path) for run in runs])

    def less(self, pairs: Sequence[tuple[Run, Run]], *path: str) -> dict[str, float]:
        """Mean and interval of the first run's number less the second's, a pair for each seed."""
        return self.interval(
            lambda found: [number(found[a.name], *path) - number(found[b.name], *path) for a, b in pairs]
        )


def number(summary: Mapping[str, Any], *path: str) -> float:
    """A number of a summary, with or without an interval of its own."""
    found: Any = summary
    for key in path:
        found = found[key]
    return float(found["value"] if isinstance(found, dict) else found)


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean over the seeds and its interval, where there are no questions."""
    return _around(statistics.mean(values), _over_seeds(values))


def shown(found: Mapping[str, float], digits: int = 2) -> str:
    """``mean ± half`` of an interval."""
    return f"{found['value']:.{digits}f} ± {found['high'] - found['value']:.{digits}f}"


def bracketed(found: Mapping[str, float]) -> str:
    """``value [low, high]``."""
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _by_name(summary: Mapping[str, Any]) -> Found:
    return {run["name"]: run for run in summary["runs"]}


def _around(mean: float, half: float) -> dict[str, float]:
    return {"value": mean, "low": mean - half, "high": mean + half}


def _over_seeds(values: Sequence[float]) -> float:
    return _t(len(values)) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _t(count: int) -> float:
    return T_95[max(each for each in T_95 if each <= max(count, 1))]
