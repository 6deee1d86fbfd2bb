"""Whether models fit into the memory, by hand for the bundled one: 3 layers or so of keys and values, and its file."""

import json
from pathlib import Path

import pytest

from parm_mlx.guidance import fit
from parm_mlx.guidance.session import load_session
from parm_mlx.named import BUNDLED_BASE


def test_keys_and_values_of_a_token() -> None:
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    number = 4 if fit.uses_linux_cpu() else 2
    assert fit.cache_bytes(config) == 2 * 32 * 8 * 128 * number
    assert fit.cache_bytes({"text_config": {**config, "head_dim": 256}}) == 2 * 32 * 8 * 256 * number
    assert fit.cache_bytes({"model_type": "mamba"}) == 0


def test_what_does_not_fit_is_said_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (BUNDLED_BASE / "model.safetensors").stat().st_size
    config = json.loads((BUNDLED_BASE / "config.json").read_text())
    needed = fit.weight_bytes(BUNDLED_BASE) + 2 * config["max_position_embeddings"] * fit.cache_bytes(config)
    assert size <= fit.weight_bytes(BUNDLED_BASE) <= 2 * size
    monkeypatch.setattr(fit, "usable_memory", lambda: needed)
    assert fit.misfit([BUNDLED_BASE, BUNDLED_BASE]) is None, "one model for both is loaded once"
    monkeypatch.setattr(fit, "usable_memory", lambda: needed - 1)
    said: list[str] = []
    load_session("bundled", announce=said.append)
    (line,) = said
    assert line.startswith("warning: memory: weights of ")
    assert "convert -q" in line


def test_16_bit_weights_are_widened_on_a_linux_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    for where, size in ((True, 2000), (False, 1000)):
        monkeypatch.setattr(fit, "uses_linux_cpu", lambda where=where: where)
        assert fit.weight_bytes(tmp_path) == size
