"""Whether models fit into the memory, by hand for the bundled one: 3 layers or so of keys and values, and its file."""

import json
from pathlib import Path
from types import SimpleNamespace

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


def test_what_will_be_fetched_is_said_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    class Hub:
        def model_info(self, repo_id: str, files_metadata: bool, timeout: float) -> object:
            assert files_metadata
            if repo_id == "some-owner/hidden":
                raise OSError("no such repository")
            if repo_id == "some-owner/offline":
                raise type("ConnectError", (Exception,), {})("Name or service not known")
            sizes = {"model.safetensors": 3 * 10**9, "config.json": 1000, "pytorch_model.bin": 9 * 10**9}
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in sizes.items()])

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(fit, "usable_memory", lambda: 4 * 10**9)
    assert fit.fetching("some-owner/model") == "fetching some-owner/model from the hub: 3.0 GB"
    monkeypatch.setattr(fit, "usable_memory", lambda: 2 * 10**9)
    assert str(fit.fetching("some-owner/model")).endswith(
        "3.0 GB; warning: this machine has 2.0 GB for weights and caches"
    )
    assert [fit.fetching(source) for source in ("smollm2", str(tmp_path), tmp_path, "some-owner/hidden")] == [None] * 4
    assert fit.fetching("some-owner/offline") is None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "there")
    assert fit.fetching("some-owner/model") is None


def test_smaller_caches_count_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    token = 2 * fit.cache_bytes(json.loads((BUNDLED_BASE / "config.json").read_text()))
    weights, bits = fit.weight_bytes(BUNDLED_BASE), 32 if fit.uses_linux_cpu() else 16
    for limits, caches in (({"max_kv_size": 100}, 100 * token), ({"kv_bits": 4}, 1024 * token * 4 // bits)):
        monkeypatch.setattr(fit, "usable_memory", lambda caches=caches: weights + caches)
        assert fit.misfit([BUNDLED_BASE, BUNDLED_BASE], **limits) is None
        monkeypatch.setattr(fit, "usable_memory", lambda caches=caches: weights + caches - 1)
        assert fit.misfit([BUNDLED_BASE, BUNDLED_BASE], **limits) is not None
