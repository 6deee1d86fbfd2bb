"""Settings of a training run, from Python, from a YAML file and from flags."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from parm_mlx.errors import ConfigError, PreferenceError
from parm_mlx.files import read_yaml
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import (
    BATCH,
    BETA,
    CONCENTRATION,
    COUNT,
    DROPOUT,
    MAX_TOKENS,
    RANK,
    SCALE,
    SEED,
    STEP,
    Real,
    Whole,
)

TRACKERS = ("wandb", "swanlab")
SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run needs to know; the defaults are the paper's safety task, with batches of 8.

    Values that YAML or a command line writes as text ("5e-4", "helpful,harmless") are read as what they mean.

    Attributes:
        model: Backbone of the PARM; directory or hub id of an MLX model.
        data: Preference data: a file, a folder or a data set on the hub.
        out: Directory for the adapter.
        start_from: PARM adapter that training begins from, directory or hub id; a fresh one by default. Its objectives
            come first. Others are added, each as the mean of those that are there.
        iters: Number of steps; takes the place of ``epochs``.
        epochs: Passes over the training pairs.
        batch_size: Pairs that are computed together; the pairs of a step without gradient accumulation.
        grad_accumulation_steps: Batches per step, whose gradients are accumulated; a step is the same as with one batch
            of that many times the size, in the memory of one.
        grad_checkpoint: Whether layers are computed again in the backward pass, which takes less memory and more time.
        learning_rate: Highest learning rate.
        warmup: Steps of linear warm-up.
        weight_decay: Decoupled weight decay of all adapter tensors.
        max_seq_length: Most tokens of a prompt with its response; longer pairs are left out.
        skip_bad: Leave out rows that cannot be used, instead of refusing the data.
        steps_per_report: Steps between reports.
        steps_per_eval: Steps between validations.
        steps_per_save: Steps between checkpoints.
        keep_checkpoints: How many of the newest checkpoints are kept, besides the best one by validation.
        save: ``last`` makes the adapter of the last step the result, ``best`` the one with the lowest validation loss.
        val_batches: Batches per validation; -1 for all, 0 for no validation.
        chat_template: Name of a built-in chat template; the tokenizer's own by default.
        report_to: Trackers that the numbers go to: wandb, swanlab.
        project_name: Project that trackers show the run in.
        seed: Seed of the split, the initial adapter, the order of the data, α and dropout.
        adapter: Kind of adapter. ``lora`` and ``svd-lora`` get the rank at which they have as many trainable numbers as
            ``pblora`` with these r1 and r2.
        r1: Rank that does not depend on α.
        r2: Rank that depends on α.
        lora_alpha: The update is scaled by lora_alpha / r2, or by lora_alpha / rank for ``lora`` and ``svd-lora``.
        dropout: Share of the adapter's input that is dropped.
        target_modules: Name suffixes of the adapted layers; by default the query, key and value projections.
        objectives: The objectives in the order of α; those of the data by default.
        beta_objective: β_i of each objective, or one number for all.
        gamma: γ, the margin of the objective.
        dirichlet: p, the concentration of the distribution that α is drawn from.
        alpha_per: ``example`` draws one α per pair, ``batch`` one per step. The default is ``example``; ``tchebycheff``
            compares the losses of a step under one α, and so is ``batch`` always.
        scalarization: How α makes one loss of k: ``linear`` is Σ_i α_i L_i, ``tchebycheff`` the smooth maximum of the
            α_i L_i, μ · log Σ_i exp(α_i L_i / μ).
        smoothing: μ of ``tchebycheff``; 0.1 by default. It exceeds the maximum by μ log k at most. Losses begin at
            log 2 ≈ 0.7: from about 1 on, μ makes it a weighted mean, and below 0.01 little but the largest α_i L_i is
            learned from in a step.

    Raises:
        ConfigError: Settings are missing or wrong; all of them are listed.
    """

    model: str = ""
    data: str = ""
    out: str = ""
    start_from: str | None = None
    iters: int | None = None
    epochs: float = 2.0
    batch_size: int = 8
    grad_accumulation_steps: int = 1
    grad_checkpoint: bool = False
    learning_rate: float = 5e-4
    warmup: int = 20
    weight_decay: float = 0.05
    max_seq_length: int = 1024
    skip_bad: bool = False
    chat_template: str | None = None
    steps_per_report: int = 10
    steps_per_eval: int = 200
    steps_per_save: int = 100
    keep_checkpoints: int = 2
    save: Literal["last", "best"] = "last"
    val_batches: int = 25
    report_to: tuple[str, ...] | None = None
    project_name: str = "parm-mlx"
    seed: int = 0
    adapter: Literal["pblora", "lora", "svd-lora"] = "pblora"
    r1: int = 4
    r2: int = 4
    lora_alpha: float = 8.0
    dropout: float = 0.05
    target_modules: tuple[str, ...] | None = None
    objectives: tuple[str, ...] | None = None
    beta_objective: tuple[float, ...] = (0.01,)
    gamma: float = 0.0
    dirichlet: float = 0.5
    alpha_per: Literal["example", "batch"] | None = None
    scalarization: Literal["linear", "tchebycheff"] = "linear"
    smoothing: float | None = None

    def __post_init__(self) -> None:
        problems = []
        for setting in fields(self):
            value = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            try:
                object.__setattr__(self, setting.name, _READ[setting.name](value))
            except (ValueError, PreferenceError) as reason:
                problems.append(f"{setting.name} {reason}" if isinstance(reason, ValueError) else str(reason))
        if not problems and self.save == "best" and self.val_batches == 0:
            problems.append("save is 'best', but val_batches is 0: only validation tells which is best")
        if not problems and self.pairs_per_step > STEP.high:
            problems.append(
                f"batch_size times grad_accumulation_steps must be at most {STEP.high}, got {self.pairs_per_step}"
            )
        if not problems:
            problems += self._settle_scalarization()
        if problems:
            raise ConfigError("training settings: " + "; ".join(problems))

    def _settle_scalarization(self) -> list[str]:
        """Fills in what the scalarisation decides, and says what contradicts it."""
        smooth = self.scalarization == "tchebycheff"
        if smooth and self.alpha_per == "example":
            return ["scalarization is 'tchebycheff', which needs one alpha per step, but alpha_per is 'example'"]
        if not smooth and self.smoothing is not None:
            return ["smoothing is for scalarization 'tchebycheff', and that is 'linear'"]
        object.__setattr__(self, "alpha_per", self.alpha_per or ("batch" if smooth else "example"))
        if smooth and self.smoothing is None:
            object.__setattr__(self, "smoothing", SMOOTHING)
        return []

    @classmethod
    def from_sources(cls, file: str | Path | None, flags: Mapping[str, Any]) -> "TrainConfig":
        """Settings of a YAML file, overridden by flags.

        Args:
            file: The YAML file, if there is one; ``batch_size`` and ``batch-size`` are the same key.
            flags: Settings by name, those that were given.

        Raises:
            ConfigError: The file cannot be read, holds unknown keys, or settings are wrong.
        """
        values = read_settings(Path(file), [setting.name for setting in fields(cls)]) if file else {}
        for source, where in ((values, f"config {file}"), (flags, "training settings")):
            if {"iters", "epochs"} <= source.keys():
                raise ConfigError(f"{where}: iters and epochs are both given; choose one")
        if "epochs" in flags:
            values.pop("iters", None)
        return cls(**{**values, **flags})

    def steps(self, pairs: int) -> int:
        """Number of steps for so many training pairs."""
        if self.iters is not None:
            return self.iters
        return max(1, math.ceil(self.epochs * pairs / self.pairs_per_step))

    @property
    def pairs_per_step(self) -> int:
        """Pairs that every update of the adapter is made of."""
        return self.batch_size * self.grad_accumulation_steps

    def betas(self, k: int) -> tuple[float, ...]:
        """β_i of k objectives.

        Raises:
            ConfigError: ``beta_objective`` holds neither one number nor k.
        """
        if len(self.beta_objective) not in (1, k):
            raise ConfigError(f"training settings: beta_objective has {len(self.beta_objective)} numbers, not 1 or {k}")
        return self.beta_objective * k if len(self.beta_objective) == 1 else self.beta_objective

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


