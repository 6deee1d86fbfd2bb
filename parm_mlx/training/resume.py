"""Whether a run may go on from a checkpoint: the settings and the data must be those it began with."""

import json
from pathlib import Path
from typing import Any

from parm_mlx.errors import CheckpointError
from parm_mlx.pblora.adapter import CONFIG_FILE, backbone_reference
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.data import DataFile

# Where things are, how often something is shown or kept: none of it can change a step.
FREE = {
    "data",
    "out",
    "steps_per_report",
    "steps_per_save",
    "keep_checkpoints",
    "save",
    "report_to",
    "project_name",
}


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide what a run does, as plain values; a model directory by its full path."""
    settings = {name: value for name, value in config.to_dict().items() if name not in FREE}
    model = Path(config.model).expanduser()
    settings["model"] = str(model.resolve()) if model.is_dir() else config.model
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def check_settings(stored: dict[str, Any], config: TrainConfig, where: Path) -> None:
    """Checks that the settings are those of a checkpoint.

    Raises:
        CheckpointError: They are not; every difference is shown.
    """
    now = settings_of(config)
    names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
    if names:
        changes = "".join(f"\n  {name}: {_shown(stored, name)} → {_shown(now, name)}" for name in names)
        raise CheckpointError(
            f"{where} was made with other settings:{changes}",
            hint="resume with the old settings, or start from the beginning with --force",
        )


def check_files(stored: list[dict[str, Any]], files: tuple[DataFile, ...], where: Path) -> None:
    """Checks that the data files are those of a checkpoint.

    Raises:
        CheckpointError: They are not; every difference is shown.
    """
    before = {file["file"]: _digest(file) for file in stored}
    now = {file.name: _digest(file.identity) for file in files}
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        changes = "".join(f"\n  {name}: {_short(before, name)} → {_short(now, name)}" for name in names)
        raise CheckpointError(
            f"{where} was made with other data (SHA-256 of files, fingerprints of hub data sets):{changes}",
            hint="resume with the old data, or start from the beginning with --force",
        )


def finished_training(out: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What the adapter at ``out`` records about its training, if it is one that these settings have made."""
    try:
        adapter = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
        training: dict[str, Any] = adapter["training"]
        stored, model = training["settings"], adapter["base_model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    now = settings_of(config)
    same = all(stored.get(name) == now[name] for name in now if name != "model")
    return training if same and model == backbone_reference(config.model, out) else None


def version_note(stored: dict[str, str], now: dict[str, str]) -> str | None:
    """A note when other versions made the checkpoint: then the last bits of the result may differ."""
    changes = [f"{name} {stored.get(name)} → {value}" for name, value in now.items() if stored.get(name) != value]
    return f"versions have changed, so the last bits may differ: {', '.join(changes)}" if changes else None


def _shown(settings: dict[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not known then)"


def _digest(identity: dict[str, Any]) -> str:
    return str(identity.get("sha256") or identity.get("fingerprint"))


def _short(digests: dict[str, str], name: str) -> str:
    return f"{digests[name][:12]}…" if name in digests else "no such file"
