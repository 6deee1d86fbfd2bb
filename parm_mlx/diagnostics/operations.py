"""How many operations of MLX's graph a decoded token takes, counted in the graph itself."""

import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import make_prompt_cache

# Operations that give another view of the same numbers and compute nothing.
VIEWS = frozenset(("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape")) | frozenset(
    ("Slice", "Split", "Squeeze", "Transpose", "Unflatten")
)


@dataclass(frozen=True)
class Operations:
    """Operations of a graph.

    Attributes:
        all: How many there are.
        computing: Those that are no views.
    """

    all: int
    computing: int


def operations_per_layer(make: Callable[[int], nn.Module]) -> Operations:
    """What one more layer adds to the graph of a decoded token.

    Args:
        make: Makes a model of so many layers.
    """
    return _sum(_of_token(make(2)) - _of_token(make(1)))


def operations_of(outputs: list[mx.array]) -> Counter[str]:
    """The operations between arrays and what they were computed from, by kind."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *outputs)
    return Counter(re.findall(r'\[label ?="([^"]*)", shape=rectangle\]', graph.getvalue()))


def _of_token(model: nn.Module) -> Counter[str]:
    """The graph of the second token: what is computed once for a sequence is done by then."""
    cache = make_prompt_cache(model)
    for tokens in ([1, 2, 3], [4]):
        mx.eval(model(mx.array([tokens]), cache=cache), [entry.state for entry in cache])
    return operations_of([model(mx.array([[5]]), cache=cache)])


def _sum(kinds: Counter[str]) -> Operations:
    return Operations(kinds.total(), sum(number for kind, number in kinds.items() if kind not in VIEWS))
