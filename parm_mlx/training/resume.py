"""Whether a run may go on from a checkpoint: settings, data and models must be those it began with."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parm_mlx.data.dataset import FileRecord
from parm_mlx.errors import CheckpointError
from parm_mlx.files import resolve
from parm_mlx.fingerprint import changes, fingerprint
from parm_mlx.pblora.adapter import CONFIG_FILE, backbone_reference
from parm_mlx.training.config import TrainConfig

# Where things are, how often something is shown or kept: none of it can change a step.
FREE = {
    "data",
    "skip_bad",
    "out",
    "steps_per_report",
    "steps_per_save",
    "keep_checkpoints",
    "save",
    "report_to",
    "project_name",
}


START = "start-from"
Changes = dict[str, tuple[str | None, str | None]]


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


def models_of(config: TrainConfig) -> dict[str, str]:
    """The fingerprints of what a run reads beside its data: the backbone, and the adapter that it begins from.

    A run that goes on does not read that adapter again, so it may be gone by then.

    Raises:
        ModelError: There is no such model.
    """
    found = {f"model: {name}": value for name, value in fingerprint(resolve(config.model)).items()}
    start = Path(config.start_from or "").expanduser()
    if config.start_from and start.is_dir():
        found |= {f"{START}: {name}": value for name, value in fingerprint(start).items()}
    return found


@dataclass(frozen=True)
class Changed:
    """What is not as it was when a checkpoint was made: by name, the digests before and now."""

    data: Changes = field(default_factory=dict)
    models: Changes = field(default_factory=dict)

    @property
    def named(self) -> Changes:
        """Both together."""
        return {**self.data, **self.models}

    def refuse(self, where: Path) -> None:
        """Refuses to go on if anything has changed.

        Raises:
            CheckpointError: Data or models are others; every difference is shown.
        """
        if not self.named:
            return
        kinds = " and ".join(["data"] * bool(self.data) + ["models"] * bool(self.models))
        lines = "".join(f"\n  {name}: {_short(before)} → {_short(now)}" for name, (before, now) in self.named.items())
        raise CheckpointError(
            f"{where} was made with other {kinds} (SHA-256 of files, fingerprints of hub data sets):{lines}",
            hint=f"resume with the old {kinds}, start from the beginning with --force, or go on with --resume-anyway",
        )


def changed_since(state: dict[str, Any], files: tuple[FileRecord, ...], models: dict[str, str]) -> Changed:
    """Compares data and models with those of a checkpoint."""
    before = state["models"]
    if not any(name.startswith(START) for name in models):
        before = {name: value for name, value in before.items() if not name.startswith(START)}
    old, new = ({file["file"]: _digest(file) for file in state["data"]}, {f.name: _digest(f.identity) for f in files})
    return Changed(changes(old, new), changes(before, models))


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


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "no such file"
