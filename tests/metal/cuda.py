"""The other dialect of the same kernels: the text that MLX would compile for an NVIDIA card, and the same as C++.

MLX makes no CUDA text without a card. The stand-in for ``mx.fast.cuda_kernel`` makes a Metal kernel of the same
arguments, whose call shows the graph what a call of the CUDA kernel would be; `text_of` then writes what MLX's
``build_kernel`` (mlx/backend/cuda/custom_kernel.cpp, 0.32) writes for it: header, signature, template values and body.

For g++, the preprocessor first turns the Metal words of the body into CUDA, by the package's own cuda.h. Then a
``__shared__`` variable is treated as a ``threadgroup`` variable is in source.py, and calls that threads make together
get their place in the text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from metal import build
from metal.graph import EmulatorError, Launch
from metal.source import buffers, in_section, numbered_gaps, take_apart

from parm_mlx.kernels import launcher

INCLUDES = '#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
TYPES = {  # mlx/backend/cuda/utils.cpp, dtype_to_cuda_type
    mx.float32: "float",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.int32: "int32_t",
    mx.uint32: "uint32_t",
}
METAL_TYPES = {"float": "float", "float16_t": "__half", "bfloat16_t": "__nv_bfloat16"}  # as template values
BOOLS = {"0": "false", "1": "true"}
COLLECTIVES = re.compile(r"\b(__syncthreads|__shfl_xor_sync)\s*\(\s*(\)?)")
SHARED_VARIABLES = re.compile(r"\b__shared__\b([^;]*);")


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Has the launcher make CUDA kernels while the block runs."""
    launcher.load.cache_clear()
    try:
        with patch.object(launcher, "gpu_backend", lambda: "CUDA"), patch.object(mx.fast, "cuda_kernel", _stand_in):
            yield
    finally:
        launcher.load.cache_clear()


def _stand_in(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    shared_memory: int = 0,
) -> Callable[..., Any]:
    """Takes what ``mx.fast.cuda_kernel`` takes."""
    if shared_memory:
        raise EmulatorError("shared memory whose size is given at the launch is not emulated")
    return mx.fast.metal_kernel(name, input_names, output_names, source, header, ensure_row_contiguous)


def text_of(launch: Launch) -> str:
    """What MLX compiles for an NVIDIA card, with the lines of header and body counted from 1.

    Raises:
        EmulatorError: The kernel asks for shapes or strides, or for a type that has no name here.
    """
    parts = take_apart(launch.name, launch.text)
    if any(flag for info in launch.shape_infos for flag in info):
        raise EmulatorError("shapes and strides as parameters of a CUDA kernel are not emulated")
    names = [buffer.name for buffer in buffers(parts)]
    types = [f"const {TYPES[x.dtype]}*" for x in launch.inputs] + [f"{TYPES[dtype]}*" for dtype in launch.output_dtypes]
    parameters = ",\n".join(f"    {kind} {name}" for kind, name in zip(types, names, strict=True))
    constants = "".join(f"  {_constant(declaration, value)}\n" for declaration, value in parts.template)
    return (
        f'{INCLUDES}#line 1 "header"\n{parts.header}'
        "namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n"
        f'__global__ void {launch.name}(\n{parameters}) {{\n{constants}\n#line 1 "body"\n{parts.body}\n}}\n\n'
        "} // namespace mlx::core::cu\n"
    )


def _constant(declaration: str, value: str) -> str:
    kind, name = declaration.split(" ")
    if kind == "typename":
        return f"using {name} = {METAL_TYPES[value]};"
    return f"constexpr {kind} {name} = {BOOLS[value] if kind == 'bool' else value};"


def to_cpp(launch: Launch, checked: bool) -> str:
    """The C++ file for a kernel in CUDA."""
    text = build.preprocessed(text_of(launch).removeprefix(INCLUDES))
    text = COLLECTIVES.sub(_with_site, text)
    gaps = numbered_gaps()
    text = SHARED_VARIABLES.sub(lambda match: in_section(match[1], gaps), text)
    types = [f"const {TYPES[x.dtype]}*" for x in launch.inputs] + [f"{TYPES[dtype]}*" for dtype in launch.output_dtypes]
    arguments = ", ".join(f"({kind})pointers[{i}]" for i, kind in enumerate(types))
    return f"""#include "cuda_shim.h"
static char** pointers;
namespace cooperative_groups {{}}
{text}
#line 1 "generated"
extern "C" {{
extern const int emulator_checked;
const int emulator_checked = {int(checked)};
void emulator_bind(char** bound) {{ pointers = bound; }}
__attribute__((no_sanitize("thread"))) void emulator_thread() {{ mlx::core::cu::{launch.name}({arguments}); }}
}}
"""


def _with_site(match: re.Match[str]) -> str:
    column = match.start() - match.string.rfind("\n", 0, match.start())
    return f"{match[1]}(emu::at(__FILE__, __LINE__, {column})" + (match[2] or ", ")
