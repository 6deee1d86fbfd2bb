"""The training loop, with all the state that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.dataset import load_data
from parm_mlx.data.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.distributed import Group
from parm_mlx.errors import CheckpointError, DataError, LostError, RunError
from parm_mlx.guidance.loading import load_base
from parm_mlx.machine import usable_memory, versions
from parm_mlx.mlxlm import TokenizerWrapper, embedding_rows
from parm_mlx.pblora.adapter import (
    Tensors,
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
from parm_mlx.pblora.matching import matched, trainable_numbers
from parm_mlx.pblora.targets import check_rank, default_targets, find_targets
from parm_mlx.preference import sample_dirichlet
from parm_mlx.training.batching import TrainingBatches, fixed_batches
from parm_mlx.training.checkpoint import Checkpoint, CheckpointFolder, read_checkpoint
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.footprint import Footprint
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.metrics import METRICS_FILE, History, read_metrics, write_metrics
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.provenance import files, provenance
from parm_mlx.training.report import Meter, Progress, ResumeRecord, ValidRecord
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.resume import Changed, changed_since, models_of, settings_of, version_note
from parm_mlx.training.start import Start
from parm_mlx.training.train_step import Learner
from parm_mlx.training.validation import validate

OPTIMIZER_FILE = "optimizer.safetensors"


class Trainer:
    """A run whose input is loaded and checked, and which stands at some step.

    Every use of randomness (initial adapter, order of the data, α, dropout, choice of validation pairs) has its own
    stream, so that none depends on how often another was used.

    Args:
        config: The settings.
        progress: Who is told about the run.
        folder: Where checkpoints and metrics go.
        checkpoint: Where to go on from.
        group: The processes that train together.
        anyway: Go on also where data or models are not those of the checkpoint; the records say so.

    Raises:
        InputError: Settings, data, model or checkpoint cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: Progress,
        folder: CheckpointFolder,
        checkpoint: Checkpoint | None,
        group: Group,
        anyway: bool = False,
    ) -> None:
        self.config, self.progress, self.folder, self.group = config, progress, folder, group
        self.done = 0
        self.history = History(folder.metrics if group.main else None)
        self._before: dict[str, Any] | None = None
        init, order, choice, alpha, dropout = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(config.seed).spawn(5)
        )
        self.alpha_rng, self.dropout_rng = alpha, dropout

        start = Start(config.start_from) if config.start_from and not checkpoint else None
        if start and config.objectives:
            start.check_objectives(config.objectives)
        earlier = read_config(checkpoint.path) if checkpoint else start and start.config
        self.data = load_data(
            config.data,
            objectives=config.objectives,
            first=earlier.objectives if earlier else (),
            seed=config.seed,
            hold_out=config.val_batches != 0,
            skip_bad=config.skip_bad,
        )
        for note in self.data.notes:
            progress.note(note)
        self.models = models_of(config)
        self.resumed: list[dict[str, Any]] = []
        changed = self._changed_since(checkpoint, anyway) if checkpoint else Changed()
        self.k = len(self.data.objectives)
        self.meter = Meter(self.data.objectives)
        beta = mx.array(config.betas(self.k))
        model, tokenizer = load_base(config.model)
        train, valid = (self._tokenize(tokenizer, split, embedding_rows(model)) for split in ("training", "validation"))
        self.data = replace(self.data, train=[], valid=[])  # the texts are not needed any more
        self.pairs = len(train), len(valid)
        self.steps = config.steps(len(train))
        self.batches = TrainingBatches(train, config.pairs_per_step, order)
        self.valid = fixed_batches(valid, config.batch_size, config.val_batches, choice)

        self.adapter, size = self._adapter_for(model)
        mx.random.seed(_seed(init))
        layers = attach(model, self.adapter)
        if start:
            progress.note(start.put(model, self.adapter))
        model.train()
        if config.grad_checkpoint:
            checkpoint_blocks(model)
        progress.note(f"{self.steps} steps; {size} in {len(layers)} layers")
        if config.warmup >= self.steps:
            progress.note(f"the warm-up of {config.warmup} steps covers the whole run; see --warmup")
        self.optimizer = Optimizer(
            model,
            peak=config.learning_rate,
            warmup=config.warmup,
            steps=self.steps,
            weight_decay=config.weight_decay,
        )
        scorer = ResponseScorer(model, self.k)
        self.learner = Learner(
            scorer, beta, config.gamma, self.optimizer, config.grad_accumulation_steps, group, config.smoothing
        )
        self.footprint = Footprint(scorer, config, train, -(-config.pairs_per_step // self.learner.parts))
        self.footprint.announce(progress, usable_memory())
        if checkpoint:
            self._restore(checkpoint, changed)

    def _changed_since(self, checkpoint: Checkpoint, anyway: bool) -> Changed:
        """Compares data and models with those of a checkpoint, and refuses what cannot go on."""
        changed = changed_since(checkpoint.state, self.data.files, self.models)
        if not anyway:
            changed.refuse(checkpoint.path)
        before, now = read_config(checkpoint.path).objectives, self.data.objectives
        if before != now:
            hint = "--start-from begins a new run from an adapter, and adds objectives"
            reason = f"is for {', '.join(before)}; the data now have {', '.join(now)}"
            raise CheckpointError(f"{checkpoint.path} {reason}", hint=hint)
        return changed

    def _adapter_for(self, model: nn.Module) -> tuple[PBLoRAConfig, str]:
        """The adapter to train, and what it is in words; other kinds than PBLoRA match it in trainable numbers."""
        config = self.config
        pblora = PBLoRAConfig(
            objectives=self.data.objectives,
            r1=config.r1,
            r2=config.r2,
            scale=config.lora_alpha / config.r2,
            dropout=config.dropout,
            target_modules=config.target_modules or default_targets(model),
            objective_betas=config.betas(self.k),
            chat_template=config.chat_template,
        )
        targets = find_targets(model, pblora.target_modules)
        linears = [target.linear for target in targets]
        adapter = matched(pblora, config.adapter, config.lora_alpha, linears)
        check_rank(adapter, targets)
        size = f"{config.adapter} of rank {adapter.rank}, {trainable_numbers(adapter, linears):,} trainable numbers"
        if config.adapter != "pblora":
            size += f" (pblora of rank {pblora.rank}: {trainable_numbers(pblora, linears):,})"
        return adapter, size

    @property
    def complete(self) -> bool:
        """Whether every step is done, and the validation after the last one."""
        return self.done == self.steps and not self._validation_due()

    def loop(self, stopped: Callable[[], bool]) -> None:
        """Trains until the last step or until asked to stop."""
        self.meter.resume()
        if self.group.main:
            self.folder.begin(keep=self.done > 0)
        self.history.begin()
        self.progress.begin(self.steps, self.done)
        mx.reset_peak_memory()
        try:
            self._validate(stopped)
            while self.done < self.steps and not stopped():
                rate = self._step()
                self.progress.advance(self.done)
                if self._due(self.config.steps_per_report):
                    self._report(rate)
                self._validate(stopped)
                if self._due(self.config.steps_per_save) or self.history.best_step == self.done:
                    self.save_checkpoint()
        finally:
            self.progress.end()

    def _due(self, every: int) -> bool:
        return self.done == self.steps or self.done % every == 0

    def _step(self) -> float:
        if self.group.size > 1:
            self._before = self._position()
        batch = next(self.batches)
        draws = 1 if self.config.alpha_per == "batch" else len(batch.where)
        alpha = sample_dirichlet(self.alpha_rng, self.config.dirichlet, self.k, draws)
        mx.random.seed((_seed(self.dropout_rng) + self.group.rank) % 2**32)
        result = self.learner.step(self.done, batch, mx.array(alpha[0] if draws == 1 else alpha))
        if not result.finite:
            what = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}"
            raise self._diverged(f"step {self.done + 1}: {what}. Rows of this step: {', '.join(batch.where)}")
        self.done += 1
        self._before = None
        self.meter.add(result)
        return result.learning_rate

    def _diverged(self, what: str) -> RunError:
        """Names the last checkpoint that was followed by a step without trouble."""
        last = self.folder.last(before=self.done)
        remains = f"The last good checkpoint: {last}" if last else "There is no checkpoint yet"
        advice = "a lower --learning-rate, or a model in float32, usually helps"
        return RunError(f"{what}. {remains}", hint=f"{advice}; a checkpoint is an adapter too" if last else advice)

    def _report(self, rate: float) -> None:
        record = self.meter.record(self.done, rate)
        if self.group.size > 1:
            record = replace(record, peak_memory_gb=self.group.peak_memory / 1e9)
        self.history.add(record)
        self.progress.report(record)
        self.meter.reset()

    def _validation_due(self) -> bool:
        return bool(self.valid) and self._due(self.config.steps_per_eval) and self.history.validated_at != self.done

    def _validate(self, stopped: Callable[[], bool]) -> None:
        """Validates where that is due and has not been done; when asked to stop, it is left for later."""
        if not self._validation_due():
            return
        self.meter.pause()
        grid = validate(
            self.learner,
            self.valid,
            track=partial(self.progress.track, label="validating"),
            stopped=stopped,
        )
        if grid is not None:
            record = ValidRecord(self.done, self.data.objectives, grid)
            self.history.add(record)
            self.progress.validated(record)
        self.meter.resume()

    def _tokenize(self, tokenizer: TokenizerWrapper, split: str, rows: int | None) -> list[TokenPair]:
        pairs = self.progress.track(self.data.train if split == "training" else self.data.valid, f"tokenizing {split}")
        limit, template = self.config.max_seq_length, self.config.chat_template
        kept, note = tokenize_pairs(
            tokenizer, pairs, self.data.objectives, limit, template, rows, skip_bad=self.config.skip_bad
        )
        if note:
            self.progress.note(f"{split}: {note}")
        labelled = sum((pair.preferred != UNLABELLED for pair in kept), start=np.zeros(self.k))
        if split == "training" and not labelled.all():
            bare = [name for name, count in zip(self.data.objectives, labelled, strict=True) if not count]
            raise DataError(
                f"{self.config.data}: no training pair is left for {', '.join(bare)}",
                hint=f"{note}; raise --max-seq-length" if note else "is the name spelled as in the data?",
            )
        return kept

    def save_checkpoint(self) -> Path:
        """Writes a checkpoint of where the run stands."""
        with self.group.agreed():
            return self._write_checkpoint() if self.group.main else self.folder.at(self.done)

    def rescue(self, lost: LostError) -> LostError:
        """Saves what is done when another process is gone.

        Returns:
            The error to end with.
        """
        what = f"{lost} after step {self.done}"
        if not self.group.main:
            return LostError(what)
        if self.done == 0:
            return LostError(what, hint="nothing was learned yet; give the same command again")
        hint = "the same command with --resume goes on from there, with any number of processes"
        return LostError(f"{what}; checkpoint: {self._write_checkpoint()}", hint=hint)

    def facts(self) -> dict[str, Any]:
        """What has to be the same in every process, as plain values."""
        settings = {name: value for name, value in settings_of(self.config).items() if name != "model"}
        shapes = {name: tensor.shape for name, tensor in adapter_tensors(self.learner.scorer.model).items()}
        lengths = [len(pair) for pair in self.batches.pairs]
        packages = {name: version for name, version in versions().items() if name not in ("python", "platform")}
        models = [shapes, lengths, self.models]
        return {"settings": settings, "data": files(self.data), "models": models, "packages": packages}

    def _position(self) -> dict[str, Any]:
        """Where the random streams stand, as plain values."""
        return {
            "order": self.batches.order.state(),
            "alpha_rng": self.alpha_rng.bit_generator.state,
            "dropout_rng": self.dropout_rng.bit_generator.state,
        }

    def _write_checkpoint(self) -> Path:
        tensors = adapter_tensors(self.learner.scorer.model)
        if not all(mx.isfinite(tensor).all().item() for tensor in tensors.values()):
            raise self._diverged(f"step {self.done}: the adapter holds numbers that are not finite")
        state = {
            "steps": self.steps,
            **(self._before or self._position()),
            "meter": self.meter.state(),
            "settings": settings_of(self.config),
            "data": files(self.data),
            "models": self.models,
            "resumed_with_changes": self.resumed,
            "versions": versions(),
        }

        def write(directory: Path) -> None:
            self.write_adapter(directory, self.folder.at(self.done), self.done, tensors)
            mx.save_safetensors(str(directory / OPTIMIZER_FILE), self.optimizer.tensors())

        return self.folder.save(self.done, state, write, self.history.best_step)

    def _restore(self, checkpoint: Checkpoint, changed: Changed) -> None:
        """Goes on from a checkpoint; with other data, their order begins again."""
        state, path = checkpoint.state, checkpoint.path
        tensors, model = read_adapter(path)[1], self.learner.scorer.model
        fits = _shapes(tensors) == _shapes(adapter_tensors(model))
        if not fits or checkpoint.step > self.steps:
            reason = f"only {self.steps} steps are planned now" if fits else "its adapter does not fit the model"
            hint = "start from the beginning with --force"
            raise CheckpointError(f"{path} cannot go on with what has changed: {reason}", hint=hint)
        set_adapter_tensors(model, tensors)
        self.optimizer.restore(read_safetensors(path / OPTIMIZER_FILE))
        if not changed.data:
            self.batches.order.restore(state["order"])
        self.alpha_rng.bit_generator.state = state["alpha_rng"]
        self.dropout_rng.bit_generator.state = state["dropout_rng"]
        self.meter.restore(state["meter"])
        self.history.records = read_metrics(path / METRICS_FILE)
        self.done = checkpoint.step
        self.resumed = list(state.get("resumed_with_changes", []))
        self._record(changed)
        self.progress.note(f"going on after step {self.done} from {path}")
        if note := version_note(state["versions"], versions()):
            self.progress.note(note)

    def _record(self, changed: Changed) -> None:
        """Says that the run goes on with other data or models: to the user, in the metrics and in the adapter."""
        if not (found := changed.named):
            return
        self.progress.warn(f"going on with other data or models than before: {', '.join(found)}")
        self.resumed.append({"step": self.done, "changed": {name: list(digests) for name, digests in found.items()}})
        self.history.records.append(ResumeRecord(self.done, tuple(found)))

    def result(self) -> tuple[int, Tensors]:
        """The adapter that was asked for, and the step it is from."""
        best = self.history.best_step
        if self.config.save == "best" and best is not None and best != self.done:
            return best, read_adapter(read_checkpoint(self.folder.at(best)).path)[1]
        return self.done, adapter_tensors(self.learner.scorer.model)

    def write_adapter(self, directory: Path, final: Path, step: int, tensors: Tensors) -> None:
        """Writes the adapter of a step, and the metrics, into ``directory``, which will be renamed to ``final``."""
        config = replace(
            self.adapter,
            base_model=backbone_reference(self.config.model, final),
            training=provenance(
                self.config,
                self.data,
                models=self.models,
                resumed=self.resumed,
                pairs=self.pairs,
                steps=self.steps,
                done=step,
            ),
        )
        save_adapter(directory, config, tensors)
        write_metrics(directory / METRICS_FILE, self.history.records)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))
