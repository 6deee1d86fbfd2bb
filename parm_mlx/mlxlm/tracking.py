"""mlx-lm's callback for experiment trackers."""

from typing import Any


def reporting_callback(trackers: str, project_name: str, log_dir: str, config: dict[str, Any]) -> Any:
    """Starts experiment trackers (wandb, swanlab, comma-separated); the run is named after the last part of log_dir.

    Returns:
        An object with ``on_train_loss_report`` and ``on_val_loss_report``, which take numbers by name.
    """
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    start: Any = get_reporting_callbacks  # its annotation of config is wrong: wandb takes a dictionary
    return start(trackers, project_name=project_name, log_dir=log_dir, config=config)
