"""The texts of the kernels, as MLX hands them to the Metal compiler, in the emulator: checked access by access, under
three schedules and with a grid rounded up to whole threadgroups, and equal to their twins in float64.

Results are allowed 1e-5 · max(1, |twin|), and results in 16 bits one rounding more: 2⁻¹¹ of |twin| in float16, 2⁻⁸ in
bfloat16.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import mlx.core as mx
import pytest
from metal.emulator import HAVE_COMPILER, address_space_problems, run
from metal.faults import passes, planted

from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Case, all_cases, check_kernels, combine_case, logprob_cases, lowrank_cases

pytestmark = pytest.mark.skipif(not HAVE_COMPILER, reason="the emulator needs g++ on Linux")

RUNS = [("forward", False), ("reverse", False), ("rotated", False), ("forward", True)]

# What follows goes beyond the sizes of the doctor's check, which has ranks 1, 3, 16 and 32 and rows of 1, 31 and 33.
# (B, L, in, out): single numbers, fewer than 8 of everything, one more and one less than a simdgroup, several rows with
# a core each, and outputs that fill more than one threadgroup.
SIZES = [(1, 1, 1, 1), (2, 1, 7, 5), (1, 3, 31, 33), (3, 2, 33, 31), (2, 2, 260, 515), (4, 1, 36, 64)]
RANKS = {mx.float32: range(1, 17), mx.float16: (7,), mx.bfloat16: (8,)}
VOCABULARIES = [(9, 1), (2, 7), (2, 32), (2, 1000)]
PAIRS = [(9, 1, 1), (2, 7, 7), (2, 33, 31), (1, 1024, 1000)]
DTYPES = list(launcher.DTYPES.items())


def named(cases: Iterator[Case]) -> list[object]:
    return [pytest.param(case, id=f"{launcher.DTYPES[case.dtype]}, {case.size}") for case in cases]


def lowrank() -> Iterator[Case]:
    for dtype, ranks in RANKS.items():
        for rank in ranks:
            yield from lowrank_cases(dtype, *SIZES[rank % len(SIZES)], rank)


def logprob() -> Iterator[Case]:
    for dtype, _ in DTYPES:
        for rows, vocabulary in VOCABULARIES:
            yield from logprob_cases(dtype, rows, vocabulary)


def combine() -> Iterator[Case]:
    for dtype, _ in DTYPES:
        for sizes in PAIRS:
            yield combine_case(dtype, *sizes)


@pytest.mark.parametrize("case", named(chain(all_cases(typical=False), lowrank(), logprob(), combine())))
def test_the_kernel_is_its_twin(case: Case) -> None:
    for schedule, round_up in RUNS:
        (verdict,) = check_kernels([case], execute=partial(run, schedule=schedule, round_up=round_up))
        assert verdict.passed, f"{schedule}, rounded up: {round_up}: {verdict}"


@pytest.mark.parametrize(
    "case",
    [
        *named(case for dtype, _ in DTYPES for case in lowrank_cases(dtype, 1, 1, 1, 1, 1)),
        *named(case for dtype, _ in DTYPES for case in lowrank_cases(dtype, 3, 2, 33, 31, 4)),
        *named(case for dtype, _ in DTYPES for sizes in ((1, 1), (9, 33)) for case in logprob_cases(dtype, *sizes)),
        *named(combine_case(dtype, *sizes) for dtype, _ in DTYPES for sizes in ((1, 1, 1), (2, 33, 31))),
    ],
)
def test_pointers_have_their_address_spaces(case: Case) -> None:
    """Inputs below 8 elements are in ``constant`` memory, the others in ``device``."""
    assert address_space_problems(case.launch, *case.arrays) == []


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
FAULTS = [
    ("lowrank", "lowrank.metal", BARRIER + "\nif (t < R) {\n  float sum", "\nif (t < R) {\n  float sum"),
    ("lowrank", "lowrank.metal", BARRIER + "\nif (t < R) {\n  auto", "\nif (t < R) {\n  auto"),
    ("lowrank", "lowrank.metal", BARRIER + "\nconst int first", "\nconst int first"),
    ("lowrank", "lowrank.metal", "metal::min(first + TILE, OUT)", "first + TILE"),
    ("lowrank", "lowrank.metal", "ONE_CORE ? 0 : batch", "ONE_CORE ? batch : batch"),
    ("lowrank_cores", "lowrank.metal", "batch * (R * R)", "0"),
    ("lowrank_cores", "lowrank.metal", "batch * threadgroups_per_grid.y", "batch"),
    ("lowrank", "lowrank.metal", "o += THREADS", "o += 2 * THREADS"),
    ("logprob", "softmax.metal", BARRIER, "\n"),
    ("logprob", "softmax.metal", "total *= metal::exp(largest - above);", ""),
    ("logprob", "softmax.metal", "part * metal::exp(theirs - largest)", "part"),
    ("logprob", "logprob.metal", "start + k < V ?", "true ?"),
    ("logprob", "logprob.metal", "if (t == 0)", "if (t < 2)"),
    ("logprob", "logprob.metal", "z[targets[row]]", "logits[targets[row]]"),
    ("logprob_grad", "logprob_grad.metal", "metal::min(start + STRIP, V)", "start + STRIP"),
    ("logprob_grad", "logprob_grad.metal", "i == target ?", "i == start ?"),
    ("combine", "softmax.metal", BARRIER, "\n"),
    ("combine", "combine.metal", "i < V ?", "i <= V ?"),
    ("combine", "combine.metal", "guide + row * GUIDE_V", "guide + row * V"),
    ("combine", "combine.metal", "i += THREADS) {", "i += 2 * THREADS) {"),
]


@pytest.mark.parametrize(("kernel", "file", "right", "wrong"), FAULTS)
def test_a_fault_in_the_text_is_found(kernel: str, file: str, right: str, wrong: str) -> None:
    """The tests above fail where a barrier, a bound or a factor is missing; without the fault they pass."""
    assert passes(kernel, run)
    with planted(file, right, wrong):
        assert not passes(kernel, run)
