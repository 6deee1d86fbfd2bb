"""Inputs of a training run: preference data, their tokens, and the adapter that the settings ask for."""

from typing import Any

import mlx.nn as nn
import numpy as np

from parm_mlx.data.dataset import PreferenceData, load_data
from parm_mlx.data.tokenize import UNLABELLED, TokenPair, tokenize_pairs
from parm_mlx.errors import ConfigError, DataError
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.targets import check_rank, default_targets, find_targets
from parm_mlx.pblora.transform import matched, trainable_numbers
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.progress import Progress


def load_pairs(config: TrainConfig, earlier: PBLoRAConfig | None, progress: Progress) -> PreferenceData:
    """Reads the data; the objectives of an earlier adapter come first."""
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


def tokenize_split(
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
    length, template = config.max_seq_length, config.chat_template
    kept, note = tokenize_pairs(tokenizer, pairs, data.objectives, length, template, rows, skip_bad=config.skip_bad)
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


def adapter_for(config: TrainConfig, model: nn.Module, objectives: tuple[str, ...]) -> tuple[PBLoRAConfig, str]:
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


def data_files(data: PreferenceData) -> list[dict[str, Any]]:
    """Returns the files that were read with their SHA-256, hub data sets with revision and fingerprint."""
    return [{"file": file.name, **file.identity, "pairs": file.pairs} for file in data.files]
