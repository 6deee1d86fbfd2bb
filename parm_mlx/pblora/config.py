"""The settings of an adapter: objectives, ranks, scale, targets; and its ``adapter_config.json``."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from parm_mlx.errors import AdapterError, PreferenceError
from parm_mlx.preference import parse_objectives
from parm_mlx.ranges import BETA, DROPOUT, RANK, SCALE, Real, Whole, as_float, shown

Kind = Literal["pblora", "lora", "svd-lora", "moslora"]

# mlx-lm writes "lora" for adapters of its own, which have other tensors and no objectives.
FINE_TUNE_TYPES: dict[Kind, str] = {
    "pblora": "pblora",
    "lora": "parm-lora",
    "svd-lora": "parm-svd-lora",
    "moslora": "parm-moslora",
}
FORMAT_VERSION = 1
DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class PBLoRAConfig:
    """Settings of an adapter: PBLoRA, or one of the kinds that it is compared with."""

    objectives: tuple[str, ...]  # k of them, in the order of α
    r1: int = 4  # rank of the part that does not depend on α; 0 for moslora
    r2: int = 4  # rank of the part that depends on α; 0 for lora, k for svd-lora
    scale: float = 2.0  # s, the factor of the whole update: lora_alpha / r2 in the paper's code
    dropout: float = 0.0  # share of the adapter's input that is dropped in training
    target_modules: tuple[str, ...] = DEFAULT_TARGETS  # name suffixes of the adapted linear layers
    base_model: str | None = None  # path or hub id of the backbone that the adapter was made for
    objective_betas: tuple[float, ...] | None = None  # β_i of the training objective, one per objective
    chat_template: str | None = None  # name of the built-in one that it was trained with; None is the tokenizer's own
    beta: float | None = None  # β of guided decoding that the training proposes; None is 1
    training: dict[str, Any] = field(default_factory=dict)  # everything else that reproduces the training
    kind: Kind = "pblora"  # of core matrix; see parm_mlx.pblora.layer

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise AdapterError("adapter settings: " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        numbers: dict[str, Whole | Real] = {"r1": RANK, "r2": RANK, "scale": SCALE, "dropout": DROPOUT}
        wrong = {name: allowed for name, allowed in numbers.items() if not _is_in(getattr(self, name), allowed)}
        yield from (f"{name} must be {allowed}, got {shown(getattr(self, name))}" for name, allowed in wrong.items())
        if not _are_names(self.objectives):
            yield "objectives must be a list of names"
        else:
            try:
                parse_objectives(self.objectives)
            except PreferenceError as error:
                yield str(error)
            fixed = {"lora": {"r2": 0}, "svd-lora": {"r2": len(self.objectives)}, "moslora": {"r1": 0}}
            ranks_are_known = not wrong.keys() & {"r1", "r2"}
            if ranks_are_known and self.r1 + self.r2 < 1:
                yield "r1 + r2 must be at least 1"
            for name, rank in fixed.get(self.kind, {}).items() if ranks_are_known else ():
                if getattr(self, name) != rank:
                    yield f"{name} of {self.kind} must be {rank}, got {getattr(self, name)}"
        if not self.target_modules or not _are_names(self.target_modules):
            yield f"target_modules must be a list that names at least one layer, got {shown(self.target_modules)}"
        if not isinstance(self.base_model, str | None):
            yield f"base_model must be a path or hub id, got {shown(self.base_model)}"
        if self.objective_betas is not None and not self._are_betas(self.objective_betas):
            yield f"objective_betas must hold one number above 0 per objective, got {shown(self.objective_betas)}"
        if not isinstance(self.chat_template, str | None):
            yield f"chat_template must be a name, got {shown(self.chat_template)}"
        if self.beta is not None and not _is_in(self.beta, BETA):
            yield f"beta must be {BETA}, got {shown(self.beta)}"
        if not isinstance(self.training, dict):
            yield "training must be a JSON object"

    def _are_betas(self, betas: Any) -> bool:
        one_each = isinstance(betas, tuple) and _are_names(self.objectives) and len(betas) == len(self.objectives)
        return one_each and all(isinstance(beta, int | float) and 0 < as_float(beta) < float("inf") for beta in betas)

    @property
    def k(self) -> int:
        """Number of objectives."""
        return len(self.objectives)

    @property
    def rank(self) -> int:
        """r1 + r2."""
        return self.r1 + self.r2

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of ``adapter_config.json``; optional settings are there only if they are set."""
        content = {"fine_tune_type": FINE_TUNE_TYPES[self.kind], "format_version": FORMAT_VERSION, **asdict(self)}
        del content["kind"]
        for name in ("chat_template", "beta"):
            if content[name] is None:
                del content[name]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "PBLoRAConfig":
        """Reads the content of ``adapter_config.json``.

        Raises:
            AdapterError: It is another kind of adapter or a newer format, or settings are missing, unknown or wrong;
                every problem is listed.
        """
        values: dict[str, Any] = {}
        for key, value in content.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        name, version = values.pop("fine_tune_type", None), values.pop("format_version", None)
        kind = next((kind for kind, known in FINE_TUNE_TYPES.items() if name == known), None)
        if kind is None:
            hint = "convert it first: parm-mlx convert" if "peft_type" in content else None
            known = ", ".join(FINE_TUNE_TYPES.values())
            raise AdapterError(f"fine_tune_type is {shown(name)}, not one of {known}: not a PARM adapter", hint=hint)
        if version != FORMAT_VERSION:
            raise AdapterError(f"format_version is {shown(version)}; this parm-mlx reads version {FORMAT_VERSION}")
        names = {f.name for f in fields(cls)} - {"kind"}
        problems = [f"unknown setting {key!r}" for key in sorted(values.keys() - names)]
        problems += [f"{key} is missing" for key in ("objectives", "r1", "r2", "scale") if key not in values]
        if problems:
            raise AdapterError("adapter settings: " + "; ".join(problems))
        return cls(**values, kind=kind)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)


def _is_in(value: Any, allowed: Whole | Real) -> bool:
    try:
        allowed.read(value if isinstance(value, int if isinstance(allowed, Whole) else int | float) else None)
    except ValueError:
        return False
    return True
