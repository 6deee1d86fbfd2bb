"""The kernels as MLX would compile them for an NVIDIA card: the same texts behind cuda.h, in the same emulator.

MLX makes no CUDA text without a card, so that the signature is written as its source writes it; `tests/metal/cuda.py`
says how. NVIDIA's compiler judges the text where it is installed. **None of this has run on a card.**
"""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
import pytest
from metal import nvrtc
from metal.cuda import cuda_kernels, text_of
from metal.emulator import HAVE_COMPILER, run, trace
from metal.faults import passes, planted

from parm_mlx.kernels import launcher
from parm_mlx.kernels.check import Case, all_cases, check_kernels, combine_case, logprob_cases, lowrank_cases

pytestmark = [
    pytest.mark.skipif(not HAVE_COMPILER, reason="the emulator needs g++ on Linux"),
    pytest.mark.usefixtures("cuda"),
]
DTYPES = list(launcher.DTYPES)


@pytest.fixture
def cuda() -> Iterator[None]:
    with cuda_kernels():
        yield


def identity(case: Case) -> str:
    return f"{case.kernel}, {launcher.DTYPES[case.dtype]}, {case.size}"


def several() -> Iterator[Case]:
    """Every kernel and dtype, with several rows, more than one turn of a thread, and a core for each row."""
    for dtype in DTYPES:
        yield from lowrank_cases(dtype, 2, 2, 260, 515, 7)
        yield from logprob_cases(dtype, 2, 1000)
        yield combine_case(dtype, 2, 1024, 1000)


@pytest.mark.parametrize("case", [*all_cases(typical=False), *several()], ids=identity)
def test_the_kernel_is_its_twin(case: Case) -> None:
    for schedule in ("forward", "reverse", "rotated"):
        (verdict,) = check_kernels([case], execute=partial(run, schedule=schedule, dialect="cuda"))
        assert verdict.passed, f"{schedule}: {verdict}"


def test_the_text_is_what_mlx_would_compile() -> None:
    """As ``build_kernel`` of mlx/backend/cuda/custom_kernel.cpp puts it together."""
    case = next(lowrank_cases(mx.bfloat16, 2, 1, 33, 31, 3))
    text = text_of(trace(case.launch, *case.arrays))
    assert text.startswith('#include "mlx/backend/cuda/device/utils.cuh"\n')
    start = text.index("__global__ void")
    signature = " ".join(text[start : text.index("{", start)].split())
    assert signature.partition("( ")[2] == (
        "const __nv_bfloat16* y, const __nv_bfloat16* x, const __nv_bfloat16* a, const __nv_bfloat16* core, "
        "const __nv_bfloat16* b, __nv_bfloat16* updated)"
    )
    for line in ("using T = __nv_bfloat16;", "constexpr int R = 3;", "constexpr bool ONE_CORE = false;"):
        assert f"  {line}\n" in text
    assert text.index("#define threadgroup __shared__") < text.index("namespace mlx::core::cu {") < start


def test_metal_gets_no_word_of_cuda() -> None:
    """One source: beside Metal's own text stands nothing of cuda.h."""
    case = next(lowrank_cases(mx.float32, 2, 1, 33, 31, 3))
    with_cuda = trace(case.launch, *case.arrays).text
    launcher.load.cache_clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(launcher, "gpu_backend", lambda: "Metal")
        metal = trace(case.launch, *case.arrays).text
    assert "__syncthreads" in with_cuda
    assert "__syncthreads" not in metal
    assert "#define" not in metal.partition("[[kernel]]")[0].rpartition("using namespace")[2]


@pytest.mark.skipif(
    nvrtc.find() is None, reason="needs NVIDIA's compiler: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", DTYPES, ids=launcher.DTYPES.get)
def test_nvidias_compiler_takes_the_text(architecture: str, dtype: mx.Dtype) -> None:
    cases = [*lowrank_cases(dtype, 2, 1, 33, 31, 3), *logprob_cases(dtype, 2, 31), combine_case(dtype, 2, 31, 33)]
    for case in cases:
        assert nvrtc.compile_for(architecture, text_of(trace(case.launch, *case.arrays))) == "", identity(case)


# The same faults as in test_metal.py, and those that only this dialect can have: in cuda.h.
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
SYNC = "  __syncthreads();\n"
FAULTS = [
    ("lowrank_cores", "lowrank.metal", BARRIER + "\nif (t < R) {\n  float sum", "\nif (t < R) {\n  float sum"),
    ("lowrank_cores", "lowrank.metal", BARRIER + "\nconst int first", "\nconst int first"),
    ("lowrank_cores", "lowrank.metal", "metal::min(first + TILE, OUT)", "first + TILE"),
    ("lowrank_cores", "lowrank.metal", "batch * threadgroups_per_grid.y", "batch"),
    ("combine", "softmax.metal", BARRIER, "\n"),
    ("combine", "combine.metal", "i < V ?", "i <= V ?"),
    ("logprob", "logprob.metal", "if (t == 0)", "if (t < 2)"),
    ("lowrank_cores", "cuda.h", SYNC, ""),
    ("lowrank_cores", "cuda.h", "#define threadgroup __shared__", "#define threadgroup"),
    ("lowrank_cores", "cuda.h", "< 32; distance *= 2) {\n    value += ", "< 16; distance *= 2) {\n    value += "),
    ("lowrank_cores", "cuda.h", "0xffffffffu, value, distance);\n  }\n  return value;\n}\n\nMETAL_FUNC float simd_max",
     "0x0000ffffu, value, distance);\n  }\n  return value;\n}\n\nMETAL_FUNC float simd_max"),
    ("lowrank_cores", "cuda.h", "(thread_index_in_threadgroup >> 5)", "(thread_index_in_threadgroup >> 6)"),
    ("lowrank_cores", "cuda.h", "threadgroup_position_in_grid blockIdx", "threadgroup_position_in_grid threadIdx"),
    ("combine", "cuda.h", "< 32; distance *= 2) {\n    value = ", "< 16; distance *= 2) {\n    value = "),
    ("logprob_grad", "cuda.h", "blockIdx.x * blockDim.x + threadIdx.x,", "threadIdx.x,"),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "file", "right", "wrong"), FAULTS)
def test_a_fault_in_the_text_is_found(kernel: str, file: str, right: str, wrong: str) -> None:
    execute = partial(run, dialect="cuda")
    assert passes(kernel, execute)
    with planted(file, right, wrong):
        assert not passes(kernel, execute)
