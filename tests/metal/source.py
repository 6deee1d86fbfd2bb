"""MLX's Metal text turned into C++ for g++: few rewrites, each for a reason given here.

1. Comments go (their line ends stay), so that the others see code only.
2. The template of the kernel becomes plain: its values are declared at the top of the body. g++ ignores section
   attributes inside templates, and with them threadgroup memory would not be watched.
3. A ``threadgroup`` variable becomes a static one in the section ``tgmem``, which is where the runtime looks; before a
   pointer or reference the word goes. Threadgroups run one after another, so that one copy does. Gaps
   lie between them, or an index past the end of one would fall into the next.
4. Every call of a SIMD function or barrier gets its place in the text as first argument.
5. Parameters become local variables that are read from the runtime.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from metal.graph import EmulatorError, Launch

TRIPLES = {
    "thread_position_in_grid": "emu::current->position_in_grid",
    "thread_position_in_threadgroup": "emu::current->position_in_group",
    "threadgroup_position_in_grid": "emu::current->group",
    "threads_per_threadgroup": "emu::group_size",
    "dispatch_threads_per_threadgroup": "emu::full_group",
    "threads_per_grid": "emu::grid",
    "grid_size": "emu::grid",
    "threadgroups_per_grid": "emu::group_count",
}
SCALARS = {
    "thread_index_in_threadgroup": "emu::current->index",
    "thread_index_in_simdgroup": "emu::current->lane",
    "simdgroup_index_in_threadgroup": "emu::current->simdgroup_index",
    "simdgroups_per_threadgroup": "(emu::group_size.product() + 31) / 32",
    "dispatch_simdgroups_per_threadgroup": "(emu::full_group.product() + 31) / 32",
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
}
COLLECTIVES = re.compile(
    r"\b(threadgroup_barrier|simdgroup_barrier|simd_(?:sum|product|max|min|and|or|xor|any|all|broadcast_first|broadcast"
    r"|prefix_inclusive_sum|prefix_exclusive_sum|shuffle(?:_xor|_down|_up|_rotate_down|_rotate_up|_and_fill_up)?))"
    r"\s*(<[^<>()]*>)?\s*\("
)
THREADGROUP_POINTER = re.compile(r"\bthreadgroup\b(?=(?:<[^<>;]*>|[^;(){}=,\[<])*(?:\(\s*)?[*&])")
THREADGROUP_VARIABLES = re.compile(r"\bthreadgroup\b([^;]*);")
STATIC = '__attribute__((section("tgmem"), used)) static'
LAMBDA = re.compile(r"[=(,{;]\s*\[[&=\w,\s]*\]\s*[({]")


@dataclass(frozen=True)
class Parts:
    """MLX's text taken apart: header, parameters, template (declaration, value) and body."""

    header: str
    parameters: list[str]
    template: list[tuple[str, str]]
    body: str


@dataclass(frozen=True)
class Parameter:
    """A buffer of the kernel: its name, its C++ type, its address space, whether it is a reference."""

    name: str
    type: str
    space: str
    is_reference: bool


def take_apart(name: str, text: str) -> Parts:
    """Splits MLX's text, without comments.

    Raises:
        EmulatorError: The text is not built as this version expects.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n") or " ", text, flags=re.S)
    pattern = (  # NAME stands for the kernel's
        r"(?P<header>.*?)(?:template <(?P<template>[^<>]*)>\n)?\[\[kernel\]\] void NAME\(\n(?P<parameters>.*?)\) \{\n"
        r"(?P<body>.*)\n\}\n"
        r"(?:\s*template \[\[host_name\(\"NAME\"\)\]\] \[\[kernel\]\] decltype\(NAME<(?P<values>.*?)>\).*)?"
    )
    match = re.fullmatch(pattern.replace("NAME", re.escape(name)), text.rstrip() + "\n", flags=re.S)
    if not match:
        raise EmulatorError("MLX's generated text is not built as the emulator expects")
    names = match["template"].split(", ") if match["template"] else []
    values = match["values"].split(", ") if match["values"] else []
    parts = Parts(
        header=match["header"],
        parameters=[parameter.strip() for parameter in match["parameters"].split(",\n")],
        template=list(zip(names, values, strict=True)),
        body=match["body"],
    )
    if len(buffers(parts)) + len(attributes(parts)) != len(parts.parameters):
        raise EmulatorError(f"a parameter of the kernel is neither buffer nor attribute: {', '.join(parts.parameters)}")
    return parts


def buffers(parts: Parts) -> list[Parameter]:
    """The buffers among the parameters, in order."""
    found = []
    for parameter in parts.parameters:
        match = re.fullmatch(r"(const )?(device|constant) ([^*&]*)([*&]) (\w+) \[\[buffer\(\d+\)\]\]", parameter)
        if match:
            found.append(Parameter(match[5], (match[1] or "") + match[3], match[2], match[4] == "&"))
    return found


def attributes(parts: Parts) -> list[tuple[str, str, str]]:
    """The thread attributes among the parameters, in order: type, name, attribute."""
    found = []
    for parameter in parts.parameters:
        match = re.fullmatch(r"(\w+) (\w+) \[\[(\w+)\]\]", parameter)
        if match:
            found.append((match[1], match[2], match[3]))
    return found


def template_declarations(parts: Parts, constant: str) -> str:
    """The template's names and values as declarations; `constant` is the word for a constant integer."""
    lines = []
    for declaration, value in parts.template:
        kind, name = declaration.split(" ")
        lines.append(f"using {name} = {value};" if kind == "typename" else f"{constant} {kind} {name} = {value};")
    return " ".join(lines)


