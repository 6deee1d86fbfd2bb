"""Checkpoints of a training run: a folder beside the output, with one directory per checkpoint.

``OUT.checkpoints/step-00000120`` is an adapter directory with two more files: ``optimizer.safetensors``, and
``state.json`` with everything else that the run needs to go on. A checkpoint is whole or not there, and its marker has
the SHA-256 of every file. The markers of the folder and of each checkpoint name the run: only its checkpoints count,
and only they are ever removed.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parm_mlx.errors import CheckpointError, OutputError, RunError
from parm_mlx.files import disk_errors, expanded, flush, is_dir, resolve
from parm_mlx.fingerprint import changes, fingerprint
from parm_mlx.outputs import claimed, new_directory, own, read_marker, recover, remove_directory, written
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.logging import METRICS_FILE

STATE_FILE = "state.json"
FORMAT_VERSION = 2
AGAIN = "start from the beginning with --force, without --resume"
# None of these can change a step. Models and data are compared by their fingerprints, wherever they lie.
FREE = {
    "model",
    "data",
    "skip_bad",
    "out",
    "steps_per_report",
    "steps_per_save",
    "keep_checkpoints",
    "save",
    "reward",
    "report_to",
    "project_name",
}
START = "start-from"
_NAME = re.compile(r"step-(\d{8,})")
Changes = dict[str, tuple[str | None, str | None]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified, with the steps done and the state that the run stored."""

    path: Path
    step: int
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of the run that writes to ``out``: ``OUT.checkpoints``, with the ``keep`` newest and the best."""

    def __init__(self, out: Path, keep: int) -> None:
        self.path = out.parent / f"{out.name}.checkpoints"
        self.metrics = self.path / METRICS_FILE
        self.keep = keep

    @property
    def run(self) -> str | None:
        """The identifier of the run that the folder belongs to; None where there is no folder."""
        marker = read_marker(self.path)
        return None if marker is None else str(marker.get("run"))

    def steps(self) -> list[int]:
        """Returns the steps of the run's checkpoints, readable or not, in ascending order."""
        run = self.run
        return [step for step, owner in self._owners().items() if run is not None and owner == run]

    def _owners(self) -> dict[int, str | None]:
        """The run that wrote each checkpoint, by step; None where its marker does not say so."""
        owners = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if found := _NAME.fullmatch(path.name):
                marker = read_marker(path) or {}
                owners[int(found[1])] = marker.get("run") if marker.get("name") == path.name else None
        return dict(sorted(owners.items()))

    def at(self, step: int) -> Path:
        """Returns the path of the checkpoint of a step, whether it is there or not."""
        return self.path / f"step-{step:08}"

    def last(self, before: int | None = None) -> Path | None:
        """Returns the newest checkpoint, or the newest of those before a step."""
        steps = [step for step in self.steps() if before is None or step < before]
        return self.at(steps[-1]) if steps else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; it is made if necessary, and removed if it is empty at the end.

        Raises:
            OutputError: Another process trains to the same output, or the folder holds anything of others.
        """
        problem = f"{self.path} is in use: another process trains to the same output"
        with claimed(self.path, "checkpoints", problem) as marker:
            others = [step for step, owner in self._owners().items() if owner != marker["run"]]
            if others:
                raise OutputError(f"{self.at(others[0])} is not of the run of this folder", hint="move it away")
            own(self.path, [METRICS_FILE])
            yield

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], None], best: int | None) -> Path:
        """Writes a checkpoint that outlasts a power cut, then removes all but the newest and the best one.

        A good one of that step stays as it is: it says the same, and is not risked.

        Args:
            step: Steps done.
            state: The state of the run, as plain values.
            write: Writes the other files into a directory.
            best: The step with the best validation.

        Raises:
            RunError: The disk is full or failed. The earlier checkpoints are still there.
        """
        path = self.at(step)
        try:
            if step in self.steps():
                with suppress(CheckpointError):
                    return read_checkpoint(path).path
                self._remove(step)
            with new_directory(path, run=self.run) as directory:
                write(directory)
                content = {"format_version": FORMAT_VERSION, "step": step, "run": state}
                (directory / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                flush(*directory.iterdir(), directory)
            flush(self.path)
        except RunError as error:
            last = self.last()
            remains = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            hint = f"make room, then give the same command{' with --resume' if last else ''}"
            raise RunError(f"{error}; {remains}", hint=hint) from error
        for other in self.steps()[: -self.keep]:
            if other != best:
                self._remove(other)
        return path

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """Returns the newest checkpoint that can be read; newer ones are removed, with a note.

        Raises:
            CheckpointError: There are checkpoints, but none can be read.
        """
        broken = []
        for step in reversed(self.steps()):
            try:
                checkpoint = read_checkpoint(self.at(step))
            except CheckpointError as error:
                broken.append(step)
                note(f"{error}; the one before it is tried")
            else:
                for newer in broken:
                    self._remove(newer)
                return checkpoint
        if broken:
            raise CheckpointError(f"no checkpoint in {self.path} can be read", hint=AGAIN)
        return None

    def check_unused(self) -> None:
        """Raises OutputError if there are checkpoints of an earlier run."""
        if steps := self.steps():
            raise OutputError(
                f"{self.path} holds the checkpoints of an earlier run, up to step {steps[-1]}",
                hint="continue it with --resume, or start from the beginning with --force",
            )

    def clear(self, keep: int | None = None) -> None:
        """Removes the checkpoints, oldest first, and the metrics; ``keep`` names a step that stays."""
        for step in self.steps():
            if step != keep:
                self._remove(step)
        with disk_errors(self.metrics):
            self.metrics.unlink(missing_ok=True)

    def _remove(self, step: int) -> None:
        recover(self.at(step))
        remove_directory(self.at(step), self.run)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and verifies its files.

    Raises:
        CheckpointError: A file is missing, truncated or changed.
    """
    marker = read_marker(path)
    if marker is None or STATE_FILE not in marker["files"]:
        raise CheckpointError(f"checkpoint {path} is broken: it has no marker that lists {STATE_FILE}")
    try:
        for name, facts in marker["files"].items():
            if facts is None and name != STATE_FILE:  # added later: the picture of a run that was interrupted
                continue
            if written(path / name)["sha256"] != facts["sha256"]:
                raise CheckpointError(f"checkpoint {path} is broken: {name} was changed or truncated")
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"checkpoint {path} has the unknown format {content['format_version']}")
        return Checkpoint(path, content["step"], content["run"])
    except OSError as error:
        name = Path(error.filename or STATE_FILE).name
        raise CheckpointError(f"checkpoint {path} is broken: {name}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"checkpoint {path} is broken: {STATE_FILE} or its marker is not readable") from None


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that decide the steps of a run, as plain values."""
    return {name: value for name, value in json.loads(json.dumps(asdict(config))).items() if name not in FREE}


def check_settings(stored: dict[str, Any], config: TrainConfig, where: Path) -> None:
    """Raises CheckpointError, which shows every difference, if settings are not those of a checkpoint."""
    now = settings_of(config)
    names = [name for name in {**stored, **now} if stored.get(name) != now.get(name)]
    if names:
        different = "".join(f"\n  {name}: {_shown(stored, name)} → {_shown(now, name)}" for name in names)
        hint = f"resume with the old settings, or {AGAIN}"
        raise CheckpointError(f"{where} was made with other settings:{different}", hint=hint)


def models_of(config: TrainConfig) -> dict[str, str]:
    """Returns the fingerprints of the backbone, and of the adapter to begin from unless it is gone by now."""
    found = {f"model: {name}": value for name, value in fingerprint(resolve(config.model)).items()}
    if config.start_from and is_dir(start := expanded(config.start_from)):
        found |= {f"{START}: {name}": value for name, value in fingerprint(start).items()}
    return found


def changes_since(state: Mapping[str, Any], data: list[dict[str, Any]], models: dict[str, str]) -> tuple[Changes, ...]:
    """Returns the changes of data and of models since a checkpoint: by name, the digests before and now."""
    digests = [
        {file["file"]: str(file.get("sha256") or file.get("fingerprint")) for file in files}
        for files in (state["data"], data)
    ]
    before = state["models"]
    if not any(name.startswith(START) for name in models):  # a run that goes on does not read what it began from
        before = {name: value for name, value in before.items() if not name.startswith(START)}
    return changes(*digests), changes(before, models)


def refuse_changes(where: Path, data: Changes, models: Changes) -> None:
    """Raises CheckpointError, which shows every difference, if data or models have changed."""
    if not (found := data | models):
        return
    kinds = " and ".join(["data"] * bool(data) + ["models"] * bool(models))
    lines = "".join(f"\n  {name}: {_short(before)} → {_short(now)}" for name, (before, now) in found.items())
    raise CheckpointError(
        f"{where} was made with other {kinds} (SHA-256 of files, fingerprints of hub data sets):{lines}",
        hint=f"resume with the old {kinds}, {AGAIN}, or go on with --resume-anyway",
    )


def _shown(settings: dict[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "(not known then)"


def _short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "no such file"
