"""Directories of tiny models as transformers writes them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny import FAMILIES, tiny_model


@pytest.fixture
def write_model(official: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a directory: ``write_model("name", family="qwen2", config={…}, tensors={…}, sizes={…})``.

    ``tensors`` are put over those of a random model; None leaves one out. ``config`` is put over its sizes likewise.
    """

    def write(
        name: str,
        family: str = "qwen2",
        config: dict[str, Any] | None = None,
        tensors: dict[str, mx.array | None] | None = None,
        sizes: dict[str, Any] | None = None,
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        model = tiny_model(family, **(sizes or {}))
        held = {**dict(tree_flatten(model.parameters())), **(tensors or {})}
        kept = {key: value for key, value in held.items() if value is not None}
        mx.save_safetensors(str(path / "model.safetensors"), kept, metadata={"format": "pt"})
        content = {"model_type": family, **FAMILIES[family], **(sizes or {}), **(config or {})}
        (path / "config.json").write_text(json.dumps(content))
        for file in (official / "arm_base").glob("*token*"):
            shutil.copy(file, path)
        return path

    return write
