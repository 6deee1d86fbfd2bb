"""The computed numbers on docs/performance.md, and the counting of operations, by hand."""

import runpy
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.shared import SharedModel

PAGE: dict[str, Any] = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "make_performance.py"))


def test_bytes_that_a_7b_model_reads_for_a_token() -> None:
    """A layer of Llama 2 7B has 4096 · (4 · 4096 + 3 · 11008) weights; the output layer 32,000 · 4096.

    4 bits and, for every 64 weights, a scale and a bias of 16 bits: 4.5 bits a weight. Keys and values: 2 · 32 layers ·
    4096 numbers · 2 bytes · 1024 tokens. A and B: 32 layers · rank 8 · 3 · (4096 + 4096) · 2 bytes.
    """
    weights = (32 * 4096 * (4 * 4096 + 3 * 11008) + 32000 * 4096) * 4.5 / 8
    cache = 2 * 32 * 4096 * 2 * 1024
    adapter = 32 * 8 * 3 * (4096 + 4096) * 2
    found = PAGE["bytes_per_token"]()
    assert found["unguided 7B"] == weights + cache
    assert found["two models, 7B + 7B"] == 2 * (weights + cache) + adapter
    assert found["shared backbone, 7B"] == weights + 2 * cache + adapter


def test_tokens_that_a_check_brings() -> None:
    """Two drafts, each accepted half of the time: none ½, one ¼, both ¼; then one more token, but for the base's last.

    With a draft model ½ · 1 + ¼ · 2 + ¼ · 3 = 1.75, when the base drafts ½ · 1 + ¼ · 2 + ¼ · 2 = 1.5.
    """
    assert PAGE["tokens_of_check"](0.5, 2, True) == 1.75
    assert PAGE["tokens_of_check"](0.5, 2, False) == 1.5
    assert PAGE["tokens_of_check"](1.0, 3, False) == 3
    assert PAGE["tokens_of_check"](0.0, 3, True) == 1


def test_drafts_of_the_shared_backbone_cannot_pay_where_memory_is_the_limit() -> None:
    """Even if all are accepted: 3 passes of the base and 1.3 of the guide for 3 tokens read more than 3 shared passes.

    Two models of one size do gain, and a small guide that drafts makes guided decoding faster than the base alone.
    """
    found = PAGE["bytes_per_token"]()
    base, pair, shared = (found[name] for name in ("unguided 7B", "two models, 7B + 7B", "shared backbone, 7B"))
    guide = pair - base
    assert (3 * base + 1.3 * guide) / 3 > shared
    assert (3 * base + 1.3 * guide) / 3 < pair
    small = found["two models, 7B + 1.1B guide"] - base
    drafted = found["two models, 7B + 1.1B, guide drafts, 90% accepted"]
    assert drafted == (3 * small + 1.3 * base) / (1 + 0.9 + 0.81)
    assert drafted < base


@pytest.mark.parametrize(("value", "met"), [(0.97, "met"), (0.9699, "**missed**")])
def test_a_budget_that_is_missed_says_so(value: float, met: str) -> None:
    cases = [
        {"batch": 1, "prompt": 64, "case": "guided", "of_floor": value, "of_unguided": 0.5},
        {"batch": 1, "prompt": 64, "case": "shared", "of_floor": 1.0, "of_unguided": 0.9},
        {"batch": 4, "prompt": 64, "case": "shared", "of_floor": 1.0, "of_unguided": 0.1},
        {"batch": 1, "prompt": 256, "case": "shared", "of_floor": 1.0, "of_unguided": 0.82},
    ]
    decode = {name: {"of_peer": 2.5, "budget": 2.0} for name in ("guided", "shared")}
    sweep = {"answers": 44, "tokens": 64, "of_peer": 9.9, "budget": 10.0}
    lines = PAGE["budgets_table"]({"cases": cases}, {"decode": decode, "sweep": sweep})
    ends = [line.split(" | ")[-1] for line in lines[2:]]
    assert ends == [f"{met} |", "met |", "**missed** |", "met |", "met |", "**missed** |"], (
        "no prompt length is left out"
    )


def test_straightforward_layers_compute_what_ours_compute() -> None:
    """What "before" is counted on is the same function."""
    model = PAGE["straightforward_guide"](2)
    guide = PAGE["narrow_subjects"](2).guided.guide
    tokens = mx.array([[1, 2, 3]])
    theirs, ours = model(tokens), guide(tokens, alpha=[0.5, 0.5])
    assert mx.abs(theirs - ours).max().item() < 0.05, "bfloat16"
    with_none = guide(tokens, alpha=[1.0, 0.0])
    assert mx.abs(with_none - ours).max().item() > 0


def test_operations_are_counted_by_kind_back_to_what_is_known() -> None:
    """(x · x + x)ᵀ @ x, and nothing more once it is evaluated."""
    x = mx.ones((3, 3))
    mx.eval(x)
    y = (x * x + x).T @ x
    assert PAGE["operations_of"]([y]) == {"Multiply": 1, "Add": 1, "Transpose": 1, "Matmul": 1}
    mx.eval(y)
    assert PAGE["operations_of"]([y]) == {}


def test_what_two_outputs_share_counts_once() -> None:
    x = mx.ones((3,))
    mx.eval(x)
    shared = mx.exp(x)
    assert PAGE["operations_of"]([shared + x, shared * x]) == {"Exp": 1, "Add": 1, "Multiply": 1}


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
    assert PAGE["operations_per_layer"](Chain) == PAGE["Operations"](all=3, computing=1)


def test_adapters_of_q_k_and_v_cost_four_computing_operations_and_five_where_shared() -> None:
    """One product by the three A, and for each one by its B, with core and scale in it, that adds to y as it goes.

    On a shared backbone a factor for A x, 0 in the base's rows and 1 in the guide's, comes on top.
    """
    plain = PAGE["operations_per_layer"](lambda n: tiny_model(num_hidden_layers=n))

    def guide(layers: int) -> Guide:
        return tiny_guide(changes={"num_hidden_layers": layers})

    assert PAGE["operations_per_layer"](guide).computing == plain.computing + 4
    assert PAGE["operations_per_layer"](lambda n: SharedModel(guide(n))).computing == plain.computing + 5
