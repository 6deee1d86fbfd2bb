"""Settings of a training run, from Python, from a YAML file and from flags."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parm_mlx.errors import ConfigError, PreferenceError
from parm_mlx.files import expanded
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import BATCH, BETA, CONCENTRATION, COUNT, DROPOUT, MAX_TOKENS, RANK, SCALE, SEED, STEP, Real, Whole
from parm_mlx.settings import PATH, TEXT, Choice, Items, OrAuto, TemplateName, check, read_settings, setting

SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run; the defaults are the paper's safety task, with batches of 8.

    Values that YAML or a command line writes as text ("5e-4", "helpful,harmless") are read as what they mean.

    Raises:
        ConfigError: Settings are missing or wrong; all of them are listed.
    """

    model: str = setting("", "Backbone of the PARM: bundled, smollm2, directory or hub id of an MLX model.", PATH)
    data: str = setting(
        "",
        "Preference data: a file (.jsonl or .json, or either with .gz; split by prompt), a folder with train.jsonl and "
        "valid.jsonl, or with one file or one such folder per objective, or a hub id: owner/name or "
        "owner/name:folder,folder.",
        PATH,
    )
    out: str = setting("", "Directory for the adapter.", PATH)
    start_from: str | None = setting(
        None,
        "PARM adapter to begin from, directory or hub id. Its objectives come first; those that are new begin as the "
        "mean of its own with a fresh start added, and their part of W2 learns five times as fast.",
        PATH,
        default_text="a fresh adapter",
    )
    iters: int | None = setting(None, "Number of steps.", COUNT, default_text="as --epochs says")
    epochs: float = setting(2.0, "Passes over the training pairs, instead of --iters.", Real(1e-6, 1e6))
    batch_size: int = setting(8, "Pairs that are computed together.", BATCH)
    grad_accumulation_steps: int = setting(
        1, "Batches per step: the same step as one larger batch, in the memory of a small one.", STEP
    )
    grad_checkpoint: bool = setting(False, "Compute layers again in the backward pass: less memory, more time.")
    learning_rate: float | None = setting(
        None,
        "Highest learning rate; it decays with a cosine. auto follows the hidden size: 5e-4 at 4096, more for "
        "smaller ones.",
        OrAuto(Real(1e-12, 1e3)),
        default_text="auto",
        metavar="<float|auto>",
    )
    w2_learning_rate: float | None = setting(
        None,
        "Highest learning rate of W2, the part of pblora and moslora that alpha reaches; a higher one separates the "
        "corners.",
        Real(1e-12, 1e3),
        default_text="as --learning-rate",
    )
    warmup: int = setting(20, "Steps of linear warm-up.", Whole(0, COUNT.high))
    weight_decay: float = setting(0.05, "Decoupled weight decay of the adapter.", Real(0, 1e3))
    max_seq_length: int = setting(
        1024,
        "Most tokens of a prompt with its response; longer pairs are left out, never cut.",
        Whole(2, MAX_TOKENS.high),
    )
    skip_bad: bool = setting(False, "Leave out rows that cannot be used, instead of refusing the data.")
    chat_template: TemplateName | None = setting(
        None, "Built-in chat template to train with.", default_text="the tokenizer's own"
    )
    objectives: tuple[str, ...] | None = setting(
        None, "Names in the order of alpha, comma-separated.", Items(TEXT), default_text="those of the data"
    )
    beta_objective: tuple[float, ...] = setting(
        (0.01,), "Beta of each objective, comma-separated, or one for all.", Items(BETA)
    )
    gamma: float = setting(0.0, "Margin that the preferred response should win by.", Real(0, 1e6))
    nll_weight: float = setting(
        0.0,
        "Weight λ of the negative log-likelihood per token of what each objective prefers. It keeps the guide a "
        "language model: 0.2 to 0.5 for small models; the paper has 0.",
        Real(0, 1e3),
    )
    dirichlet: float = setting(
        0.5,
        "Concentration of the Dirichlet distribution that alpha is drawn from; below 1, corners are likelier.",
        CONCENTRATION,
    )
    alpha_per: Literal["example", "batch"] | None = setting(
        None, "Draw one alpha per pair, or one per step.", default_text="example; batch for tchebycheff"
    )
    alpha_among: Literal["all", "agreeing"] | None = setting(
        None,
        "Draw the alpha of a pair among all objectives, or among those that agree on it: of the two responses one is "
        "chosen, and only objectives that prefer it have weight. For many objectives, or one that is added.",
        default_text="all",
    )
    scalarization: Literal["linear", "tchebycheff"] = setting(
        "linear",
        "How alpha makes one loss of several: their weighted sum, or a smooth maximum of the weighted losses, "
        "μ · log Σ_i exp(α_i L_i / μ), which also finds trade-offs that no sum does.",
    )
    smoothing: float | None = setting(
        None,
        "Smoothness μ of the maximum of tchebycheff, which it exceeds by at most μ log k. Losses begin at log 2: from "
        "about 1 on it is a weighted mean, and below 0.01 a step learns from little but the largest.",
        Real(1e-6, 1e6),
        default_text=str(SMOOTHING),
    )
    adapter: Literal["pblora", "lora", "svd-lora", "moslora"] = setting(
        "pblora", "Kind of adapter; the others have as many trainable numbers as pblora with these ranks."
    )
    r1: int = setting(4, "Rank that does not depend on alpha.", RANK)
    r2: int = setting(4, "Rank that depends on alpha.", Whole(1, RANK.high))
    lora_alpha: float = setting(8.0, "The update is scaled by this over r2; over the rank for the other kinds.", SCALE)
    dropout: float = setting(0.05, "Share of the adapter's input that is dropped.", DROPOUT)
    target_modules: tuple[str, ...] | None = setting(
        None,
        "Name suffixes of the adapted layers, comma-separated.",
        Items(TEXT),
        default_text="query, key and value projections",
    )
    steps_per_report: int = setting(10, "Steps between reports.", COUNT)
    steps_per_eval: int = setting(200, "Steps between validations.", COUNT)
    steps_per_save: int = setting(100, "Steps between checkpoints, in OUT.checkpoints.", COUNT)
    keep_checkpoints: int = setting(
        2, "How many of the newest checkpoints to keep, besides the best by validation.", COUNT
    )
    save: Literal["last", "best"] = setting(
        "last", "Which adapter is the result: of the last step, or the best by validation loss."
    )
    val_batches: int = setting(25, "Batches per validation; -1 for all, 0 for none.", Whole(-1, COUNT.high))
    reward: tuple[str, ...] | None = setting(
        None,
        "NAME=SPEC of objectives, comma-separated, as for evaluate: at every validation a few held-out questions are "
        "answered at the corners, and scored.",
        Items(TEXT),
        default_text="pairs alone are judged",
    )
    report_to: tuple[str, ...] | None = setting(
        None, "Also send the numbers to trackers: wandb, swanlab, comma-separated.", Items(Choice("wandb", "swanlab"))
    )
    project_name: str = setting("parm-mlx", "Project that trackers show the run in.")
    seed: int = setting(0, "Seed of everything random.", SEED)

    def __post_init__(self) -> None:
        if problem := "; ".join(check(self)) or self._contradiction():
            raise ConfigError(f"training settings: {problem}")
        smooth = self.scalarization == "tchebycheff"
        object.__setattr__(self, "alpha_per", self.alpha_per or ("batch" if smooth else "example"))
        if smooth and self.smoothing is None:
            object.__setattr__(self, "smoothing", SMOOTHING)

    def _contradiction(self) -> str | None:
        """Says which settings, each allowed alone, cannot be together."""
        if self.objectives is not None:
            try:
                parse_objectives(self.objectives)
            except PreferenceError as reason:
                return str(reason)
        if self.save == "best" and self.val_batches == 0:
            return "save is 'best', but val_batches is 0: only validation tells which is best"
        if self.pairs_per_step > STEP.high:
            return f"batch_size times grad_accumulation_steps must be at most {STEP.high}, got {self.pairs_per_step}"
        if self.scalarization == "tchebycheff" and self.alpha_per == "example":
            return "scalarization is 'tchebycheff', which needs one alpha per step, but alpha_per is 'example'"
        if self.alpha_among == "agreeing" and self.alpha_per == "batch":
            return "alpha_among is 'agreeing', which needs one alpha per pair, but alpha_per is 'batch'"
        if self.adapter not in ("pblora", "moslora") and self.w2_learning_rate is not None:
            return f"w2_learning_rate is for adapter 'pblora' or 'moslora', and that is '{self.adapter}'"
        if self.scalarization == "linear" and self.smoothing is not None:
            return "smoothing is for scalarization 'tchebycheff', and that is 'linear'"
        return None

    @classmethod
    def from_sources(cls, file: str | Path | None, flags: Mapping[str, Any]) -> "TrainConfig":
        """Returns the settings of a YAML file, if there is one, overridden by those that were given as flags.

        Raises:
            ConfigError: The file cannot be read, holds unknown keys, or settings are wrong.
        """
        values = read_settings(expanded(file, ConfigError), cls) if file else {}
        for source, where in ((values, f"config {file}"), (flags, "training settings")):
            if {"iters", "epochs"} <= source.keys():
                raise ConfigError(f"{where}: iters and epochs are both given; choose one")
        if "epochs" in flags:
            values.pop("iters", None)
        return cls(**{**values, **flags})

    def steps(self, pairs: int) -> int:
        """Returns the number of steps for so many training pairs."""
        if self.iters is not None:
            return self.iters
        return max(1, math.ceil(self.epochs * pairs / self.pairs_per_step))

    @property
    def pairs_per_step(self) -> int:
        """Pairs that every update of the adapter is made of."""
        return self.batch_size * self.grad_accumulation_steps

    def betas(self, k: int) -> tuple[float, ...]:
        """Returns β_i of k objectives; ConfigError if ``beta_objective`` holds neither one number nor k."""
        if len(self.beta_objective) not in (1, k):
            raise ConfigError(f"training settings: beta_objective has {len(self.beta_objective)} numbers, not 1 or {k}")
        return self.beta_objective * k if len(self.beta_objective) == 1 else self.beta_objective
