"""Address spaces, which g++ does not know: libclang parses the kernel as C++ for OpenCL, where they are Metal's."""

import re
from functools import cache
from pathlib import Path

from clang import cindex
from metal.graph import Launch
from metal.source import attributes, buffers, take_apart, template_declarations

PRELUDE = Path(__file__).parent / "cpp" / "opencl_prelude.h"
OPTIONS = [
    "-cl-no-stdinc",
    "-cl-std=clc++2021",
    "-cl-single-precision-constant",
    "--target=spir64",
    "-Xclang",
    # Without generic address spaces, as in Metal; with half.
    "-cl-ext=-all,+cl_khr_fp16,-__opencl_c_generic_address_space",
    "-Wno-everything",
]
# float2(x, y) is a cast in OpenCL, which takes one value.
VECTOR = re.compile(r"\b(?=(?:float|bfloat|half|u?char|u?short|u?int|u?long)[234]\s*\()")


@cache
def _index() -> cindex.Index:
    return cindex.Index.create()


def to_opencl(launch: Launch) -> dict[str, str]:
    """The kernel as files of C++ for OpenCL, whose kernels are no templates and take only pointers to plain types.

    Header and body are files of their own, so that messages have their names and lines.
    """
    parts = take_apart(launch.name, launch.text)
    parameters, declarations = [], [template_declarations(parts, "const")]
    for buffer in buffers(parts):
        parameters.append(f"{buffer.space} uchar* {buffer.name}_")
        pointer = f"({buffer.space} {buffer.type}*){buffer.name}_"
        declarations.append(
            f"auto& {buffer.name} = *{pointer};" if buffer.is_reference else f"auto {buffer.name} = {pointer};"
        )
    parameters += [f"{kind} {name}" for kind, name, _ in attributes(parts)]
    kernel = f"""#include "{PRELUDE.name}"
#include "header"
__kernel void emulated({", ".join(parameters)}) {{
{" ".join(declarations)}
#include "body"
}}
"""
    return {
        "kernel.clcpp": kernel,
        "header": VECTOR.sub("make_", parts.header),
        "body": VECTOR.sub("make_", parts.body) + "\n",
    }


def problems(launch: Launch) -> list[str]:
    """What clang objects to, as ``body:3:14: message``."""
    files = [(str(PRELUDE.with_name(name)), text) for name, text in to_opencl(launch).items()]  # none is written
    unit = _index().parse(files[0][0], args=OPTIONS, unsaved_files=files)
    found = [message for message in unit.diagnostics if message.severity >= cindex.Diagnostic.Error]
    return [f"{Path(m.location.file.name).name}:{m.location.line}:{m.location.column}: {m.spelling}" for m in found]
