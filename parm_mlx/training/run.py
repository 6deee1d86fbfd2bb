"""A training run: from settings to an adapter directory, however it ends."""

import signal
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from parm_mlx.data.dataset import PreferenceData, load_data
from parm_mlx.data.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.distributed import Group, join
from parm_mlx.errors import CheckpointError, ConfigError, DataError, LostError, OutputError
from parm_mlx.files import expanded, flush, resolve
from parm_mlx.guidance.loading import load_base
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.machine import keep_freed_memory
from parm_mlx.mlxlm import TokenizerWrapper, embedding_rows
from parm_mlx.outputs import check_apart, check_new, new_directory, update
from parm_mlx.pblora.adapter import attach, read_adapter, read_config
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.targets import check_rank, default_targets, find_targets
from parm_mlx.pblora.transform import matched, trainable_numbers
from parm_mlx.training import memory
from parm_mlx.training.batching import TrainingBatches, fixed_batches
from parm_mlx.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    changes_since,
    check_settings,
    finished_training,
    models_of,
    pack_checkpoint,
    refuse_changes,
    unpack_checkpoint,
)
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.curves import add_picture
from parm_mlx.training.grad_checkpoint import checkpoint_blocks
from parm_mlx.training.logging import METRICS_FILE, MetricsLog, Record, as_metrics, check_trackers, read_metrics
from parm_mlx.training.optimizer import Optimizer
from parm_mlx.training.progress import Progress
from parm_mlx.training.response_logprobs import ResponseScorer
from parm_mlx.training.train_step import TrainStep
from parm_mlx.training.trainer import Trainer, data_files, draw_seed


@dataclass(frozen=True)
class TrainResult:
    """The end of a run.

    Attributes:
        out: The adapter directory; when a signal ended the run, its last checkpoint, which is one too.
        steps: Steps done.
        signal: The signal that ended the run early: SIGINT, SIGTERM or none.
        records: Everything that was reported, in order.
        rank: Rank of this process among those that trained together; only process 0 has written ``out``.
    """

    out: Path
    steps: int
    signal: int | None
    records: tuple[Record, ...]
    rank: int = 0

    @property
    def interrupted(self) -> bool:
        """True where the run has steps left."""
        return self.signal is not None

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The last report (``"train"``) and the last validation (``"valid"``), as ``metrics.jsonl`` holds them."""
        return {line["kind"]: line for line in map(as_metrics, self.records)}


def train(
    config: TrainConfig | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    resume_anyway: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains a PARM and writes its adapter directory, with ``metrics.jsonl`` and the curves as a picture in it.

    All input is checked before the first step. Checkpoints and the growing ``metrics.jsonl`` lie in
    ``OUT.checkpoints``, which goes when the run is done, all but the best checkpoint if that is not the result. A run
    that ended early, however it did, goes on from its newest checkpoint with ``resume`` and gives the same adapter, bit
    for bit (on a CPU). Ctrl-C and SIGTERM end it after the step in progress and save a checkpoint; before the first
    step that is a plain ``KeyboardInterrupt``.

    Under ``mlx.launch``, the processes share every batch out among them; the first one alone writes and reports. When
    one is lost, the others end, and the first one saves a checkpoint.

    Example:
        >>> result = parm_mlx.train(model="llama", data="pairs.jsonl", out="my-parm", iters=200)
        >>> result.metrics["valid"]["loss"]

    Args:
        config: The settings, or none if they are given by name.
        force: Whether an adapter at ``out`` may be replaced, and checkpoints of an earlier run be dropped.
        resume: Go on from the newest checkpoint; without any, start from the beginning.
        resume_anyway: The same, also where data or models are not those that the run began with; the records say so.
        progress: The listener; without one, nothing is shown.
        **settings: The fields of :class:`parm_mlx.training.config.TrainConfig`: ``model``, ``data``, ``out``, …

    Returns:
        The directory of the adapter and the metrics.

    Raises:
        InputError: Settings, data, model, checkpoints or output cannot be used; nothing has been trained.
        RunError: The loss is not finite, or something cannot be written; the checkpoints stay.
        LostError: Another process is gone; the last checkpoint is named.
        QuietError: The main process reports the error.
    """
    if config is not None and settings:
        raise ConfigError(f"a config and settings by name are both given: {', '.join(settings)}")
    config = config or TrainConfig(**settings)
    keep_freed_memory()
    group = join()
    if progress is None or not group.main:
        progress = Progress()
    out = expanded(config.out)
    folder = CheckpointFolder(out, config.keep_checkpoints)
    with group.reported_once(), ExitStack() as held:
        with group.agreed():
            begun = None
            if group.main:
                check_trackers(config.report_to or ())
                begun = _begin(config, folder, force, resume or resume_anyway, progress, held)
        begun = _broadcast(begun, out, group, held)
        if isinstance(begun, TrainResult):
            return begun
        with group.agreed():
            trainer = prepare(config, group, progress, folder, begun, resume_anyway)
        group.check_same(trainer.facts())
        with stop_on_interrupt(signal.SIGINT, signal.SIGTERM) as stop:
            stopped = group.watch(stop)
            try:
                trainer.loop(stopped)
                if not trainer.complete:
                    return _interrupted(trainer, stopped.signal)
                with group.agreed():
                    if group.main:
                        _finish(trainer, out, force)
            except LostError as lost:
                raise trainer.rescue(lost) from lost
    return TrainResult(out, trainer.done, None, tuple(trainer.log.records), group.rank)


