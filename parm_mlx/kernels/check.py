"""Every kernel against its twin on this machine: the check that comes before a kernel is trusted.

Both get the same numbers. The twin computes in float64 on the CPU, so that the kernel's error alone is measured, and
not how MLX adds 32,000 float32 numbers. A kernel computes in float32, and rounds once if its result has 16 bits.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import mlx.core as mx
import numpy as np

from parm_mlx.errors import RunError
from parm_mlx.kernels import combine, logprob, lowrank
from parm_mlx.kernels.launcher import DTYPES
from parm_mlx.machine import gpu_backend

LIMIT = 1e-5
ROUNDING = {mx.float32: 0.0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}

# (B, L, in, out, r): one of everything, odd numbers, more rows and tiles than one, a 7B model's attention.
LOWRANK = ((1, 1, 1, 1, 1), (2, 1, 33, 31, 3), (3, 2, 64, 1030, 16), (1, 5, 129, 513, 32))
LOWRANK_TYPICAL = (2, 1, 4096, 4096, 8)
# (N, V), and (N, V_base, V_guide).
LOGPROB = ((1, 1), (2, 31), (3, 33), (5, 9001))
LOGPROB_TYPICAL = (128, 32000)
COMBINE = ((1, 1, 1), (2, 31, 33), (3, 33, 7), (2, 9001, 9002))
COMBINE_TYPICAL = (2, 32000, 32000)

Function = Callable[..., mx.array]


@dataclass(frozen=True)
class Case:
    """One launch of a kernel and its twin."""

    kernel: str  # the launcher's name
    dtype: mx.Dtype  # of y or the logits
    size: str  # the shapes, in words
    launch: Function
    twin: Function
    arrays: Sequence[mx.array]  # the arguments of both
    typical: bool = False  # it is of the size that the kernel is made for


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case, whose kernel, dtype, size and typical it repeats."""

    kernel: str
    dtype: str
    size: str
    error: float  # largest |kernel − twin| / max(1, |twin|), less one rounding where the result has 16 bits
    limit: float  # the error that is allowed
    ratio: float | None = None  # the twin's time on this device over the kernel's; None if not timed
    problem: str = ""  # why the kernel did not run
    typical: bool = False

    @property
    def passed(self) -> bool:
        """The kernel ran, and its error is within the limit."""
        return not self.problem and self.error <= self.limit


def check_kernels(
    cases: Iterable[Case] | None = None, execute: Callable[..., Sequence[mx.array]] | None = None
) -> list[Verdict]:
    """Runs each case, by default :func:`all_cases`, on the GPU, where kernel and twin are timed too.

    ``execute`` stands in for the GPU: it takes a launch and its arrays, and returns the outputs of the kernel.

    Raises:
        RunError: MLX does not compute on a GPU, and ``execute`` is not given.
    """
    if execute is None and not gpu_backend():
        raise RunError("kernels can be checked where MLX computes on a GPU, and here it does not")
    chosen = all_cases(few=gpu_backend() == "CUDA") if cases is None else cases
    return [_judge(case, execute) for case in chosen]


def passed(verdicts: Iterable[Verdict]) -> set[tuple[str, str]]:
    """Returns the (kernel, dtype) of which all cases have passed, and which are worth their launch.

    At the size that the kernel is made for it must not be slower than its twin, by the median of those cases.
    """
    kinds: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        kinds.setdefault((verdict.kernel, verdict.dtype), []).append(verdict)
    good = set()
    for kind, cases in kinds.items():
        ratios = [case.ratio for case in cases if case.typical and case.ratio is not None]
        if all(case.passed for case in cases) and (not ratios or statistics.median(ratios) >= 1):
            good.add(kind)
    return good


def all_cases(typical: bool = True, few: bool = False) -> Iterator[Case]:
    """Yields every kernel and dtype at small, odd sizes, and at the size it is made for.

    ``few`` takes one of the small sizes: CUDA's compiler needs about a second for each.
    """
    for dtype in DTYPES:
        for size in LOWRANK[1:2] if few else LOWRANK:
            yield from lowrank_cases(dtype, *size)
        for rows, vocabulary in LOGPROB[1:2] if few else LOGPROB:
            yield from logprob_cases(dtype, rows, vocabulary)
        for sizes in COMBINE[1:2] if few else COMBINE:
            yield combine_case(dtype, *sizes)
        if typical:
            cases = [*lowrank_cases(dtype, *LOWRANK_TYPICAL), *logprob_cases(dtype, *LOGPROB_TYPICAL)]
            yield from (replace(case, typical=True) for case in (*cases, combine_case(dtype, *COMBINE_TYPICAL)))


