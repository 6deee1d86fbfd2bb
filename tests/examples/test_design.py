"""The experiments of design and costs, at tiny settings; their pages are made of what they measured."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from parm_mlx.pblora import read_adapter
from parm_mlx.preference import simplex_grid


@pytest.fixture
def experiment(scripts: SimpleNamespace, work: Path, tmp_path: Path) -> Any:
    """The experiment of design with two steps of training on four pairs."""
    settings = scripts.common.load_settings("design")
    settings["train"] |= {"iters": 3, "batch_size": 2, "warmup": 1}
    settings["sweep"] |= {"questions": 1, "grid": 1.0, "max_tokens": 12, "temp": 0.0}
    return scripts.common.Experiment("design", settings, work, tmp_path / "out")


def test_variants_train_as_many_numbers_as_the_default(scripts: SimpleNamespace) -> None:
    """Of a layer of 256 × 256: (r1 + r2) · 512 of A and B, r1² + 2 · r2² of the core; in half of the blocks, half."""

    def of_layer(r1: int, r2: int) -> int:
        return (r1 + r2) * 512 + r1**2 + 2 * r2**2

    assert scripts.common.json.loads((scripts.common.BASE / "config.json").read_text())["num_hidden_layers"] == (
        scripts.design.BLOCKS
    )
    for label, variant in scripts.design.VARIANTS.items():
        r1, r2 = (variant.train.get(name, 4) for name in ("r1", "r2"))
        share = len(variant.blocks) / scripts.design.BLOCKS
        assert share * of_layer(r1, r2) == pytest.approx(of_layer(4, 4), rel=0.03), label
        assert variant.train.get("lora_alpha", 8.0) / r2 == 2.0, label


def test_adapters_learn_only_in_the_blocks_of_a_variant(scripts: SimpleNamespace, experiment: Any) -> None:
    """B begins at zero and stays there in the other blocks, which are left out of the count."""
    variant = scripts.design.VARIANTS["last"]
    _, tensors = read_adapter(scripts.design.adapter(experiment, variant, 0))
    learnt = {name.split(".")[1] for name, tensor in tensors.items() if name.endswith(".b") and mx.any(tensor).item()}
    assert learnt == {"2", "3"}
    assert 2 * scripts.design.numbers(experiment, variant) == sum(tensor.size for tensor in tensors.values())


def test_a_sweep_is_guided_at_the_beta_of_its_variant(scripts: SimpleNamespace, experiment: Any) -> None:
    """β = 10⁶ leaves the base as it is, and 10⁻³ does not; what was asked for is recorded."""
    parm = scripts.common.BASE.parent / "parm"

    def answers(name: str, beta: float) -> set[str]:
        run = experiment.run(name, [parm], beta=beta)
        identity = json.loads((experiment.work / "runs" / name / "run.json").read_text())
        assert identity["settings"]["beta"] == beta
        return {result.text for result in run.results}

    assert len(answers("weak", 1e6)) == 1
    assert len(answers("strong", 1e-3)) == 3


def test_shape_of_a_front_by_hand(scripts: SimpleNamespace) -> None:
    """From (4, 0) to (0, 3) is 5. (2, 1.5) is halfway on the chord, and (0.6, 0.8) is its normal outwards."""
    found = scripts.design.shape([[4.0, 0.0], [2 + 0.6, 1.5 + 0.8], [0.0, 3.0]])
    assert found["length"] == pytest.approx(5)
    assert found["middle"] == pytest.approx(0.5)
    assert found["height"] == pytest.approx(1)
    assert found["centre"] == pytest.approx((2.6 + 2.3) / 2)
    assert found["step"] == pytest.approx(0.5)
    inwards = scripts.design.shape([[4.0, 0.0], [4.0, 0.0], [3.2 - 0.6, 0.6 - 0.8], [1.0, 1.0], [0.0, 3.0]])
    assert inwards["middle"] == pytest.approx(0.2)
    assert inwards["height"] == pytest.approx(-1)
    reversed_ = scripts.design.shape([[0.0, 3.0], [2 + 0.6, 1.5 + 0.8], [4.0, 0.0]])
    assert reversed_["height"] == pytest.approx(1)


def test_every_group_has_the_default_and_its_differences(scripts: SimpleNamespace) -> None:
    flat = {"value": 1.0, "low": 0.5, "high": 1.5}
    names = [*scripts.design.MEASURES, "spearman_warmth", "spearman_focus", "ended"]
    of_each = {"values": dict.fromkeys(names, flat), "less_default": dict.fromkeys(names, flat)}
    results = {label: of_each | {"trainable_numbers": len(label)} for label in scripts.design.VARIANTS}
    for group in scripts.design.GROUPS.values():
        lines = scripts.design.table(group, results).splitlines()
        assert len(lines) == 2 + len(group) + len(group) - 1
        assert len({line.count("|") for line in lines[:1] + lines[2:]}) == 1


def test_passes_of_each_way_to_guide(scripts: SimpleNamespace, tmp_path: Path) -> None:
    """One for the base; none more on one backbone, one more for a PARM, k more for ARMs, whatever their weights."""
    systems = scripts.costs.make_adapters(tmp_path, "bundled", ["q_proj"], [1, 3], 4)
    assert [(system.k, system.passes) for system in systems] == [(0, 1), (1, 1), (1, 2), (1, 2), (3, 1), (3, 2), (3, 4)]
    model, _ = scripts.costs.loaded("bundled", systems[-1])
    assert model.objectives == ("objective_1", "objective_2", "objective_3")
    config, tensors = read_adapter(systems[4].adapters[0])
    assert (config.k, config.r1, config.r2) == (3, 2, 2)
    assert all(mx.any(tensor).item() for name, tensor in tensors.items() if name.endswith(".b"))


def test_costs_are_measured_of_every_system(scripts: SimpleNamespace) -> None:
    settings = {"k": [2], "rank": 4, "tokens": 2, "rounds": {"bundled": 2}, "loads": 2}
    rows = scripts.costs.measured("bundled", ["q_proj"], settings)
    assert [row["system"] for row in rows] == [
        *(scripts.costs.BASE, scripts.costs.SHARED),
        *(scripts.costs.TWO, scripts.costs.ARMS),
    ]
    assert rows[0]["of_base"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    for row in rows:
        assert 0 < row["token_ms"]["low"] <= row["token_ms"]["value"] <= row["token_ms"]["high"]
        assert 12 < row["peak_mb"] < 200, "3 million numbers of 4 bytes"
        assert row["load_s"]["value"] > 0
    assert rows[3]["adapter_mb"] > rows[2]["adapter_mb"] > 0 == rows[0]["adapter_mb"]
    assert scripts.costs.table({"bundled": rows}).count("\n") == 5


def test_medians_with_the_lowest_and_the_highest(scripts: SimpleNamespace) -> None:
    assert scripts.costs.between(scripts.costs.of([3.0, 1.0, 2.0, 9.0]), 1) == "2.5 (1.0–9.0)"


def test_grid_has_a_middle(scripts: SimpleNamespace) -> None:
    grid = simplex_grid(2, scripts.common.load_settings("design")["sweep"]["grid"])
    assert grid[len(grid) // 2] == (0.5, 0.5)
