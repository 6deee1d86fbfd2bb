"""What a directory holds: a model or an adapter, and in whose format."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parm_mlx.errors import AdapterError, ModelError
from parm_mlx.files import read_json
from parm_mlx.mlxlm import safetensors_header, weight_files
from parm_mlx.pblora.config import FINE_TUNE_TYPES
from parm_mlx.rewards.model import REWARD_FILE

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
_OTHER_TASKS = ("ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering")
_REWARDS = ("ForSequenceClassification", "ForScore")


class Kind(enum.Enum):
    """Everything that can be converted, as it is shown to the user."""

    HF_MODEL = "Hugging Face causal LM"
    HF_REWARD = "Hugging Face reward model"
    MLX_MODEL = "MLX model"
    MLX_REWARD = "parm-mlx reward model"
    PEFT_PBLORA = "PEFT PBLoRA adapter"
    PEFT_LORA = "PEFT LoRA adapter"
    PARM = "parm-mlx adapter"


_ADAPTERS = {
    "fine_tune_type": dict.fromkeys(FINE_TUNE_TYPES.values(), Kind.PARM),
    "peft_type": {"PBLORA": Kind.PEFT_PBLORA, "LORA": Kind.PEFT_LORA},
}


@dataclass(frozen=True)
class Source:
    """A directory to convert, what it holds, and the content of its config file."""

    path: Path
    kind: Kind
    config: dict[str, Any]


def detect(path: Path) -> Source:
    """Finds out what a directory holds.

    Raises:
        AdapterError: It holds an adapter without a readable config, or of a kind that cannot be converted.
        ModelError: It holds a model without a readable config, a model that is neither causal LM nor reward model, or
            no model and no adapter.
    """
    if (path / ADAPTER_CONFIG).exists() or any(path.glob("adapter*.safetensors")) or any(path.glob("adapter*.bin")):
        content = read_json(path / ADAPTER_CONFIG, f"adapter {path}", AdapterError)
        return Source(path, _adapter_kind(path, content), content)
    if (path / MODEL_CONFIG).exists() or any(path.glob("model*.safetensors")):
        content = read_json(path / MODEL_CONFIG, f"model {path}", ModelError)
        return Source(path, _model_kind(path, content), content)
    raise ModelError(
        f"{path} holds neither a model ({MODEL_CONFIG}) nor an adapter ({ADAPTER_CONFIG})",
        hint="give the directory that holds the config file and the *.safetensors files",
    )


def _adapter_kind(path: Path, content: dict[str, Any]) -> Kind:
    field = next((field for field in _ADAPTERS if field in content), None)
    if field is None:
        raise AdapterError(f"adapter {path}: {ADAPTER_CONFIG} names no peft_type, so its kind is unknown")
    kind = _ADAPTERS[field].get(str(content[field]))
    if kind is None:
        raise AdapterError(
            f"adapter {path}: {field} {content[field]!r} cannot be converted",
            hint="what can be: peft_type PBLORA (PARM) or LORA (GenARM), and adapters of parm-mlx",
        )
    return kind


def _model_kind(path: Path, content: dict[str, Any]) -> Kind:
    if (path / REWARD_FILE).exists():
        return Kind.MLX_REWARD
    architectures = [str(name) for name in content.get("architectures") or []]
    for name in architectures:
        if name.endswith(_OTHER_TASKS):
            raise ModelError(f"model {path} is a {name}, neither a causal language model nor a reward model")
    if any(name.endswith(_REWARDS) for name in architectures):
        return Kind.HF_REWARD
    return Kind.MLX_MODEL if content.get("quantization") or _written_by_mlx(path) else Kind.HF_MODEL


def _written_by_mlx(path: Path) -> bool:
    return safetensors_metadata(next(iter(weight_files(path)))).get("format") == "mlx"


def safetensors_metadata(file: Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file; empty when there is none, or no readable header."""
    return safetensors_header(file).get("__metadata__", {})
