"""The kind of a directory: a model or an adapter, and in whose format."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parm_mlx.errors import AdapterError, ModelError
from parm_mlx.files import is_file, read_json
from parm_mlx.fingerprint import safetensors_header
from parm_mlx.mlxlm import weight_files
from parm_mlx.pblora.adapter import CONFIG_FILE as ADAPTER_CONFIG
from parm_mlx.pblora.config import FINE_TUNE_TYPES
from parm_mlx.ranges import shown
from parm_mlx.rewards.model import REWARD_FILE

MODEL_CONFIG = "config.json"
_OTHER_TASKS = ("ForTokenClassification", "ForMaskedLM", "ForQuestionAnswering")
_REWARDS = ("ForSequenceClassification", "ForScore")


class Kind(enum.Enum):
    """Everything that can be converted, as it is shown to the user."""

    HF_MODEL = "Hugging Face causal LM"
    HF_REWARD = "Hugging Face reward model"
    MLX_MODEL = "MLX model"
    GGUF = "GGUF model"
    MLX_REWARD = "parm-mlx reward model"
    PEFT_PBLORA = "PEFT PBLoRA adapter"
    PEFT_LORA = "PEFT LoRA adapter"
    PARM = "parm-mlx adapter"

    @property
    def is_model(self) -> bool:
        """True for models, False for adapters."""
        return self in (Kind.HF_MODEL, Kind.HF_REWARD, Kind.MLX_MODEL, Kind.MLX_REWARD, Kind.GGUF)


_ADAPTERS = {
    "fine_tune_type": dict.fromkeys(FINE_TUNE_TYPES.values(), Kind.PARM),
    "peft_type": {"PBLORA": Kind.PEFT_PBLORA, "LORA": Kind.PEFT_LORA},
}


@dataclass(frozen=True)
class Source:
    """A directory to convert."""

    path: Path
    kind: Kind
    config: dict[str, Any]  # the content of its config file
    name: str  # as the user calls it


def detect(path: Path, name: str | None = None) -> Source:
    """Finds out what a directory holds, which the user calls ``name``.

    Raises:
        AdapterError: It holds an adapter without a readable config, or of a kind that cannot be converted.
        ModelError: It holds a model without a readable config, a model that is neither causal LM nor reward model, or
            no model and no adapter.
    """
    if (
        is_file(path / ADAPTER_CONFIG, AdapterError)
        or any(path.glob("adapter*.safetensors"))
        or any(path.glob("adapter*.bin"))
    ):
        config = read_json(path / ADAPTER_CONFIG, f"adapter {path}", AdapterError)
        kind = _adapter_kind(path, config)
    elif is_file(path / MODEL_CONFIG, ModelError) or any(path.glob("model*.safetensors")):
        config = read_json(path / MODEL_CONFIG, f"model {path}", ModelError)
        kind = _model_kind(path, config)
    else:
        raise ModelError(
            f"{path} holds neither a model ({MODEL_CONFIG}) nor an adapter ({ADAPTER_CONFIG})",
            hint="give the directory that holds the config file and the *.safetensors files",
        )
    return Source(path, kind, config, name or str(path))


def _adapter_kind(path: Path, config: dict[str, Any]) -> Kind:
    field = next((field for field in _ADAPTERS if field in config), None)
    if field is None:
        raise AdapterError(f"adapter {path}: {ADAPTER_CONFIG} names no peft_type, so its kind is unknown")
    if (kind := _ADAPTERS[field].get(str(config[field]))) is None:
        raise AdapterError(
            f"adapter {path}: {field} {shown(config[field])} cannot be converted",
            hint="supported: peft_type PBLORA (PARM) or LORA (GenARM), and adapters of parm-mlx",
        )
    return kind


def _model_kind(path: Path, config: dict[str, Any]) -> Kind:
    if is_file(path / REWARD_FILE, ModelError):
        return Kind.MLX_REWARD
    listed = config.get("architectures")
    architectures = [str(name) for name in listed] if isinstance(listed, list) else []
    for name in architectures:
        if name.endswith(_OTHER_TASKS):
            raise ModelError(f"model {path} is a {name}, neither a causal language model nor a reward model")
    if any(name.endswith(_REWARDS) for name in architectures):
        return Kind.HF_REWARD
    metadata = safetensors_header(next(iter(weight_files(path)))).get("__metadata__", {})
    return Kind.MLX_MODEL if config.get("quantization") or metadata.get("format") == "mlx" else Kind.HF_MODEL
