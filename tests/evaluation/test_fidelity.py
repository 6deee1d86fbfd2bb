"""The distance between exact and one-pass guidance, against distributions computed by hand."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_guide, tiny_guided, tiny_model, tiny_shared

import parm_mlx
from parm_mlx.errors import InputError
from parm_mlx.evaluation.evaluate import compare_runs
from parm_mlx.evaluation.fidelity import ReadAnswer, compare_distributions, guide_of
from parm_mlx.evaluation.report.formatting import table
from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.one_pass import OnePassModel
from parm_mlx.pblora.adapter import adapted_layers

PROMPT, BETA = [3, 14, 15], 0.5


def distributions(guide: Guide, ids: list[int], alpha: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Exact ones, softmax(z(θ) + z(θ + Δ)/β), and those of one pass, softmax((1 + 1/β) z(θ + Δ/(1 + β)))."""

    def logits(share: float) -> np.ndarray:
        model = tiny_model("llama", 1)
        for name, layer in adapted_layers(guide.model).items():
            module = getattr(model.layers[int(name.split(".")[1])].self_attn, name.rpartition(".")[2])
            module.weight = module.weight + share * layer.delta(mx.array(alpha))
        return np.array(model(mx.array([ids]))[0], float)

    def softmax(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    return softmax(logits(0) + logits(1) / BETA), softmax((1 + 1 / BETA) * logits(1 / (1 + BETA)))


def test_mean_total_variation_and_equal_likeliest_tokens_by_alpha() -> None:
    guide = tiny_guide()
    answers = [
        ReadAnswer(PROMPT, [9, 26, 5], (0.3, 0.7)),
        ReadAnswer([*PROMPT, 40], [7], (1.0, 0.0)),
        ReadAnswer(PROMPT, [8, 8], (0.3, 0.7)),
        ReadAnswer(PROMPT, [], (0.3, 0.7)),
    ]
    found = compare_distributions(guide, BETA, answers)
    by_alpha: dict[tuple[float, float], list[tuple[float, bool]]] = {}
    for each in answers:
        p, q = distributions(guide, [*each.prompt, *each.answer], each.alpha)
        at = slice(len(each.prompt) - 1, len(each.prompt) - 1 + len(each.answer))
        pairs = zip(0.5 * np.abs(p - q).sum(-1)[at], p.argmax(-1)[at] == q.argmax(-1)[at], strict=True)
        by_alpha.setdefault(each.alpha, []).extend((float(v), bool(s)) for v, s in pairs)
    assert found["positions"] == 6
    assert [(tuple(row["alpha"]), row["positions"]) for row in found["by_alpha"]] == [((0.3, 0.7), 5), ((1.0, 0.0), 1)]
    for row, own in zip(found["by_alpha"], by_alpha.values(), strict=True):
        assert row["total_variation"] == pytest.approx(np.mean([v for v, _ in own]), abs=1e-3)
        assert row["same_token"] == pytest.approx(np.mean([s for _, s in own]))
    everything = [v for own in by_alpha.values() for v, _ in own]
    assert found["total_variation"] == pytest.approx(np.mean(everything), abs=1e-3)
    assert found["total_variation"] > 0.01


def test_without_an_update_both_are_the_same() -> None:
    guide = tiny_guide()
    for layer in guide.adapted:
        layer.b = mx.zeros_like(layer.b)
    found = compare_distributions(guide, BETA, [ReadAnswer(PROMPT, [9, 26], (0.3, 0.7))])
    assert found["total_variation"] == pytest.approx(0, abs=1e-5)
    assert found["same_token"] == 1


def test_no_tokens_have_no_mean() -> None:
    found = compare_distributions(tiny_guide(), BETA, [])
    assert found == {"positions": 0, "total_variation": None, "same_token": None, "by_alpha": []}


def test_base_and_guide_need_the_same_weights() -> None:
    shared = tiny_shared()
    assert guide_of(shared) is shared.guide
    assert guide_of(OnePassModel(shared.guide)) is shared.guide
    with pytest.raises(InputError, match="the same weights"):
        guide_of(tiny_guided())


def test_a_run_and_a_comparison_report_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command measures it on answers of either kind of guidance; β counts."""
    settings: Any = {
        "model": "bundled",
        "prompts": ["How do I bake bread?", "How do I plant a tree?"],
        "alphas": ["1,0", "0,1"],
        "max_tokens": 12,
        "bootstrap": 10,
        "fidelity": True,
    }
    fast = parm_mlx.evaluate(out=tmp_path / "fast", guidance="one-pass", **settings)
    exact = parm_mlx.evaluate(out=tmp_path / "exact", beta=0.5, **settings)
    for run in (fast, exact):
        assert [row["alpha"] for row in run["fidelity"]["by_alpha"]] == [[1.0, 0.0], [0.0, 1.0]]
        assert 0.001 < run["fidelity"]["total_variation"] < 0.1
        assert run["fidelity"]["positions"] <= 4 * 12
        assert run["fidelity"]["positions"] == sum(row["positions"] for row in run["fidelity"]["by_alpha"])
        assert "the same likeliest token" in table(run)
    assert fast["settings"]["guidance"] == '"one-pass"'
    assert "guidance" not in exact["settings"]
    both = compare_runs([tmp_path / "fast", tmp_path / "exact"], tmp_path / "both", bootstrap=10)
    assert [run["fidelity"] for run in both["runs"]] == [fast["fidelity"], exact["fidelity"]]
    assert "guidance" in both["settings"]
    assert "corners warmth" in table(both)
    assert "One pass against exact guidance" in (tmp_path / "fast" / "report.html").read_text()
    with pytest.raises(InputError, match="the same weights"):
        parm_mlx.evaluate(out=tmp_path / "apart", share="off", **settings)