def read_settings(path: Path, names: list[str]) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        ConfigError: It cannot be read, is no mapping, or has keys that are not among ``names``.
    """
    content = read_yaml(path, "config", ConfigError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} must hold 'name: value' lines")
    settings: dict[str, Any] = {}
    unknown = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in names:
            close = get_close_matches(name, names, 1)
            unknown.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        elif value is not None:
            settings[name] = value
    if unknown:
        raise ConfigError(f"config {path}: unknown setting(s) {', '.join(unknown)}")
    return settings


def _text(value: Any) -> str:
    if value in (None, ""):
        raise ValueError("is missing")
    return str(value)


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(str(item) for item in _items(value))
    if not names or not all(names):
        raise ValueError(f"must name at least one, without empty names, got {value!r}")
    return names


def _betas(value: Any) -> tuple[float, ...]:
    numbers = tuple(BETA.read(item) for item in _items(value))
    if not numbers:
        raise ValueError("must hold one number per objective, or one for all")
    return numbers


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {value!r}")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(map(repr, choices))}, got {value!r}")
        return str(value)

    return read


def _chat_template(value: Any) -> str:
    from parm_mlx.guidance.templates import CHAT_TEMPLATES

    if value not in CHAT_TEMPLATES:
        raise ValueError(f"must be one of {', '.join(CHAT_TEMPLATES)}, got {value!r}")
    return str(value)


def _trackers(value: Any) -> tuple[str, ...]:
    names = _names(value)
    if not set(names) <= set(TRACKERS):
        raise ValueError(f"must be among {', '.join(TRACKERS)}, got {value!r}")
    return names


_READ: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "data": _text,
    "out": _text,
    "start_from": _text,
    "iters": COUNT.read,
    "epochs": Real(1e-6, 1e6).read,
    "batch_size": BATCH.read,
    "grad_accumulation_steps": STEP.read,
    "grad_checkpoint": _switch,
    "learning_rate": Real(1e-12, 1e3).read,
    "warmup": Whole(0, COUNT.high).read,
    "weight_decay": Real(0, 1e3).read,
    "max_seq_length": Whole(2, MAX_TOKENS.high).read,
    "skip_bad": _switch,
    "chat_template": _chat_template,
    "steps_per_report": COUNT.read,
    "steps_per_eval": COUNT.read,
    "steps_per_save": COUNT.read,
    "keep_checkpoints": COUNT.read,
    "save": _one_of("last", "best"),
    "val_batches": Whole(-1, COUNT.high).read,
    "report_to": _trackers,
    "project_name": _text,
    "seed": SEED.read,
    "adapter": _one_of("pblora", "lora", "svd-lora"),
    "r1": RANK.read,
    "r2": Whole(1, RANK.high).read,
    "lora_alpha": SCALE.read,
    "dropout": DROPOUT.read,
    "target_modules": _names,
    "objectives": lambda value: parse_objectives(_names(value)),
    "beta_objective": _betas,
    "gamma": Real(0, 1e6).read,
    "dirichlet": CONCENTRATION.read,
    "alpha_per": _one_of("example", "batch"),
    "scalarization": _one_of("linear", "tchebycheff"),
    "smoothing": Real(1e-6, 1e6).read,
}
