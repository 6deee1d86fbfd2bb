"""What a function hands to MLX: its graph, found by exporting it, and the one Metal kernel in that graph.

``mx.export_function`` traces a function without evaluating it, so a ``metal_kernel`` may be called where there is no
Metal. Its node holds the very text that a Mac compiles. What the function does around the kernel is evaluated here,
node by node; that is possible for the operations of `OPERATIONS` only.
"""

import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

Node = dict[str, Any]


class EmulatorError(Exception):
    """The kernel is wrong, or cannot be emulated; the message says which and where."""


@dataclass(frozen=True)
class Launch:
    """One call of a Metal kernel, as MLX hands it to Metal.

    Attributes:
        name: Name of the generated function.
        text: MLX's generated source: header, signature, body, template instantiation.
        grid: Threads in x, y and z.
        threadgroup: Threads of a threadgroup in x, y and z.
        inputs: The arrays, row-contiguous unless the kernel was made with ``ensure_row_contiguous=False``.
        shape_infos: For each input, whether its shape, strides and number of dimensions are parameters.
        output_shapes: Shapes of the outputs.
        output_dtypes: Types of the outputs.
        init_value: What the outputs are filled with before the launch, if anything.
    """

    name: str
    text: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    inputs: list[mx.array]
    shape_infos: list[tuple[bool, bool, bool]]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[mx.Dtype]
    init_value: float | None


def reshape(node: Node, x: mx.array) -> mx.array:
    return mx.reshape(x, node["outputs"][0][1])


def reduce(node: Node, x: mx.array) -> mx.array:
    kind, axes = node["arguments"][:2]
    return REDUCTIONS[kind](x, axis=axes, keepdims=True)


REDUCTIONS = {2: mx.sum, 4: mx.min, 5: mx.max}  # MLX's Reduce::ReduceType

OPERATIONS: dict[str, Callable[..., mx.array]] = {
    "AsType": lambda node, x: x.astype(node["outputs"][0][2]),
    "Broadcast": lambda node, x: mx.broadcast_to(x, node["outputs"][0][1]),
    "Contiguous": lambda node, x: mx.contiguous(x),
    "Copy": lambda node, x: x,
    "ExpandDims": reshape,
    "Flatten": reshape,
    "Reduce": reduce,
    "Reshape": reshape,
    "Slice": lambda node, x: x[tuple(slice(*bounds) for bounds in zip(*node["arguments"], strict=True))],
    "Squeeze": reshape,
    "StopGradient": lambda node, x: x,
    "Transpose": lambda node, x: mx.transpose(x, node["arguments"][0]),
    "Unflatten": reshape,
    "View": lambda node, x: x.view(node["outputs"][0][2]),
    "Abs": lambda node, x: mx.abs(x),
    "Add": lambda node, x, y: x + y,
    "Divide": lambda node, x, y: x / y,
    "Exp": lambda node, x: mx.exp(x),
    "Log": lambda node, x: mx.log(x),
    "Maximum": lambda node, x, y: mx.maximum(x, y),
    "Multiply": lambda node, x, y: x * y,
    "Negative": lambda node, x: -x,
    "Subtract": lambda node, x, y: x - y,
}


class Graph:
    """The traced graph of ``function(*arrays)``.

    Raises:
        EmulatorError: The function calls no Metal kernel, or more than one, or MLX cannot export it.
    """

    def __init__(self, function: Callable[..., Any], *arrays: mx.array) -> None:
        nodes: list[Node] = []
        try:
            mx.export_function(nodes.append, function, *arrays)
        except ValueError as error:  # as for a custom_function with a vjp: emulate what it calls
            raise EmulatorError(f"MLX cannot export the function: {error}") from error
        named = {node["type"]: node for node in nodes if node["type"] != "primitive"}
        self.values: dict[str, mx.array] = {}
        for (name, *_), array in zip(named["inputs"]["inputs"], arrays, strict=True):
            self.values[name] = array
        for name, array in named.get("constants", {"constants": []})["constants"]:
            self.values[name] = array
        self.outputs = [name for name, *_ in named["outputs"]["outputs"]]
        self.nodes = [node for node in nodes if node["type"] == "primitive"]
        kernels = [i for i, node in enumerate(self.nodes) if node["name"] == "CustomKernel"]
        if len(kernels) != 1:
            raise EmulatorError(f"the function calls {len(kernels)} Metal kernels; exactly one can be emulated")
        self.kernel = kernels[0]
        self.function = function
        self.arrays = arrays

    def launch(self) -> Launch:
        """Evaluates what leads to the kernel and returns the call of it."""
        self._evaluate(self.nodes[: self.kernel])
        node = self.nodes[self.kernel]
        name, text, gx, gy, gz, tx, ty, tz, infos, contiguous, *_ = node["arguments"]
        inputs = [self.values[name] for name, *_ in node["inputs"]]
        return Launch(
            name=name,
            text=text,
            grid=(gx, gy, gz),
            threadgroup=(tx, ty, tz),
            inputs=[mx.contiguous(x) for x in inputs] if contiguous else inputs,
            shape_infos=infos,
            output_shapes=[tuple(shape) for _, shape, _ in node["outputs"]],
            output_dtypes=[dtype for *_, dtype in node["outputs"]],
            init_value=self._init_value(text, (gx, gy, gz, tx, ty, tz), infos),
        )

    def finish(self, kernel_outputs: list[mx.array]) -> list[mx.array]:
        """Evaluates what follows the kernel and returns the function's outputs."""
        self._store(self.nodes[self.kernel], kernel_outputs)
        self._evaluate(self.nodes[self.kernel + 1 :])
        return [self.values[name] for name in self.outputs]

    def _evaluate(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node["name"] not in OPERATIONS:
                raise EmulatorError(
                    f"the function uses {node['name']} beside the kernel, which the emulator cannot evaluate: "
                    "move it out of the function, or add it to OPERATIONS in tests/metal/graph.py"
                )
            operands = [self.values[name] for name, *_ in node["inputs"]]
            self._store(node, [OPERATIONS[node["name"]](node, *operands)])

    def _store(self, node: Node, arrays: list[mx.array]) -> None:
        for (name, shape, dtype), array in zip(node["outputs"], arrays, strict=True):
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise EmulatorError(f"{node['name']} gave {array.dtype} {array.shape}, MLX says {dtype} {shape}")
            self.values[name] = array

    def _init_value(self, text: str, sizes: tuple[int, ...], infos: list[tuple[bool, bool, bool]]) -> float | None:
        """The kernel's ``init_value``, which the node of the traced graph lacks but an exported file holds.

        MLX writes the members in the order of ``CustomKernel::state()`` (mlx/fast_primitives.h): after the text the
        six sizes (int32), the number of inputs (uint64) and three flags for each, ``ensure_row_contiguous``, and then
        a flag and, where that is set, a float32.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "function.mlxfn"
            mx.export_function(str(path), self.function, *self.arrays)
            content = path.read_bytes()
        flags = [flag for info in infos for flag in info]
        before = text.encode() + struct.pack(f"<6iQ{len(flags)}?", *sizes, len(infos), *flags)
        start = content.find(before)
        if start < 0:
            raise EmulatorError("this version of MLX writes the state of CustomKernel in another order")
        present, value = struct.unpack_from("<?f", content, start + len(before) + 1)
        return value if present else None
