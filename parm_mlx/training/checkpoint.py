"""Checkpoints of a training run: a folder beside the output, with one directory per checkpoint.

``OUT.checkpoints/step-00000120`` is an adapter directory that can be used as any other, with two more files:
``optimizer.safetensors`` and ``state.json``, which holds everything else that the run needs to go on, and the SHA-256
of the other files. A checkpoint is written beside and renamed, so it is whole or not there. The folder's marker has a
number for the run, and so has the marker of every checkpoint: only what carries it counts, and is ever removed.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parm_mlx.errors import CheckpointError, OutputError, RunError
from parm_mlx.files import disk_errors, flush_files
from parm_mlx.outputs import claimed, new_directory, own, read_marker, remove_directory
from parm_mlx.training.metrics import METRICS_FILE

STATE_FILE = "state.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified.

    Attributes:
        path: Its directory.
        step: Steps done.
        state: What the run stored.
    """

    path: Path
    step: int
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of the run that writes to ``out``.

    Args:
        out: The run's output; the folder is ``OUT.checkpoints`` beside it.
        keep: How many of the newest checkpoints to keep.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.path = out.parent / f"{out.name}.checkpoints"
        self.metrics = self.path / METRICS_FILE
        self.keep = keep

    @property
    def run(self) -> str | None:
        """The number of the run that the folder belongs to; None where there is no folder."""
        marker = read_marker(self.path)
        return None if marker is None else str(marker.get("run"))

    def steps(self) -> list[int]:
        """The steps of the run's checkpoints that are there, readable or not, in ascending order."""
        run = self.run
        return [step for step, of in self._found().items() if run is not None and of == run]

    def _found(self) -> dict[int, str | None]:
        """For each step that something is there of, in ascending order, the run that it is of."""
        paths = list(self.path.iterdir()) if self.path.is_dir() else []
        steps = {int(found[1]): path for path in paths if (found := _NAME.fullmatch(path.name))}
        return {step: _run_of(steps[step]) for step in sorted(steps)}

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is or would be."""
        return self.path / f"step-{step:08}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder, which is made if need be and removed again if there is nothing in it at the end.

        Raises:
            OutputError: Another process trains to the same output, or the folder is not one of a training run, holds
                checkpoints of others, or cannot be made.
        """
        problem = f"{self.path} is in use: another process trains to the same output"
        with claimed(self.path, "checkpoints", problem) as marker:
            others = [step for step, run in self._found().items() if run != marker["run"]]
            if others:
                raise OutputError(f"{self.at(others[0])} is not of the run of this folder", hint="move it away")
            own(self.path, [METRICS_FILE])
            yield

    def begin(self, keep: bool) -> None:
        """Prepares the folder for a run that starts now; ``keep`` says that it goes on from a checkpoint."""
        for step in [] if keep else self.steps():
            self._remove(step)

    def save(self, step: int, state: dict[str, Any], write: Callable[[Path], None], best: int | None) -> Path:
        """Writes a checkpoint, then removes those that need not be kept.

        Args:
            step: Steps done.
            state: What the run needs to go on, as plain values.
            write: Writes the other files into a directory.
            best: The step with the best validation, which is kept besides the newest.

        Raises:
            RunError: The disk is full or failed. The earlier checkpoints are still there.
        """
        path = self.at(step)
        try:
            if step in self.steps():
                self._remove(step)
            with new_directory(path, run=self.run) as directory:
                write(directory)
                files = {file.name: _sha256(file) for file in sorted(directory.iterdir())}
                content = {"format_version": FORMAT_VERSION, "step": step, "files": files, "run": state}
                text = json.dumps({"sha256": _digest(content), "content": content}, indent=1)
                (directory / STATE_FILE).write_text(text + "\n", encoding="utf-8")
                flush_files(directory)
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
        """The newest checkpoint that can be read; newer ones that cannot are removed, with a note.

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
                continue
            for newer in broken:
                self._remove(newer)
            return checkpoint
        if broken:
            raise CheckpointError(
                f"no checkpoint in {self.path} can be read", hint="start from the beginning with --force"
            )
        return None

    def check_unused(self) -> None:
        """Raises OutputError when there are checkpoints of an earlier run."""
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

    def last(self, before: int | None = None) -> Path | None:
        """The newest checkpoint, or the newest of those before a step."""
        steps = [step for step in self.steps() if before is None or step < before]
        return self.at(steps[-1]) if steps else None

    def _remove(self, step: int) -> None:
        remove_directory(self.at(step), self.run)


def _run_of(path: Path) -> str | None:
    """The run that a checkpoint was written by, at this place; None where its marker does not say so."""
    marker = read_marker(path) or {}
    return marker.get("run") if marker.get("name") == path.name else None


def pack_checkpoint(path: Path) -> bytes:
    """A checkpoint as one piece, for a machine that cannot read it; :func:`unpack_checkpoint` is the inverse."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(path.iterdir()):
            archive.write(file, file.name)
    return packed.getvalue()


def unpack_checkpoint(packed: bytes, directory: Path) -> Checkpoint:
    """Unpacks and reads a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(directory)
    return read_checkpoint(directory)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and verifies its files.

    Raises:
        CheckpointError: A file is missing, truncated or changed.
    """
    try:
        stored = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        content = stored["content"]
        if stored["sha256"] != _digest(content):
            raise CheckpointError(f"checkpoint {path} is broken: {STATE_FILE} was changed")
        if content["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"checkpoint {path} has the unknown format {content['format_version']}")
        for name, digest in content["files"].items():
            if _sha256(path / name) != digest:
                raise CheckpointError(f"checkpoint {path} is broken: {name} was changed or truncated")
        return Checkpoint(path, content["step"], content["run"])
    except OSError as error:
        name = Path(error.filename or STATE_FILE).name
        raise CheckpointError(f"checkpoint {path} is broken: {name}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"checkpoint {path} is broken: {STATE_FILE} is not readable") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
