"""mlx-lm's experiment trackers."""

from typing import Any, Protocol


class TrainingCallback(Protocol):
    """What mlx-lm tells about a training."""

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        """Takes the numbers of the training; ``iteration`` is the step."""
        ...

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        """Takes the numbers of a validation; ``iteration`` is the step."""
        ...


def reporting_callback(trackers: str, *, project_name: str, log_dir: str, config: dict[str, Any]) -> TrainingCallback:
    """Starts experiment trackers.

    Args:
        trackers: Their names, comma-separated: wandb, swanlab.
        project_name: Project that the run is shown in.
        log_dir: Where their files go; the run is named after its last part.
        config: The settings of the run.
    """
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    started: Any = get_reporting_callbacks
    callback: TrainingCallback = started(trackers, project_name, log_dir, config)
    return callback
