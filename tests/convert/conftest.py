"""Adapters and models to convert: the official fixtures, and small ones with one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from gguf_writer import Arrays, byte_level_metadata, llama_tensors, metadata_of, numpy_weights, write_gguf
from mlx_lm.convert import convert as mlx_lm_convert

Edit = Callable[..., Path]


def make_writable(folder: Path) -> Path:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture
def copied(official: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the official directories that a test may change."""
    return lambda name: make_writable(Path(shutil.copytree(official / name, tmp_path / f"changed-{name}")))


@pytest.fixture
def parm(copied: Callable[[str], Path]) -> Path:
    """A copy of the official adapter: k=2, r1=r2=4, on q, k and v of two layers."""
    return copied("parm_k2")


@pytest.fixture
def edit() -> Edit:
    """Changes the config of an adapter or model; the value ``...`` removes a setting."""

    def change(folder: Path, /, **settings: Any) -> Path:
        file = next(folder / name for name in ("adapter_config.json", "config.json") if (folder / name).exists())
        content = json.loads(file.read_text()) | settings
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
        return folder

    return change


@pytest.fixture(scope="session")
def arm(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The backbone of the official adapter as an MLX model."""
    path = tmp_path_factory.mktemp("models") / "arm"
    mlx_lm_convert(str(official / "arm_base"), str(path), dtype="float32")
    return path


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA adapter (r=2, lora_alpha=6) on q and v of the two layers of arm_base: hidden size 64, 2 of 4 kv heads."""
    folder = tmp_path / "lora"
    folder.mkdir()
    config = {
        "base_model_name_or_path": "arm_base",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "rank_pattern": {},
        "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    keys = iter(mx.random.split(mx.random.key(0), 8))
    tensors = {}
    for layer in range(2):
        for name, out_dims in (("q_proj", 64), ("v_proj", 32)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = 0.2 * mx.random.normal((2, 64), key=next(keys))
            tensors[f"{prefix}.lora_B.weight"] = 0.2 * mx.random.normal((out_dims, 2), key=next(keys))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def config(official: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((official / "arm_base" / "config.json").read_text())
    return result


@pytest.fixture(scope="session")
def weights(official: Path) -> Arrays:
    return numpy_weights(official / "arm_base")


@pytest.fixture
def metadata(official: Path, config: dict[str, Any]) -> dict[str, Any]:
    return metadata_of(config) | byte_level_metadata(official / "arm_base")


@pytest.fixture
def write(tmp_path: Path, metadata: dict[str, Any], weights: Arrays, config: dict[str, Any]) -> Callable[..., Path]:
    """Writes the official backbone as a GGUF file; metadata given as ``...`` is left out."""

    def write_file(kind: Any = "F32", name: str = "m.gguf", tensors: Arrays | None = None, **more: Any) -> Path:
        given = metadata | {key.replace("__", "."): value for key, value in more.items()}
        kept = {key: value for key, value in given.items() if value is not ...}
        return write_gguf(tmp_path / name, kept, tensors or llama_tensors(weights, config), kind)

    return write_file