def attribute_value(attribute: str) -> str:
    """The C++ expression for a thread attribute."""
    if attribute in TRIPLES:
        source = TRIPLES[attribute]
        return f"uint3({source}.x, {source}.y, {source}.z)"
    if attribute in SCALARS:
        return SCALARS[attribute]
    raise EmulatorError(f"the emulator does not know the attribute {attribute}")


def rewrite(text: str, file: str) -> str:
    """Rewrites 3 and 4 for the header or the body."""
    if LAMBDA.search(text):
        raise EmulatorError(f"the {file} has a lambda, which Metal has not")

    def with_site(match: re.Match[str]) -> str:
        line = text.count("\n", 0, match.start()) + 1
        column = match.start() - text.rfind("\n", 0, match.start())
        return f'{match[1]}{match[2] or ""}(emu::at("{file}", {line}, {column}), '

    text = COLLECTIVES.sub(with_site, text)
    text = THREADGROUP_POINTER.sub("", text)
    if file == "header" and THREADGROUP_VARIABLES.search(text):
        raise EmulatorError("the header has a threadgroup variable, which Metal allows in the body only")
    gaps = numbered_gaps()
    return THREADGROUP_VARIABLES.sub(lambda match: in_section(match[1], gaps), text)


def numbered_gaps() -> Iterator[str]:
    """Names for the gaps between threadgroup variables."""
    return (f"gap_{number}" for number in itertools.count())


def in_section(declaration: str, gaps: Iterator[str]) -> str:
    """``float a[8], b`` as statics in threadgroup memory, with gaps, each made known to the runtime.

    As many lines as before, for lines must not move. ``= {}`` keeps g++ from initialising arrays of classes at run
    time.
    """
    words = " ".join(declaration.split())
    first, *others = split(words)
    match = re.fullmatch(r"(.*[\w>] )(\w+ ?(?:\[.*\])?)", first)
    if not match or "=" in words:
        raise EmulatorError(f"cannot read the declaration: threadgroup {words}")
    statements = [f"{STATIC} char {next(gaps)}[64];"]
    for variable in (match[2], *others):
        name = variable.split("[")[0].strip()
        statements.append(f"{STATIC} {match[1]} {variable} = {{}}; {STATIC} char {next(gaps)}[64];")
        statements.append(f'emu::threadgroup_variable(&{name}, sizeof {name}, "{name}");')
    return " ".join(statements) + "\n" * declaration.count("\n")


def split(text: str) -> list[str]:
    """Splits at the commas outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def to_cpp(launch: Launch, checked: bool) -> str:
    """The C++ file for a kernel."""
    parts = take_apart(launch.name, launch.text)
    arguments, declarations = [], []
    for i, buffer in enumerate(buffers(parts)):
        pointer = f"({buffer.type}*)pointers[{i}]"
        arguments.append(f"*({pointer})" if buffer.is_reference else pointer)
        declarations.append(f"{buffer.type}{'&' if buffer.is_reference else '*'} {buffer.name}")
    for kind, name, attribute in attributes(parts):
        arguments.append(attribute_value(attribute))
        declarations.append(f"{kind} {name}")
    return f"""#include "metal_shim.h"
static char** pointers;
namespace {{
#line 1 "header"
{rewrite(parts.header, "header")}
void kernel({", ".join(declarations)}) {{ {template_declarations(parts, "constexpr")}
#line 1 "body"
{rewrite(parts.body, "body")}
}}
#line 1 "generated"
}}
extern "C" {{
extern const int emulator_checked;
const int emulator_checked = {int(checked)};
void emulator_bind(char** bound) {{ pointers = bound; }}
__attribute__((no_sanitize("thread"))) void emulator_thread() {{ kernel({", ".join(arguments)}); }}
}}
"""
