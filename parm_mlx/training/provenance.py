"""What an adapter records about its training, so that it can be repeated."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parm_mlx.training.config import TrainConfig
from parm_mlx.training.data import PreferenceData


def provenance(config: TrainConfig, data: PreferenceData, *, steps: int, done: int) -> dict[str, Any]:
    """The ``training`` entry of ``adapter_config.json``.

    Args:
        config: The settings.
        data: What was trained on.
        steps: Steps planned.
        done: Steps done.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model", "data", "out")}
    return {
        "settings": settings,
        "data": [{"file": file.name, "sha256": file.sha256, "pairs": file.pairs} for file in data.files],
        "train_pairs": len(data.train),
        "valid_pairs": len(data.valid),
        "steps": steps,
        "steps_done": done,
        "versions": {
            **{name: version(name) for name in ("parm-mlx", "mlx", "mlx-lm", "numpy")},
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
        },
    }


def backbone_reference(model: str, out: Path) -> str:
    """How an adapter at ``out`` names its backbone: a hub id as it is, a directory relative to the adapter."""
    path = Path(model).expanduser()
    return os.path.relpath(path.resolve(), out.resolve()) if path.is_dir() else model
