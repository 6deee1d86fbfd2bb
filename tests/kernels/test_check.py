import mlx.core as mx
import pytest

from parm_mlx.errors import RunError
from parm_mlx.kernels import check, launcher
from parm_mlx.kernels.check import Case, Verdict, all_cases, check_kernels, passed
from parm_mlx.machine import gpu_backend

KERNELS = ("lowrank", "logprob", "combine")


def case(launch: object = None, dtype: mx.Dtype = mx.float32) -> Case:
    """A kernel that should double its numbers: 0, 1/2 and 100."""
    arrays = [mx.array([0.0, 0.5, 100.0]).astype(dtype)]
    return Case("doubling", dtype, "3 numbers", launch or (lambda x: x + x), lambda x: 2 * x, arrays)


def judged(offsets: list[float], dtype: mx.Dtype = mx.float32) -> Verdict:
    """The verdict on a kernel whose results, in float32, are off by these."""

    def execute(launch: object, x: mx.array) -> list[mx.array]:
        return [(2 * x.astype(mx.float32) + mx.array(offsets)).astype(dtype)]

    (verdict,) = check_kernels([case(dtype=dtype)], execute)
    return verdict


@pytest.mark.parametrize(
    ("offsets", "error"),
    [([0, 0, 0], 0), ([-0.5, 0, 0], 0.5), ([0, 0.25, 0], 0.25), ([0, 0, 2], 0.01), ([0.001, 0, -1], 0.005)],
)
def test_the_error_is_absolute_below_one_and_relative_above(offsets: list[float], error: float) -> None:
    """Expected are 0, 1 and 200."""
    verdict = judged(offsets)
    assert verdict.error == pytest.approx(error)
    assert verdict.passed == (error == 0)
    assert (verdict.kernel, verdict.dtype, verdict.size) == ("doubling", "float32", "3 numbers")


def test_one_rounding_is_no_error_in_16_bits() -> None:
    """At 200 the numbers of bfloat16 are 1 apart. One rounding is 200 · 2⁻⁸ = 0.78 at most, so 2 is more than that."""
    assert judged([0, 0, 0.4], mx.bfloat16).passed
    verdict = judged([0, 0, 2], mx.bfloat16)
    assert not verdict.passed
    assert verdict.error == pytest.approx((2 - 200 / 256) / 200)
    assert not judged([0.001, 0, 0], mx.bfloat16).passed, "no rounding makes 0.001 of 0"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_and_infinity_do_not_pass(wrong: float) -> None:
    assert not judged([0, wrong, 0]).passed


@pytest.mark.parametrize("failure", [RuntimeError, ValueError])
def test_a_kernel_that_does_not_run_is_told(failure: type[Exception]) -> None:
    def execute(launch: object, x: mx.array) -> list[mx.array]:
        raise failure("program_source:12:\n   error: no member")

    (verdict,) = check_kernels([case()], execute)
    assert not verdict.passed
    assert verdict.problem == "program_source:12: error: no member"


def test_a_kernel_passes_if_all_its_cases_do() -> None:
    def verdict(kernel: str, dtype: str, error: float) -> Verdict:
        return Verdict(kernel, dtype, "", error, 1e-5)

    verdicts = [verdict("combine", "float32", 0), verdict("combine", "float32", 1), verdict("combine", "float16", 0)]
    assert passed(verdicts) == {("combine", "float16")}
    assert passed([]) == set()


def test_a_kernel_that_is_slower_where_it_matters_does_not_go_on_record() -> None:
    """The median over the typical cases counts: 0.5 of (0.4, 0.5, 3), 2 of (0.4, 2, 3); others do not."""

    def timed(*ratios: float, typical: bool = True) -> list[Verdict]:
        return [Verdict("combine", "float32", "", 0, 1e-5, ratio, typical=typical) for ratio in ratios]

    assert passed(timed(0.4, 0.5, 3)) == set()
    assert passed(timed(0.4, 2, 3)) == {("combine", "float32")}
    assert passed(timed(0.4, 0.5, typical=False)) == {("combine", "float32")}
    assert {case.kernel for case in all_cases() if case.typical} == set(KERNELS)


def test_without_a_gpu_there_is_nothing_to_check_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    with pytest.raises(RunError, match="computes on a GPU, and here it does not"):
        check_kernels()


def test_where_a_gpu_is_kernel_and_twin_are_timed(gpu: None) -> None:
    (verdict,) = check_kernels([case()])
    assert verdict.passed
    assert verdict.ratio is not None
    assert verdict.ratio > 0


def test_every_kernel_is_checked_in_every_dtype() -> None:
    found = {(case.kernel, launcher.DTYPES[case.dtype]) for case in all_cases(typical=False)}
    assert found == {(kernel, name) for kernel in KERNELS for name in launcher.DTYPES.values()}


@pytest.mark.parametrize(("backend", "few"), [("Metal", False), ("CUDA", True)])
def test_with_cuda_few_sizes_are_checked_since_each_is_compiled(
    backend: str, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Case] = []
    monkeypatch.setattr(check, "gpu_backend", lambda: backend)
    monkeypatch.setattr(check, "_judge", lambda case, execute: seen.append(case))
    check_kernels()
    kinds = {(case.kernel, launcher.DTYPES[case.dtype], case.typical) for case in seen}
    names = launcher.DTYPES.values()
    assert kinds == {(kernel, name, typical) for kernel in KERNELS for name in names for typical in (True, False)}
    assert (len(seen) < 60) == few


@pytest.mark.skipif(not gpu_backend(), reason="needs a Mac or an NVIDIA card, and PARM_MLX_TEST_DEVICE=gpu")
def test_the_check_passes_on_this_gpu() -> None:
    verdicts = check_kernels()
    assert [verdict for verdict in verdicts if not verdict.passed] == []