def lowrank_cases(dtype: mx.Dtype, rows: int, length: int, width: int, out: int, rank: int) -> Iterator[Case]:
    """Forward and gradient in x, with a core per row and one for all, and an adapter in y's dtype and in float32.

    The numbers make results of size 1. Of several cores the first is zero, as that of a plain row is.
    """
    for adapter, one in product(dict.fromkeys((dtype, mx.float32)), dict.fromkeys((rows == 1, True))):
        draw = np.random.default_rng(rows + width + out + rank)
        y, x = _normal(draw, dtype, rows, length, out), _normal(draw, dtype, rows, length, width)
        g = _normal(draw, dtype, rows, length, out, scale=(width / (out * rank)) ** 0.5)
        a, b = _normal(draw, adapter, rank, width, scale=width**-0.5), _normal(draw, adapter, out, rank)
        core = _normal(draw, adapter, 1 if one else rows, rank, rank, scale=rank**-0.5)
        if not one:
            core = mx.concatenate([mx.zeros_like(core[:1]), core[1:]])
        cores = "one core" if one else f"{rows} cores"
        size = f"{rows}×{length} rows, {width} → {out}, rank {rank}, {cores}, adapter {DTYPES[adapter]}"
        slope = f"{size}, gradient"
        yield Case("lowrank", dtype, size, lowrank.launch, lowrank.lowrank_update_ops, (y, x, a, core, b))
        yield Case("lowrank", dtype, slope, lowrank.launch_slope, lowrank.lowrank_slope_ops, (g, a, core, b))


def logprob_cases(dtype: mx.Dtype, rows: int, vocabulary: int) -> Iterator[Case]:
    """Forward and gradient."""
    draw = np.random.default_rng(rows + vocabulary)
    logits = _normal(draw, dtype, rows, vocabulary, scale=3.0)
    targets = mx.array(draw.integers(vocabulary, size=rows), dtype=mx.int32)
    size = f"{rows} rows, {vocabulary} tokens"
    twin = logprob.target_logprobs_ops
    yield Case("logprob", dtype, size, lambda *arrays: logprob.launch(*arrays)[0], twin, (logits, targets))
    with mx.stream(mx.cpu):
        z = logits.astype(mx.float64)
        largest = z.max(axis=-1)
        total = mx.exp(z - largest[:, None]).sum(axis=-1).astype(mx.float32)
        largest = largest.astype(mx.float32)
    arrays = (logits, targets, largest, total, _normal(draw, mx.float32, rows))
    yield Case("logprob", dtype, f"{size}, gradient", logprob.launch_slope, logprob.weighted_slope_ops, arrays)


def combine_case(dtype: mx.Dtype, rows: int, base_vocabulary: int, guide_vocabulary: int) -> Case:
    """A β for each row, and vocabularies that need not be equal."""
    draw = np.random.default_rng(rows + base_vocabulary + guide_vocabulary)
    base, guide = (_normal(draw, dtype, rows, n, scale=3.0) for n in (base_vocabulary, guide_vocabulary))
    size = f"{rows} rows, {base_vocabulary} and {guide_vocabulary} tokens"
    arrays = (base, guide, mx.array([1 / (0.7 + row) for row in range(rows)]))
    return Case("combine", dtype, size, combine.launch, combine.guided_logprobs_ops, arrays)


def _judge(case: Case, execute: Callable[..., Sequence[mx.array]] | None) -> Verdict:
    with mx.stream(mx.cpu):
        exact = [x.astype(mx.float64) if x.dtype in DTYPES else x for x in case.arrays]
        expected = np.array(case.twin(*exact))
    error, ratio, problem = float("inf"), None, ""
    try:
        result = execute(case.launch, *case.arrays)[0] if execute else case.launch(*case.arrays)
        size = np.abs(expected)
        off = np.abs(np.array(result.astype(mx.float32)) - expected) - ROUNDING[result.dtype] * size
        error = float((np.maximum(off, 0) / np.maximum(1, size)).max())
        ratio = None if execute else _ratio(case)
    except (RuntimeError, ValueError) as failure:  # how MLX reports a text that does not compile or launch
        problem = " ".join(str(failure).split())
    return Verdict(case.kernel, DTYPES[case.dtype], case.size, error, LIMIT, ratio, problem, case.typical)


def _ratio(case: Case) -> float:
    """Time of the twin over that of the kernel: medians of 5 rounds that take turns, of 10 launches each."""
    seconds: dict[Function, list[float]] = {case.twin: [], case.launch: []}
    for _ in range(5):
        for function, times in seconds.items():
            start = time.perf_counter()
            mx.eval([function(*case.arrays) for _ in range(10)])
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[case.twin]) / statistics.median(seconds[case.launch])


def _normal(draw: np.random.Generator, dtype: mx.Dtype, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array((scale * draw.standard_normal(shape)).astype(np.float32)).astype(dtype)
