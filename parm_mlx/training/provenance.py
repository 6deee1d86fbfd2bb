"""What an adapter records about its training, so that it can be repeated."""

from typing import Any

from parm_mlx.data.dataset import PreferenceData
from parm_mlx.machine import versions
from parm_mlx.training.config import TrainConfig


def provenance(
    config: TrainConfig,
    data: PreferenceData,
    *,
    models: dict[str, str],
    resumed: list[dict[str, Any]],
    pairs: tuple[int, int],
    steps: int,
    done: int,
) -> dict[str, Any]:
    """The ``training`` entry of ``adapter_config.json``.

    Args:
        config: The settings.
        data: What was read.
        models: Fingerprints of the models.
        resumed: Where the run went on with other data or models: the step, and what had changed.
        pairs: How many pairs trained and validated.
        steps: Steps planned.
        done: Steps done.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model", "data", "out")}
    return {
        "settings": settings,
        "data": files(data),
        "models": models,
        **({"resumed_with_changes": resumed} if resumed else {}),
        "train_pairs": pairs[0],
        "valid_pairs": pairs[1],
        "steps": steps,
        "steps_done": done,
        "versions": versions(),
    }


def files(data: PreferenceData) -> list[dict[str, Any]]:
    """What was read: files with the SHA-256 of their bytes, hub data sets with revision and fingerprint."""
    return [{"file": file.name, **file.identity, "pairs": file.pairs} for file in data.files]
