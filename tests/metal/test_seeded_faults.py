"""Every detector fires: a kernel with one fault is refused for that very fault, and its twin without it passes."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
from metal.emulator import HAVE_COMPILER, EmulatorError, address_space_problems, run
from metal.making import function_of

pytestmark = pytest.mark.skipif(not HAVE_COMPILER, reason="the Metal emulator needs g++ on Linux")

X = mx.arange(256).astype(mx.float32)
INDEX = "uint i = thread_position_in_grid.x;\n"
SHARED = "uint t = thread_index_in_threadgroup; threadgroup float b[64];\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
SIMD_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"
DEVICE_BARRIER = "threadgroup_barrier(mem_flags::mem_device);"
PUT = "inline void put(threadgroup float* p, uint k, float v) { p[k] = v; }\n"
ADD = "atomic_fetch_add_explicit(&o[0], x[i], memory_order_relaxed);"
CASES: list[Any] = []


def case(
    name: str,
    message: str,
    body: str,
    *,
    shared: bool = False,
    n: int = 256,
    size: int = 256,
    group: int = 64,
    fault_call: dict[str, Any] | None = None,
    checked: bool = True,
    round_up: bool = False,
    **call: Any,
) -> None:
    """Adds a fault and its twin.

    Args:
        name: What is wrong.
        message: What the error must say; any text may stand where it has ``…``.
        body: The kernel on x and o, after the declaration of i; ``⟨wrong → right⟩`` is where the two differ.
        shared: Declare t and the threadgroup's b[64], on a line of their own, first.
        n: Threads.
        size: Elements of the output o.
        group: Threads of a threadgroup.
        fault_call: Arguments of the call that the fault changes, where it lies outside the body.
        checked: For `run`.
        round_up: For `run`.
        call: More arguments of `function_of`.
    """
    source = INDEX + (SHARED if shared else "") + body
    wrong = re.sub(r"⟨(.*?) ?→ ?(.*?)⟩", r"\1", source)
    right = re.sub(r"⟨(.*?) ?→ ?(.*?)⟩", r"\2", source)
    common = {"shape": (size,), "threads": n, "group": group, **call}

    def emulate(text: str, **changed: Any) -> Callable[[], Sequence[mx.array]]:
        function = function_of(text, **{**common, **changed})
        return lambda: run(function, X[:n], checked=checked, round_up=round_up)

    assert wrong != right or fault_call
    pattern = ".*".join(re.escape(part) for part in message.split("…"))
    CASES.append(pytest.param(pattern, emulate(wrong, **(fault_call or {})), emulate(right), id=name))


# fmt: off
# ---- buffers
WHERE = "; thread (63, 0, 0) of threadgroup (3, 0, 0); line 2 of the kernel body"
case("read past the end", f"out of bounds read of 4 bytes at byte 1024 of x, which has 1024{WHERE}",
     "o[i] = x[i⟨ + 1→⟩];")
case("the same unchecked", f"memory fault; the nearest buffer is x, at byte 1024, which has 1024{WHERE}",
     "o[i] = x[i⟨ + 1→⟩];", checked=False)
case("read before the start", "out of bounds read…byte -4 of x", "o[i] = x[int(i)⟨ - 1→⟩];")
case("read far away", "out of bounds read", "o[i] = x[i⟨ + 500000000→⟩];")
case("write past the end", "out of bounds write…byte 1024 of o", "o[i⟨ + (i == 255)→⟩] = x[i];")
case("write to an input", "write to an input: byte 0 of x", "⟨((device float*)x)[i]→o[i]⟩ = 1;")
case("the same unchecked ", "memory fault; the nearest buffer is x, at byte 0", "⟨((device float*)x)[i]→o[i]⟩ = 1;",
     checked=False)
case("vector off its alignment", "not a multiple", "o[i] = ((const device float4*)(x + ⟨1→4⟩))->x;")
case("vector past the end", "out of bounds read…of x", "o[i] = ((const device float4*)x)[i / 4⟨ + 1→⟩].w;")
case("output not written", "56 of 256 elements of output o were never written, the first at byte 800",
     "if (i < ⟨200→256⟩) o[i] = x[i];")
case("output read unwritten", "uninitialised memory: byte 0 of o", "⟨→o[i] = 0;⟩ o[i] += x[i];")
case("no init_value", "uninitialised memory", "o[i] += x[i];", init_value=0, fault_call={"init_value": None})
case("atomic without init_value", "uninitialised memory", ADD, size=1, atomic=True, init_value=0,
     fault_call={"init_value": None})
case("tail without a guard", "out of bounds read…of x, which has 1000", "⟨→if (i < 250)⟩ o[i] = x[i];", n=250, size=250,
     round_up=True)

# ---- threadgroup memory
case("missing barrier", "uninitialised memory: byte 252 of threadgroup memory b",
     f"b[t] = x[i]; ⟨→{BARRIER}⟩ o[i] = b[63 - t];", shared=True)
case("two writers", "race: byte 0 of threadgroup memory b is written, and was written by thread 0",
     f"⟨→if (t % 2)⟩ b[t / 2] = x[i]; {BARRIER} o[i] = b[t / 2];", shared=True)
case("reuse without a barrier", "race", shared=True,
     body=f"b[t] = x[i]; {BARRIER} float v = b[63 - t]; ⟨→{BARRIER}⟩ b[t] = v; {BARRIER} o[i] = b[t];")
case("broadcast and reuse", "race", shared=True,
     body=f"if (t == 0) b[0] = x[i]; {BARRIER} float v = b[0]; ⟨→{BARRIER}⟩ if (t == 63) b[0] = 1; o[i] = v;")
case("barrier without memory", "is read, and was written by thread",
     "b[t] = x[i]; threadgroup_barrier(mem_flags::⟨mem_none→mem_threadgroup⟩); o[i] = b[63 - t];", shared=True)
case("barrier of the other memory", "is read, and was written by thread", shared=True,
     body="b[t] = x[i]; threadgroup_barrier(mem_flags::mem_device⟨→ | mem_flags::mem_threadgroup⟩); o[i] = b[63 - t];")
case("simdgroup barrier across simdgroups", "uninitialised memory",
     f"b[t] = x[i]; {SIMD_BARRIER} o[i] = b[t ^ ⟨32→31⟩];", shared=True)
case("no simdgroup barrier", "uninitialised memory", f"b[t] = x[i]; ⟨→{SIMD_BARRIER}⟩ o[i] = b[t ^ 31];", shared=True)
case("reuse without a simdgroup barrier", "is written, and was read by other threads", shared=True,
     body=f"b[t] = x[i]; {SIMD_BARRIER} float v = simd_max(b[t / 32 * 32]); ⟨→{SIMD_BARRIER}⟩ b[t] = v; o[i] = b[t];")
case("what another threadgroup left", "uninitialised memory", f"if (i < ⟨64→256⟩) b[t] = x[i]; {BARRIER} o[i] = b[t];",
     shared=True)
case("index past an array", "index outside a local or threadgroup array…line 3", "b[t⟨ + 1→⟩] = x[i]; o[i] = x[i];",
     shared=True)
case("pointer past an array", "out of bounds access: byte 256 of threadgroup memory b",
     f"put(b, t⟨ + 1→⟩, x[i]); {BARRIER} o[i] = x[i];", shared=True, header=PUT)
case("pointer before an array", "out of bounds access: byte -4 of threadgroup memory b",
     f"put(b⟨ - 1→⟩, t, x[i]); {BARRIER} o[i] = x[i];", shared=True, header=PUT)
case("pointer into the next array", "out of bounds access: byte 32 of threadgroup memory c",
     "threadgroup float c[8], d[8]; if (t < 8) d[t] = 0; if (t < ⟨9→8⟩) put(c, t, 1); o[i] = x[i];",
     shared=True, header=PUT)
case("more than 32 KiB", "33024 bytes of threadgroup memory, the limit is 32768",
     f"threadgroup float c[⟨8192→8128⟩]; c[t] = x[i]; {BARRIER} o[i] = c[t];", shared=True)
case("outside the kernel", "the header has a threadgroup variable", "o[i] = x[i];",
     fault_call={"header": "float kept(float v) { threadgroup float b; b = v; return b; }\n"})
case("an initialiser", "cannot read the declaration: threadgroup float c = 1",
     "threadgroup float c⟨ = 1→⟩; c = 1; o[i] = c;", group=1)

# ---- outputs that several threads use
case("two writers of an output", "race: byte 0 of o is written, and was written by thread 0",
     "⟨→if (i % 2)⟩ o[i / 2] = x[i];", size=128)
case("threadgroups add up", "race: byte 0 of o", f"⟨o[0].value += x[i];→{ADD}⟩", size=1, init_value=0, atomic=True)
case("threadgroups write", "is written, and was written by another threadgroup",
     "if (i ⟨% 64 == 0→== 64⟩) o[0] = x[i];", size=1)
case("threadgroups read, one writes", "is written, and was read by another threadgroup",
     "o[i] = i < 192 ? ⟨o[255]→1⟩ : 0;", init_value=0)
case("a neighbour's output", "uninitialised memory", f"o[i] = x[i]; ⟨→{DEVICE_BARRIER}⟩ if (o[i ^ 1] < 0) o[i] = 0;")
case("a neighbour's output, other barrier", "is read, and was written by thread",
     f"o[i] = x[i]; ⟨{BARRIER}→{DEVICE_BARRIER}⟩ if (o[i ^ 1] < 0) o[i] = 0;")
case("plain read beside atomics", "race: byte 0 of o is used, and was changed atomically",
     f"if (i < 255) {{ {ADD} }} else if (⟨o[0].value→atomic_load_explicit(&o[0], memory_order_relaxed)⟩ < 0) {ADD}",
     size=1, init_value=0, atomic=True)

# ---- barriers and SIMD functions
case("barrier in a branch", "barrier divergence in threadgroup (0, 0, 0): thread 0 of it waits at threadgroup_barrier "
     "(body line 3) while thread 32 of it has ended",
     f"b[t] = x[i]; if (t < ⟨32→64⟩) {{ {BARRIER} }} o[i] = b[t];", shared=True)
case("barrier in either branch", "barrier divergence",
     f"b[t] = x[i]; if (t < ⟨32→64⟩) {{ {BARRIER} }} else {{ {BARRIER} }} o[i] = b[t];", shared=True)
case("return before a barrier", "divergence", size=250, shared=True,
     body=f"⟨if (i >= 250) return;→⟩ b[t] = x[i]; {BARRIER} if (i < 250) o[i] = b[t];")
case("simd_sum in a branch", "divergence in a simdgroup…at simd_sum (body line 2) while thread 16 of it has ended",
     "float v = x[i]; if (i % ⟨32 < 16→64 < 32⟩) v = simd_sum(v); o[i] = v;")
case("simd_sum in either branch", "divergence in a simdgroup",
     "float v = x[i]; if (i ⟨%→/⟩ 64) v = simd_sum(v); else v = simd_sum(v + 1); o[i] = v;")
case("loops of different lengths", "divergence in a simdgroup",
     "float v = x[i]; for (uint k = 0; k <= i ⟨%→/⟩ 64; k++) v = simd_max(v); o[i] = v;")
case("shuffle from a missing lane", "simd_shuffle (body line 2) reads lane 31 of a simdgroup of 16",
     "o[i] = simd_shuffle(x[i], ⟨31→15⟩);", group=16)
case("too many threads", "2048 threads in a threadgroup, the limit is 1024", "o[i] = 0;", n=2048, size=2048, group=1024,
     fault_call={"group": 2048})

# ---- arithmetic and private variables
case("index past a private array", "index outside a local or threadgroup array",
     "float a[4]; for (int k = 0; k ⟨<=→<⟩ 4; k++) a[k] = x[i]; o[i] = a[i % 4];")
case("integer overflow", "integer overflow of *…line 2", "int k = int(i) * ⟨100000000→1000000⟩; o[i] = k > 5;")
case("division by zero", "division by zero", "o[i] = 100 / (int(i) ⟨-→+⟩ 3);")
case("remainder by zero", "division by zero", "o[i] = 100 % (i ⟨& 63→| 64⟩);")
case("shift too far", "shift by", "o[i] = 1 << (i / ⟨4→16⟩);")
case("float out of range", "a float does not fit", "o[i] = int(x[i] * ⟨1e8f→1e6f⟩);")
case("variable without a value", "body:2:…uninitialized", "float v⟨→ = 0⟩; o[i] = x[i] + v;")
case("endless loop", "the kernel does not end", "⟨uint→int⟩ k = 9; while (k >= 0) { k--; o[i] = x[i]; }")

# ---- the language
case("double", "poisoned", "⟨double→float⟩ v = x[i]; o[i] = v;")
case("std::", "poisoned", "o[i] = ⟨std→metal⟩::exp(x[i]);")
case("float to bfloat", "body:2:…no match for…operator=", "o[i] = ⟨x[i]→static_cast<bfloat>(x[i])⟩;", dtype=mx.bfloat16)
case("float to half", "body:2:…no match for…operator=", "o[i] = ⟨x[i]→static_cast<half>(x[i])⟩;", dtype=mx.float16)
case("float added to bfloat", "no match for", "bfloat s = bfloat(x[i]); s += ⟨x[i]→bfloat(x[i])⟩; o[i] = s;")
case("max of two types", "no matching function", "o[i] = metal::max(x[i], ⟨0→0.0f⟩);")
case("lambda", "the body has a lambda", "⟨auto f = [](float v) { return v; };→⟩ o[i] = x[i];")
case("an attribute's name", "does not compile", "float ⟨thread_index_in_simdgroup→index⟩ = x[i]; o[i] = x[i];")

# fmt: on


@pytest.mark.parametrize(("pattern", "wrong", "right"), CASES)
def test_the_fault_is_found_and_its_twin_passes(
    pattern: str,
    wrong: Callable[[], Sequence[mx.array]],
    right: Callable[[], Sequence[mx.array]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metal.emulator.SECONDS", 1)
    with pytest.raises(EmulatorError, match=f"(?s){pattern}"):
        wrong()
    right()


def test_a_pointer_without_address_space_is_found_by_the_lint() -> None:
    wrong = function_of(INDEX + "const float* p = x; o[i] = p[i];", (256,), 256)
    right = function_of(INDEX + "const device float* p = x; o[i] = p[i];", (256,), 256)
    (problem,) = address_space_problems(wrong, X)
    assert problem.startswith("body:2:14: cannot initialize")
    assert address_space_problems(right, X) == []
    run(wrong, X)  # g++ knows no address spaces, so that only the lint can tell
