import mlx.core as mx
import mlx.nn as nn
from tiny import tiny_guide, tiny_model

from parm_mlx.diagnostics.operations import Operations, operations_of, operations_per_layer
from parm_mlx.guidance.guided import Guide
from parm_mlx.guidance.shared import SharedModel


def test_operations_are_counted_by_kind_back_to_what_is_known() -> None:
    """(x · x + x)ᵀ @ x, and nothing more once it is evaluated."""
    x = mx.ones((3, 3))
    mx.eval(x)
    y = (x * x + x).T @ x
    assert operations_of([y]) == {"Multiply": 1, "Add": 1, "Transpose": 1, "Matmul": 1}
    mx.eval(y)
    assert operations_of([y]) == {}


def test_what_two_outputs_share_counts_once() -> None:
    x = mx.ones((3,))
    mx.eval(x)
    shared = mx.exp(x)
    assert operations_of([shared + x, shared * x]) == {"Exp": 1, "Add": 1, "Multiply": 1}


class Chain(nn.Module):
    """A model whose layers compute tanh(x)ᵀᵀ each: one computing operation and two views."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = [None] * count

    def make_cache(self) -> list[object]:
        return []

    def __call__(self, inputs: mx.array, cache: object = None) -> mx.array:
        x = mx.log(inputs.astype(mx.float32))
        for _ in self.layers:
            x = mx.tanh(x).T.T
        return x


def test_a_layer_is_what_one_more_of_them_adds() -> None:
    assert operations_per_layer(Chain) == Operations(all=3, computing=1)


def test_adapters_of_q_k_and_v_cost_four_computing_operations_and_five_where_shared() -> None:
    """One product by the three A, and one by each B with what the core and the scale make of it, added to y.

    On a shared backbone a factor for A x, 0 in the base's rows and 1 in the guide's, comes on top.
    """
    plain = operations_per_layer(lambda n: tiny_model(num_hidden_layers=n))

    def guide(layers: int) -> Guide:
        return tiny_guide(changes={"num_hidden_layers": layers})

    assert operations_per_layer(guide).computing == plain.computing + 4
    assert operations_per_layer(lambda n: SharedModel(guide(n))).computing == plain.computing + 5
