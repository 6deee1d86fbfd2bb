"""The training loop, with all the state that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from parm_mlx.distributed import Group
from parm_mlx.errors import AdapterError, CheckpointError, LostError, RunError
from parm_mlx.files import resolve
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import no_template
from parm_mlx.machine import usable_memory, versions
from parm_mlx.mlxlm import embedding_rows, wired_limit
from parm_mlx.pblora.adapter import (
    Tensors,
    adapted_layers,
    adapter_tensors,
    attach,
    backbone_reference,
    read_adapter,
    read_config,
    read_safetensors,
    save_adapter,
    set_adapter_tensors,
)
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.transform import extend_objectives, with_fresh_rows
from parm_mlx.training import memory
from parm_mlx.training.alphas import draw_alpha
from parm_mlx.training.batching import TrainingBatches, fixed_batches
from parm_mlx.training.checkpoint import (
    AGAIN,
    Changes,
    Checkpoint,
    CheckpointFolder,
    changes_since,
    models_of,
    read_checkpoint,
    refuse_changes,
    settings_of,
)
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.inputs import adapter_for, data_files, load_pairs, tokenize_split
from parm_mlx.training.judge import CornerRecord, Judge, held_out_questions
from parm_mlx.training.logging import (
    METRICS_FILE,
    Meter,
    MetricsLog,
    ResumeRecord,
    ValidRecord,
    read_metrics,
    write_metrics,
)
from parm_mlx.training.optimizer import Optimizer, auto_learning_rate
from parm_mlx.training.progress import Progress
from parm_mlx.training.response_logprobs import ResponseScorer, corner_distance
from parm_mlx.training.strength import PAIRS
from parm_mlx.training.train_step import TrainStep, validate

OPTIMIZER_FILE = "optimizer.safetensors"
FEW_STEPS = 100
PROBED = 2  # validation batches that the distance of the corners is measured on
CACHE_SHARE = 8  # MLX may keep an eighth of the usable memory in freed buffers


class Trainer:
    """State of a training run: model, data, optimizer and step, loaded and checked.

    ``steps`` are planned, ``done`` are done. With ``anyway``, data and models may differ from those of the checkpoint.

    Raises:
        InputError: Settings, data, model or checkpoint cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        group: Group,
        progress: Progress,
        folder: CheckpointFolder,
        checkpoint: Checkpoint | None,
        anyway: bool,
    ) -> None:
        self.config, self.group, self.progress, self.folder = config, group, progress, folder
        # Each use of randomness has a stream of its own, so that none depends on how often another was used.
        streams = map(np.random.default_rng, np.random.SeedSequence(config.seed).spawn(5))
        init, order, choice, self.alpha_rng, self.dropout_rng = streams
        start = read_adapter(resolve(config.start_from, "adapter")) if config.start_from and not checkpoint else None
        earlier = read_config(checkpoint.path) if checkpoint else start and start[0]
        data = load_pairs(config, earlier, progress)
        self.objectives, self.data = data.objectives, data_files(data)
        self.models = models_of(config)
        self.added = len(self.objectives) - start[0].k if start else 0
        changed: tuple[Changes, ...] = ({}, {})
        if checkpoint:
            self.added = checkpoint.state.get("added", 0)
            changed = changes_since(checkpoint.state, self.data, self.models)
            if not anyway:
                refuse_changes(checkpoint.path, *changed)
            if earlier and earlier.objectives != data.objectives:
                before, now = ", ".join(earlier.objectives), ", ".join(data.objectives)
                hint = "--start-from begins a new run from an adapter, and adds objectives"
                raise CheckpointError(f"{checkpoint.path} is for {before}; the data now have {now}", hint=hint)
        beta = mx.array(config.betas(len(data.objectives)))

        progress.note(memory.announce(config))
        self.model, tokenizer = load_base(config.model)
        if config.chat_template is None and not tokenizer.has_chat_template:
            progress.note(no_template("model's tokenizer has"))
        rows = embedding_rows(self.model)
        train = tokenize_split(config, data, "training", tokenizer, rows, progress)
        valid = tokenize_split(config, data, "validation", tokenizer, rows, progress)
        questions = held_out_questions(data)
        del data  # the texts are not needed any more
        self.pairs = len(train), len(valid)
        self.batches = TrainingBatches(train, config.pairs_per_step, order)
        self.valid = fixed_batches(valid, config.batch_size, config.val_batches, choice)
        self.held_out = valid[:PAIRS]
        self._probe = (self.valid or fixed_batches(train, config.batch_size, PROBED, choice))[:PROBED]
        self.steps = config.steps(len(train))
        if config.warmup >= self.steps:
            progress.note(f"the warm-up of {config.warmup} steps covers the whole run; see --warmup")

        self.adapter, size = adapter_for(config, self.model, self.objectives)
        mx.random.seed(int(init.integers(2**32)))
        layers = attach(self.model, self.adapter)
        self.model.train()
        if config.grad_checkpoint:
            checkpoint_blocks(self.model)
        progress.note(f"{self.steps} steps; {size} in {len(layers)} layers")
        self.judge = Judge(config.reward, self.model, self.adapter, tokenizer, questions) if config.reward else None
        width = min(layer.a.shape[-1] for layer in adapted_layers(self.model).values())
        self.learning_rate = config.learning_rate or auto_learning_rate(width)
        if config.learning_rate is None:
            progress.note(f"learning rate {self.learning_rate:g}, for a hidden size of {width}")
        if self.steps < FEW_STEPS:
            progress.warn(f"{self.steps} steps are few: alpha rarely moves an adapter with fewer than {FEW_STEPS}")
        optimizer = Optimizer(
            self.model,
            peak=self.learning_rate,
            warmup=config.warmup,
            steps=self.steps,
            weight_decay=config.weight_decay,
            w2_peak=config.w2_learning_rate,
            added=self.added,
        )
        scorer, micro_batches = ResponseScorer(self.model, len(self.objectives)), config.grad_accumulation_steps
        self.train_step = TrainStep(
            scorer, beta, config.gamma, optimizer, micro_batches, group, config.smoothing, config.nll_weight
        )
        self.log = MetricsLog(folder.metrics if group.main else None)
        self.meter, self.done = Meter(self.objectives), 0
        self._resumed: list[dict[str, Any]] = []  # after which steps data or models had changed, and what of them
        self._before_step: dict[str, Any] | None = None
        if start:
            self._start_from(*start)
        if checkpoint:
            self._restore(checkpoint, *changed)
        memory.check_largest_batch(self.train_step, train, config.pairs_per_step, progress)

    @property
    def complete(self) -> bool:
        """True once every step is done, and validation and judgement after the last one."""
        return self.done == self.steps and not (self._validation_due() or self._judging_due())

    def loop(self, stopped: Callable[[], bool]) -> None:
        """Trains until the last step or until asked to stop."""
        if self.group.main and self.done == 0:
            self.folder.clear()
        self.log.begin(self.config)
        self.progress.begin(self.steps, self.done)
        self.meter.skip()
        cache_limit = usable_memory() // CACHE_SHARE
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
                    if mx.get_cache_memory() > cache_limit:  # batches differ in shape: freed buffers pile up
                        mx.clear_cache()
        finally:
            self.progress.end()

    def _step(self) -> float:
        """Does the next step and returns its learning rate."""
        if self.group.size > 1:
            self._before_step = self._position()
        batch = next(self.batches)
        alpha = draw_alpha(self.config, self.alpha_rng, batch, len(self.objectives))
        mx.random.seed((int(self.dropout_rng.integers(2**32)) + self.group.rank) % 2**32)
        result = self.train_step(self.done, batch, mx.array(alpha))
        if not np.isfinite([result.loss, result.grad_norm]).all():
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
        return (
            bool(self.valid) and self._due(self.config.steps_per_eval) and self.log.last_step(ValidRecord) != self.done
        )

    def _judging_due(self) -> bool:
        return (
            bool(self.judge) and self._due(self.config.steps_per_eval) and self.log.last_step(CornerRecord) != self.done
        )

    def _validate(self, stopped: Callable[[], bool]) -> None:
        """Validates and judges if that is due; when asked to stop, it is left for later."""
        if not (self._validation_due() or self._judging_due()):
            return
        self.meter.lap()
        if self._validation_due():
            self._validate_pairs(stopped)
        if self.judge and self._judging_due() and not stopped():
            judged = self.judge(self.done)
            self.log.add(judged)
            self.progress.judged(judged)
        self.meter.skip()

    def _validate_pairs(self, stopped: Callable[[], bool]) -> None:
        track = partial(self.progress.track, label="validating")
        grid = validate(self.train_step, self.valid, self.objectives, track, stopped)
        if grid is not None:
            record = ValidRecord(self.done, sum(point.loss for point in grid) / len(grid), tuple(grid))
            self.log.add(record)
            self.progress.validated(record)

    def _diverged(self, problem: str) -> RunError:
        """The error that names the last checkpoint that was followed by a good step."""
        last = self.folder.last(before=self.done)
        remains = f"The last good checkpoint: {last}" if last else "There is no checkpoint yet"
        advice = "a lower --learning-rate, or a model in float32, usually helps"
        return RunError(f"{problem}. {remains}", hint=f"{advice}; a checkpoint is an adapter too" if last else advice)

    def save_checkpoint(self) -> Path:
        """Writes a checkpoint of where the run stands."""
        with self.group.agreed():
            return self._write_checkpoint() if self.group.main else self.folder.at(self.done)

    def rescue(self, lost: LostError) -> LostError:
        """Saves the steps done when another process is gone, and returns the error to end with."""
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
            "order": {"batches": self.batches.done},
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
            "added": self.added,
            "meter": self.meter.state(),
            "settings": settings_of(self.config),
            "data": self.data,
            "models": self.models,
            "resumed_with_changes": self._resumed,
            "versions": versions(),
        }

        def write(directory: Path) -> None:
            self.write_adapter(directory, self.folder.at(self.done), self.done, tensors)
            mx.save_safetensors(str(directory / OPTIMIZER_FILE), self.train_step.optimizer.tensors())

        return self.folder.save(self.done, state, write, self.log.best_step)

    def _start_from(self, own: PBLoRAConfig, tensors: Tensors) -> None:
        """Begins from the adapter of ``--start-from``, with new objectives added to it.

        Raises:
            AdapterError: It is of another kind, rank, scale or chat template, or on other layers.
        """
        misfit, new = f"adapter {self.config.start_from} does not fit this run: ", self.adapter.objectives[own.k :]
        own, tensors = extend_objectives(own, tensors, new)
        pairs = {n: (getattr(own, n), getattr(self.adapter, n)) for n in ("kind", "r1", "r2", "scale", "chat_template")}
        if different := [f"{name} is {before}, not {now}" for name, (before, now) in pairs.items() if before != now]:
            hint = "--adapter, --r1, --r2, --lora-alpha (scale times r2, or rank), --chat-template must be those it has"
            raise AdapterError(misfit + "; ".join(different), hint=hint)
        has, needs = _shapes(tensors), _shapes(fresh := adapter_tensors(self.model))
        for name in sorted({*has, *needs}):
            if has.get(name) != needs.get(name):
                reason = f"{name} is {has.get(name, 'missing')} in the adapter, {needs.get(name, 'missing')} in the run"
                raise AdapterError(misfit + reason, hint="see --target-modules; or is it for another backbone?")
        tensors = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
        set_adapter_tensors(self.model, with_fresh_rows(tensors, fresh, len(new)))
        added = f", with {', '.join(new)} added" if new else ""
        self.progress.note(f"training begins from {self.config.start_from}{added}")

    def _restore(self, checkpoint: Checkpoint, data: Changes, models: Changes) -> None:
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
            self.batches.skip_to(state["order"]["batches"])
        self.alpha_rng.bit_generator.state = state["alpha_rng"]
        self.dropout_rng.bit_generator.state = state["dropout_rng"]
        self.meter.restore(state["meter"])
        self.log.records = read_metrics(path / METRICS_FILE)
        self.done = checkpoint.step
        self._resumed = list(state["resumed_with_changes"])
        if changed := data | models:
            self.progress.warn(f"going on with other data or models than before: {', '.join(changed)}")
            self._resumed.append({"step": self.done, "changed": {name: list(both) for name, both in changed.items()}})
            self.log.records.append(ResumeRecord(self.done, tuple(changed)))
        self.progress.note(f"going on after step {self.done} from {path}")
        before, now = state["versions"], versions()
        if other := [f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]]:
            self.progress.note(f"versions have changed, so the last bits may differ: {', '.join(other)}")

    def distance(self) -> float | None:
        """How far apart the corners are that training has reached; None with one objective."""
        return corner_distance(self.train_step.scorer, self._probe, len(self.objectives))

    def result(self) -> tuple[int, Tensors]:
        """Returns the adapter that ``save`` asks for, and the step it is from."""
        best = self.log.best_step
        if self.config.save == "best" and best is not None and best != self.done:
            return best, read_adapter(read_checkpoint(self.folder.at(best)).path)[1]
        return self.done, adapter_tensors(self.model)

    def write_adapter(
        self, directory: Path, final: Path, step: int, tensors: Tensors, beta: float | None = None
    ) -> None:
        """Writes the adapter of a step with its origin, and the metrics, into a directory that ``final`` will be."""
        training = {
            "model": self.config.model,
            "settings": {k: v for k, v in asdict(self.config).items() if k not in ("model", "data", "out")},
            "data": self.data,
            "models": self.models,
            **({"resumed_with_changes": self._resumed} if self._resumed else {}),
            "train_pairs": self.pairs[0],
            "valid_pairs": self.pairs[1],
            "steps": self.steps,
            "steps_done": step,
            "peak_learning_rate": self.learning_rate,
            "versions": versions(),
        }
        base_model = backbone_reference(self.config.model, final)
        save_adapter(directory, replace(self.adapter, base_model=base_model, training=training, beta=beta), tensors)
        write_metrics(directory / METRICS_FILE, self.log.records)

    def facts(self) -> dict[str, Any]:
        """Returns plain values that must be the same in every process."""
        lengths = [len(pair) for pair in self.batches.pairs]
        packages = {name: version for name, version in versions().items() if name not in ("python", "platform")}
        return {
            "settings": settings_of(self.config),
            "data": self.data,
            "models": [_shapes(adapter_tensors(self.model)), lengths, self.models],
            "packages": packages,
        }


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}