def _begin(
    config: TrainConfig, folder: CheckpointFolder, force: bool, resume: bool, progress: Progress, held: ExitStack
) -> TrainResult | Checkpoint | None:
    """Checks and holds the output; returns the checkpoint to go on from, or the result if nothing is left to do."""
    out, reads = expanded(config.out), _reads(config)
    if not resume:
        check_new(out, force, reads)
    check_apart(folder.path, reads)
    held.enter_context(folder.locked())
    if not resume:
        check_new(out, force, reads)
        if not force:
            folder.check_unused()
        return None
    checkpoint = folder.newest(progress.note)
    if result := _finished(config, out, folder, checkpoint, progress):
        return result
    check_new(out, force, reads)
    if checkpoint:
        check_settings(checkpoint.state["settings"], config, checkpoint.path)
    else:
        progress.note(f"no checkpoint in {folder.path}: starting from the beginning")
    return checkpoint


def _reads(config: TrainConfig) -> list[str | None]:
    return [config.model, config.data, config.start_from]


def _broadcast(
    begun: TrainResult | Checkpoint | None, out: Path, group: Group, held: ExitStack
) -> TrainResult | Checkpoint | None:
    """Gives every process what the main one begins with; a checkpoint is copied, for as long as ``held`` is open."""
    message = b""
    if isinstance(begun, TrainResult):
        message = str(begun.steps).encode()
    elif begun and group.size > 1:
        message = pack_checkpoint(begun.path)
    message = group.broadcast(message)
    if group.main or not message:
        return begun
    if message.isdigit():
        return TrainResult(out, int(message), None, (), group.rank)
    return unpack_checkpoint(message, Path(held.enter_context(tempfile.TemporaryDirectory(prefix="parm-mlx-"))))


def prepare(
    config: TrainConfig,
    group: Group,
    progress: Progress,
    folder: CheckpointFolder,
    checkpoint: Checkpoint | None = None,
    anyway: bool = False,
) -> Trainer:
    """Loads and checks everything that a run reads; see :func:`train`."""
    init, order, choice, alpha, dropout = map(np.random.default_rng, np.random.SeedSequence(config.seed).spawn(5))
    start = read_adapter(resolve(config.start_from, "adapter")) if config.start_from and not checkpoint else None
    data = _load_data(config, read_config(checkpoint.path) if checkpoint else start and start[0], progress)
    models, k = models_of(config), len(data.objectives)
    changes = changes_since(checkpoint.state, data_files(data), models) if checkpoint else ({}, {})
    if checkpoint:
        if not anyway:
            refuse_changes(checkpoint.path, *changes)
        _check_objectives(checkpoint.path, data.objectives)
    beta = mx.array(config.betas(k))

    progress.note(memory.announce(config))
    model, tokenizer = load_base(config.model)
    train = _tokenize(config, data, "training", tokenizer, embedding_rows(model), progress)
    valid = _tokenize(config, data, "validation", tokenizer, embedding_rows(model), progress)
    data = replace(data, train=[], valid=[])  # the texts are not needed any more
    steps = config.steps(len(train))
    if config.warmup >= steps:
        progress.note(f"the warm-up of {config.warmup} steps covers the whole run; see --warmup")

    adapter, size = _adapter_for(config, model, data.objectives)
    mx.random.seed(draw_seed(init))
    layers = attach(model, adapter)
    model.train()
    if config.grad_checkpoint:
        checkpoint_blocks(model)
    progress.note(f"{steps} steps; {size} in {len(layers)} layers")
    optimizer = Optimizer(
        model, peak=config.learning_rate, warmup=config.warmup, steps=steps, weight_decay=config.weight_decay
    )
    scorer, micro_batches = ResponseScorer(model, k), config.grad_accumulation_steps
    train_step = TrainStep(scorer, beta, config.gamma, optimizer, micro_batches, group, config.smoothing)
    trainer = Trainer(
        config=config,
        group=group,
        progress=progress,
        folder=folder,
        data=data,
        models=models,
        adapter=adapter,
        train_step=train_step,
        batches=TrainingBatches(train, config.pairs_per_step, order),
        valid=fixed_batches(valid, config.batch_size, config.val_batches, choice),
        pairs=(len(train), len(valid)),
        steps=steps,
        alpha_rng=alpha,
        dropout_rng=dropout,
    )
    if start:
        trainer.start_from(*start)
    if checkpoint:
        trainer.restore(checkpoint, *changes)
    memory.check_largest_batch(train_step, train, config.pairs_per_step, progress)
    return trainer


