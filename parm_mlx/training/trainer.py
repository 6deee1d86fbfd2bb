"""The training run: from settings to an adapter directory."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from parm_mlx.errors import DataError, RunError
from parm_mlx.files import check_new, new_directory
from parm_mlx.guidance.loading import load_base
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.pblora.adapter import adapter_tensors, attach, backbone_reference, save_adapter
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.targets import default_targets
from parm_mlx.preference import sample_dirichlet
from parm_mlx.training.batches import Batch, fixed_batches, training_batches
from parm_mlx.training.checkpointing import checkpoint_blocks
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.data import load_data
from parm_mlx.training.learner import Learner
from parm_mlx.training.logprobs import ResponseScorer
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.provenance import provenance
from parm_mlx.training.report import Meter, Progress, TrainRecord, ValidRecord, as_metrics
from parm_mlx.training.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.training.validation import validate

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        out: The adapter directory.
        steps: Steps done.
        interrupted: Whether Ctrl-C ended it early.
        records: Everything that was reported, in order.
    """

    out: Path
    steps: int
    interrupted: bool
    records: tuple[TrainRecord | ValidRecord, ...]


def train(config: TrainConfig, *, force: bool = False, progress: Progress | None = None) -> TrainResult:
    """Trains a PARM and writes its adapter directory, with ``metrics.jsonl`` in it.

    All input is checked before the first step. Ctrl-C ends the run after the step in progress and saves what has been
    learned; before the first step it is a plain ``KeyboardInterrupt``.

    Args:
        config: The settings.
        force: Whether an adapter at ``config.out`` may be replaced.
        progress: Who is told about the run.

    Returns:
        How the run ended.

    Raises:
        InputError: Settings, data, model or output cannot be used; nothing has been trained.
        RunError: The loss is not finite, or the adapter cannot be written; nothing new is left at ``config.out``.
    """
    out = check_new(config.out, force)
    run = _Run(config, progress or Progress())
    with stop_on_interrupt() as stopped:
        run.loop(stopped)
        if run.done == 0:
            raise KeyboardInterrupt
        with new_directory(out, force) as directory:
            run.save(directory, out)
    return TrainResult(out, run.done, run.done < run.steps, tuple(run.records))


class _Run:
    """A run whose input is loaded and checked.

    Every use of randomness (initial adapter, order of the data, α, dropout, choice of validation pairs) has its own
    stream, so that none depends on how often another was used.
    """

    def __init__(self, config: TrainConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.done = 0
        self.records: list[TrainRecord | ValidRecord] = []
        init, order, choice, alpha, dropout = (
            np.random.default_rng(seed) for seed in np.random.SeedSequence(config.seed).spawn(5)
        )
        self.alpha_rng, self.dropout_rng = alpha, dropout

        self.data = load_data(
            config.data, objectives=config.objectives, seed=config.seed, hold_out=config.val_batches != 0
        )
        for note in self.data.notes:
            progress.note(note)
        self.k = len(self.data.objectives)
        beta = mx.array(config.betas(self.k))
        model, tokenizer = load_base(config.model)
        train, valid = self._tokenize(tokenizer, "training"), self._tokenize(tokenizer, "validation")
        self.pairs = len(train), len(valid)
        self.steps = config.steps(len(train))
        self.batches = training_batches(train, config.pairs_per_step, order)
        self.valid = fixed_batches(valid, config.batch_size, config.val_batches, choice)

        self.adapter = PBLoRAConfig(
            objectives=self.data.objectives,
            r1=config.r1,
            r2=config.r2,
            scale=config.lora_alpha / config.r2,
            dropout=config.dropout,
            target_modules=config.target_modules or default_targets(model),
            objective_betas=config.betas(self.k),
        )
        mx.random.seed(_seed(init))
        layers = attach(model, self.adapter)
        model.train()
        if config.grad_checkpoint:
            checkpoint_blocks(model)
        size = sum(tensor.size for tensor in adapter_tensors(model).values())
        progress.note(f"{self.steps} steps; {size:,} trainable numbers in {len(layers)} layers")
        if config.warmup >= self.steps:
            progress.note(f"the warm-up of {config.warmup} steps covers the whole run; see --warmup")
        optimizer = Optimizer(
            model,
            peak=config.learning_rate,
            warmup=config.warmup,
            steps=self.steps,
            weight_decay=config.weight_decay,
        )
        scorer = ResponseScorer(model, self.k)
        self.learner = Learner(scorer, beta, config.gamma, optimizer, config.grad_accumulation_steps)

    def loop(self, stopped: Callable[[], bool]) -> None:
        """Trains until the last step or until asked to stop."""
        config, meter = self.config, Meter(self.data.objectives)
        self.progress.begin(self.steps)
        try:
            self._validate(meter, stopped)
            while self.done < self.steps and not stopped():
                batch = next(self.batches)
                rate = self._step(batch, meter)
                self.progress.advance(self.done)
                last = self.done == self.steps or stopped()
                if last or self.done % config.steps_per_report == 0:
                    record = meter.record(self.done, rate)
                    self.records.append(record)
                    self.progress.report(record)
                    meter.reset()
                if last or self.done % config.steps_per_eval == 0:
                    self._validate(meter, stopped)
        finally:
            self.progress.end()

    def _step(self, batch: Batch, meter: Meter) -> float:
        draws = 1 if self.config.alpha_per == "batch" else len(batch.where)
        alpha = sample_dirichlet(self.alpha_rng, self.config.dirichlet, self.k, draws)
        mx.random.seed(_seed(self.dropout_rng))
        result = self.learner.step(self.done, batch, mx.array(alpha[0] if draws == 1 else alpha))
        if not result.finite:
            what = f"loss {result.loss:g}, gradient norm {result.grad_norm:g}"
            raise RunError(
                f"step {self.done + 1}: {what}; nothing is saved. Rows of this step: {', '.join(batch.where)}",
                hint="a lower --learning-rate, or a model in float32, usually helps",
            )
        self.done += 1
        meter.add(
            loss=result.loss,
            norm=result.grad_norm,
            sums=result.sums,
            tokens=batch.tokens,
            pairs=len(batch.where),
        )
        return result.learning_rate

    def _validate(self, meter: Meter, stopped: Callable[[], bool]) -> None:
        if not self.valid:
            return
        meter.pause()
        grid = validate(
            self.learner,
            self.valid,
            track=partial(self.progress.track, label="validating"),
            stopped=stopped,
        )
        if grid is not None:
            record = ValidRecord(self.done, self.data.objectives, grid)
            self.records.append(record)
            self.progress.validated(record)
        meter.resume()

    def _tokenize(self, tokenizer: TokenizerWrapper, split: str) -> list[TokenPair]:
        pairs = self.progress.track(self.data.train if split == "training" else self.data.valid, f"tokenizing {split}")
        kept, note = tokenize_pairs(tokenizer, pairs, self.data.objectives, self.config.max_seq_length)
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

    def save(self, directory: Path, out: Path) -> None:
        """Writes the adapter and the metrics into ``directory``, which will be renamed to ``out``."""
        config = replace(
            self.adapter,
            base_model=backbone_reference(self.config.model, out),
            training=provenance(self.config, self.data, pairs=self.pairs, steps=self.steps, done=self.done),
        )
        save_adapter(directory, config, adapter_tensors(self.learner.scorer.model))
        lines = [json.dumps(as_metrics(record)) + "\n" for record in self.records]
        (directory / METRICS_FILE).write_text("".join(lines), encoding="utf-8")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))
