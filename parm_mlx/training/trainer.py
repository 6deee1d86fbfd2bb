"""The training loop, with all the state that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.dataset import PreferenceData
from parm_mlx.distributed import Group
from parm_mlx.errors import AdapterError, CheckpointError, LostError, RunError
from parm_mlx.machine import versions
from parm_mlx.mlxlm import wired_limit
from parm_mlx.pblora.adapter import (
    Tensors,
    adapter_tensors,
    backbone_reference,
    read_adapter,
    read_safetensors,
    save_adapter,
    set_adapter_tensors,
)
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.transform import extend_objectives
from parm_mlx.preference import sample_dirichlet
from parm_mlx.training.batching import Batch, TrainingBatches
from parm_mlx.training.checkpoint import (
    AGAIN,
    Changes,
    Checkpoint,
    CheckpointFolder,
    read_checkpoint,
    settings_of,
    version_note,
)
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.logging import (
    METRICS_FILE,
    Meter,
    MetricsLog,
    ResumeRecord,
    ValidRecord,
    read_metrics,
    write_metrics,
)
from parm_mlx.training.progress import Progress
from parm_mlx.training.train_step import TrainStep
from parm_mlx.training.validation import validate

OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass
class Trainer:
    """A run whose input is loaded and checked, and the step it stands at.

    Every use of randomness (initial adapter, order of the data, α, dropout, choice of validation pairs) has a stream of
    its own, so that none depends on how often another was used.

    Attributes:
        models: The fingerprints of the models.
        train_step: The model, the objective and the optimizer.
        pairs: Number of training and of validation pairs.
        steps: Steps planned.
        done: Steps done.
        resumed: The steps after which the run went on with other data or models, and what had changed.
    """

    config: TrainConfig
    group: Group
    progress: Progress
    folder: CheckpointFolder
    data: PreferenceData
    models: dict[str, str]
    adapter: PBLoRAConfig
    train_step: TrainStep
    batches: TrainingBatches
    valid: list[Batch]
    pairs: tuple[int, int]
    steps: int
    alpha_rng: np.random.Generator
    dropout_rng: np.random.Generator
    done: int = 0
    resumed: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.folder.metrics if self.group.main else None)
        self.meter = Meter(self.data.objectives)
        self._before_step: dict[str, Any] | None = None

    @property
    def model(self) -> nn.Module:
        """The backbone with its adapters."""
        return self.train_step.scorer.model

    @property
    def complete(self) -> bool:
        """True once every step is done, and the validation after the last one."""
        return self.done == self.steps and not self._validation_due()

    def loop(self, stopped: Callable[[], bool]) -> None:
        """Trains until the last step or until asked to stop."""
        if self.group.main and self.done == 0:
            self.folder.clear()
        self.log.begin(self.config)
        self.progress.begin(self.steps, self.done)
        self.meter.skip()
        try:
            with wired_limit(self.model):
                self._validate(stopped)
                while self.done < self.steps and not stopped():
                    rate = self._step()
                    self.progress.advance(self.done)
                    if self._due(self.config.steps_per_report):
                        self._report(rate)
                    self._validate(stopped)
                    if self._due(self.config.steps_per_save) or self.log.best_step == self.done:
                        self.save_checkpoint()
                    mx.clear_cache()  # batches differ in shape: the buffers of one seldom serve the next
        finally:
            self.progress.end()

    def _step(self) -> float:
        """Does the next step and returns its learning rate."""
        if self.group.size > 1:
            self._before_step = self._position()
        batch = next(self.batches)
        draws = 1 if self.config.alpha_per == "batch" else len(batch.pairs)
        alpha = sample_dirichlet(self.alpha_rng, self.config.dirichlet, len(self.data.objectives), draws)
        mx.random.seed((draw_seed(self.dropout_rng) + self.group.rank) % 2**32)
        result = self.train_step(self.done, batch, mx.array(alpha[0] if draws == 1 else alpha))
        if not result.finite:
            numbers = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}"
            raise self._diverged(f"step {self.done + 1}: {numbers}. Rows of this step: {', '.join(batch.where)}")
        self.done += 1
        self._before_step = None
        self.meter.add(result)
        return result.learning_rate

    def _due(self, every: int) -> bool:
        return self.done == self.steps or self.done % every == 0

    def _report(self, rate: float) -> None:
        record = self.meter.record(self.done, rate)
        if self.group.size > 1:
            record = replace(record, peak_memory_gb=self.group.peak_memory / 1e9)
        self.log.add(record)
        self.progress.report(record)
        self.meter.reset()

    def _validation_due(self) -> bool:
        return bool(self.valid) and self._due(self.config.steps_per_eval) and self.log.validated_at != self.done

    def _validate(self, stopped: Callable[[], bool]) -> None:
        """Validates where that is due and has not been done; when asked to stop, it is left for later."""
        if not self._validation_due():
            return
        self.meter.lap()
        track = partial(self.progress.track, label="validating")
        grid = validate(self.train_step, self.valid, self.data.objectives, track, stopped)
        if grid is not None:
            record = ValidRecord(self.done, sum(point.loss for point in grid) / len(grid), tuple(grid))
            self.log.add(record)
            self.progress.validated(record)
        self.meter.skip()

    def _diverged(self, problem: str) -> RunError:
        """Names the last checkpoint that was followed by a step without trouble."""
        last = self.folder.last(before=self.done)
        remains = f"The last good checkpoint: {last}" if last else "There is no checkpoint yet"
        advice = "a lower --learning-rate, or a model in float32, usually helps"
        return RunError(f"{problem}. {remains}", hint=f"{advice}; a checkpoint is an adapter too" if last else advice)

    def save_checkpoint(self) -> Path:
        """Writes a checkpoint of where the run stands."""
        with self.group.agreed():
            return self._write_checkpoint() if self.group.main else self.folder.at(self.done)

    def rescue(self, lost: LostError) -> LostError:
        """Saves the steps that are done when another process is gone, and returns the error to end with."""
        problem = f"{lost} after step {self.done}"
        if not self.group.main:
            return LostError(problem)
        if self.done == 0:
            return LostError(problem, hint="nothing was learned yet; give the same command again")
        hint = "the same command with --resume goes on from there, with any number of processes"
        return LostError(f"{problem}; checkpoint: {self._write_checkpoint()}", hint=hint)

    def _position(self) -> dict[str, Any]:
        """The positions of the random streams, as plain values."""
        return {
            "order": self.batches.order.state(),
            "alpha_rng": self.alpha_rng.bit_generator.state,
            "dropout_rng": self.dropout_rng.bit_generator.state,
        }

    def _write_checkpoint(self) -> Path:
        tensors = adapter_tensors(self.model)
        if not all(mx.isfinite(tensor).all().item() for tensor in tensors.values()):
            raise self._diverged(f"step {self.done}: the adapter holds numbers that are not finite")
        state = {
            "steps": self.steps,
            **(self._before_step or self._position()),
            "meter": self.meter.state(),
            "settings": settings_of(self.config),
            "data": data_files(self.data),
            "models": self.models,
            "resumed_with_changes": self.resumed,
            "versions": versions(),
        }

        def write(directory: Path) -> None:
            self.write_adapter(directory, self.folder.at(self.done), self.done, tensors)
            mx.save_safetensors(str(directory / OPTIMIZER_FILE), self.train_step.optimizer.tensors())

        return self.folder.save(self.done, state, write, self.log.best_step)

    def start_from(self, own: PBLoRAConfig, tensors: Tensors) -> None:
        """Begins from the adapter of ``--start-from``, with new objectives added to it.

        Raises:
            AdapterError: It is of another kind, rank or scale, or on other layers.
        """
        source = self.config.start_from
        misfit = f"adapter {source} does not fit this run: "
        new = self.adapter.objectives[own.k :]
        own, tensors = extend_objectives(own, tensors, new)
        both = {name: (getattr(own, name), getattr(self.adapter, name)) for name in ("kind", "r1", "r2", "scale")}
        if different := [f"{name} is {before}, not {now}" for name, (before, now) in both.items() if before != now]:
            hint = "--adapter, --r1, --r2, and --lora-alpha (scale times r2, or times the rank) must be those it has"
            raise AdapterError(misfit + "; ".join(different), hint=hint)
        fresh = adapter_tensors(self.model)
        layers, own_layers = ({name.rpartition(".")[0] for name in names} for names in (fresh, tensors))
        if unequal := sorted(layers ^ own_layers):
            more = f" and {len(unequal) - 1} other layers" if len(unequal) > 1 else ""
            one, other = ("the adapter", "the run") if unequal[0] in own_layers else ("the run", "the adapter")
            raise AdapterError(f"{misfit}{one} has {unequal[0]}{more}, {other} has not", hint="see --target-modules")
        for name, tensor in tensors.items():
            if tensor.shape != fresh[name].shape:
                reason = f"{name} has shape {tensor.shape}, not {fresh[name].shape}"
                raise AdapterError(misfit + reason, hint="is the adapter of another backbone?")
        set_adapter_tensors(self.model, {name: tensor.astype(mx.float32) for name, tensor in tensors.items()})
        self.progress.note(f"training begins from {source}" + (f", with {', '.join(new)} added" if new else ""))

    def restore(self, checkpoint: Checkpoint, data: Changes, models: Changes) -> None:
        """Goes on from a checkpoint, and records changes of data and models; other data begin their order again."""
        state, path = checkpoint.state, checkpoint.path
        tensors = read_adapter(path)[1]
        fits = _shapes(tensors) == _shapes(adapter_tensors(self.model))
        if not fits or checkpoint.step > self.steps:
            reason = f"only {self.steps} steps are planned now" if fits else "its adapter does not fit the model"
            raise CheckpointError(f"{path} cannot go on with what has changed: {reason}", hint=AGAIN)
        set_adapter_tensors(self.model, tensors)
        self.train_step.optimizer.restore(read_safetensors(path / OPTIMIZER_FILE))
        if not data:
            self.batches.order.restore(state["order"])
        self.alpha_rng.bit_generator.state = state["alpha_rng"]
        self.dropout_rng.bit_generator.state = state["dropout_rng"]
        self.meter.restore(state["meter"])
        self.log.records = read_metrics(path / METRICS_FILE)
        self.done = checkpoint.step
        self.resumed = list(state["resumed_with_changes"])
        if changed := data | models:
            self.progress.warn(f"going on with other data or models than before: {', '.join(changed)}")
            self.resumed.append({"step": self.done, "changed": {name: list(both) for name, both in changed.items()}})
            self.log.records.append(ResumeRecord(self.done, tuple(changed)))
        self.progress.note(f"going on after step {self.done} from {path}")
        if note := version_note(state["versions"], versions()):
            self.progress.note(note)

    def result(self) -> tuple[int, Tensors]:
        """The adapter that was asked for, and the step it is from."""
        best = self.log.best_step
        if self.config.save == "best" and best is not None and best != self.done:
            return best, read_adapter(read_checkpoint(self.folder.at(best)).path)[1]
        return self.done, adapter_tensors(self.model)

    def write_adapter(self, directory: Path, final: Path, step: int, tensors: Tensors) -> None:
        """Writes the adapter of a step with its origin, and the metrics, into a directory that ``final`` will be."""
        elsewhere = ("model", "data", "out")
        training = {
            "settings": {name: value for name, value in self.config.to_dict().items() if name not in elsewhere},
            "data": data_files(self.data),
            "models": self.models,
            **({"resumed_with_changes": self.resumed} if self.resumed else {}),
            "train_pairs": self.pairs[0],
            "valid_pairs": self.pairs[1],
            "steps": self.steps,
            "steps_done": step,
            "versions": versions(),
        }
        base_model = backbone_reference(self.config.model, final)
        save_adapter(directory, replace(self.adapter, base_model=base_model, training=training), tensors)
        write_metrics(directory / METRICS_FILE, self.log.records)

    def facts(self) -> dict[str, Any]:
        """Plain values that must be the same in every process."""
        lengths = [len(pair) for pair in self.batches.pairs]
        packages = {name: version for name, version in versions().items() if name not in ("python", "platform")}
        return {
            "settings": settings_of(self.config),
            "data": data_files(self.data),
            "models": [_shapes(adapter_tensors(self.model)), lengths, self.models],
            "packages": packages,
        }


def data_files(data: PreferenceData) -> list[dict[str, Any]]:
    """The files that were read with the SHA-256 of their bytes, hub data sets with revision and fingerprint."""
    return [{"file": file.name, **file.identity, "pairs": file.pairs} for file in data.files]


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for MLX's random numbers."""
    return int(rng.integers(2**32))


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