def _load_data(config: TrainConfig, earlier: PBLoRAConfig | None, progress: Progress) -> PreferenceData:
    """Reads the data; the objectives of the adapter that training goes on or begins from come first."""
    first, given = earlier.objectives if earlier else (), config.objectives
    if given and given[: len(first)] != first:
        raise ConfigError(
            f"objectives {', '.join(given)} must begin with those of {config.start_from}: {', '.join(first)}",
            hint=f"--objectives {','.join(dict.fromkeys((*first, *given)))}",
        )
    data = load_data(
        config.data,
        objectives=given,
        first=first,
        seed=config.seed,
        hold_out=config.val_batches != 0,
        skip_bad=config.skip_bad,
    )
    for note in data.notes:
        progress.note(note)
    return data


def _check_objectives(where: Path, now: tuple[str, ...]) -> None:
    if (before := read_config(where).objectives) != now:
        hint = "--start-from begins a new run from an adapter, and adds objectives"
        raise CheckpointError(f"{where} is for {', '.join(before)}; the data now have {', '.join(now)}", hint=hint)


def _tokenize(
    config: TrainConfig,
    data: PreferenceData,
    split: str,
    tokenizer: TokenizerWrapper,
    rows: int | None,
    progress: Progress,
) -> list[TokenPair]:
    """Tokenizes a split, and checks that every objective has judged a training pair."""
    training = split == "training"
    pairs = progress.track(data.train if training else data.valid, f"tokenizing {split}")
    kept, note = tokenize_pairs(
        tokenizer,
        pairs,
        data.objectives,
        config.max_seq_length,
        config.chat_template,
        rows,
        skip_bad=config.skip_bad,
    )
    if note:
        progress.note(f"{split}: {note}")
    labelled = sum((pair.preferred != UNLABELLED for pair in kept), start=np.zeros(len(data.objectives)))
    if training and not labelled.all():
        missing = [name for name, count in zip(data.objectives, labelled, strict=True) if not count]
        raise DataError(
            f"{config.data}: no training pair is left for {', '.join(missing)}",
            hint=f"{note}; raise --max-seq-length" if note else "is the name spelled as in the data?",
        )
    return kept


def _adapter_for(config: TrainConfig, model: nn.Module, objectives: tuple[str, ...]) -> tuple[PBLoRAConfig, str]:
    """The adapter to train, and its size in words; other kinds than PBLoRA match it in trainable numbers."""
    pblora = PBLoRAConfig(
        objectives=objectives,
        r1=config.r1,
        r2=config.r2,
        scale=config.lora_alpha / config.r2,
        dropout=config.dropout,
        target_modules=config.target_modules or default_targets(model),
        objective_betas=config.betas(len(objectives)),
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


def _interrupted(trainer: Trainer, number: int | None) -> TrainResult:
    """Saves a checkpoint, with the report of a finished run; before the first step nothing is kept."""
    if trainer.done == 0:
        if trainer.group.main:
            trainer.folder.clear()
        raise KeyboardInterrupt
    path = trainer.save_checkpoint()
    if trainer.group.main:
        with update(path) as directory:
            _add_report(trainer, directory)
    return TrainResult(path, trainer.done, number, tuple(trainer.log.records), trainer.group.rank)


def _finish(trainer: Trainer, out: Path, force: bool) -> None:
    """Writes the result, and removes the checkpoints; where something has appeared at ``out``, they stay."""
    try:
        with new_directory(out, force, _reads(trainer.config)) as directory:
            step, tensors = trainer.result()
            trainer.write_adapter(directory, out, step, tensors)
            _add_report(trainer, directory)
            flush(*directory.iterdir(), directory)
    except OutputError as error:
        hint = "move it away; the same command with --resume then writes the adapter there"
        raise OutputError(f"{error}; the trained adapter is {trainer.folder.last()}", hint=hint) from None
    flush(out.parent)
    _remove_checkpoints(trainer.folder, trainer.log, step, trainer.progress)


def _add_report(trainer: Trainer, directory: Path) -> None:
    """Draws the curves beside the metrics, and reports the memory that was used."""
    add_picture(directory, trainer.log.records, trainer.progress.note)
    trainer.progress.note(f"memory: {memory.gigabytes(mx.get_peak_memory())} at the peak")


def _finished(
    config: TrainConfig, out: Path, folder: CheckpointFolder, newest: Checkpoint | None, progress: Progress
) -> TrainResult | None:
    """The result of a run that had written its adapter before it was ended; the checkpoints go now."""
    training = finished_training(out, config)
    if training is None or (newest and newest.state["data"] != training["data"]):
        return None
    log = MetricsLog(None)
    log.records = read_metrics(out / METRICS_FILE)
    progress.note(f"{out} is finished already")
    _remove_checkpoints(folder, log, training["steps_done"], progress)
    return TrainResult(out, training["steps"], None, tuple(log.records))


def _remove_checkpoints(folder: CheckpointFolder, log: MetricsLog, step: int, progress: Progress) -> None:
    """Removes the checkpoints, but not the best one when the result is of another step."""
    best = log.best_step
    folder.clear(keep=None if best == step else best)
    if best in folder.steps():
        progress.note(f"validation was best at step {best}: that adapter stays at {folder.at(best)}; see --save")
