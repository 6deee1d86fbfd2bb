"""PARM adapters of the official code (PEFT, peft_type PBLORA) to our format and back, tensor for tensor.

The official config has no objective names, and its lora_alpha is s · r2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parm_mlx.convert import peft
from parm_mlx.errors import AdapterError
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.preference import default_objectives, parse_objectives
from parm_mlx.ranges import OBJECTIVES, RANK

LEAVES = {"pblora_A": "a", "pblora_B": "b", "pblora_W1": "w1", "pblora_W2": "w2"}
_UNSUPPORTED = {"fan_in_fan_out": "transposed weights are not supported"}
_KNOWN = {"obj_num", "pref_vec_init", "r1", "r2"}


def read_pblora(
    path: Path, content: Mapping[str, Any], objectives: str | Sequence[str] | None = None
) -> tuple[PBLoRAConfig, Tensors]:
    """Reads an adapter of the official code.

    Args:
        path: Its directory.
        content: Its config.
        objectives: Names of the k objectives, in the order of training; objective_1, … by default.

    Returns:
        Settings and tensors as our format stores them.

    Raises:
        AdapterError: Settings are wrong or not supported, or tensors are unknown, missing or of the wrong shape.
        PreferenceError: The names are not k different ones.
    """
    settings = peft.Settings(path, content)
    r1, r2, k = settings.whole("r1", RANK), settings.whole("r2", RANK), settings.whole("obj_num", OBJECTIVES)
    lora_alpha = settings.number("lora_alpha")
    settings.check(_UNSUPPORTED, _KNOWN)
    names = default_objectives(k) if objectives is None else parse_objectives(objectives, k)
    shapes = {"a": (r1 + r2, -1), "b": (-1, r1 + r2), "w1": (r1, r1), "w2": (k, r2 * r2)}
    return peft.read(settings, LEAVES, shapes, objectives=names, r1=r1, r2=r2, scale=lora_alpha / r2)


def write_pblora(directory: Path, config: PBLoRAConfig, tensors: Tensors, base_model: str | None = None) -> None:
    """Writes an adapter as the official code does.

    Args:
        directory: An existing directory.
        config: Settings of the adapter.
        tensors: Its tensors.
        base_model: The backbone to record; by default the one that the adapter records.

    Raises:
        AdapterError: It is of another kind, or its ranks have no counterpart in the official format.
    """
    if config.kind != "pblora":
        raise AdapterError(f"PEFT has no format for {config.kind} adapters; only pblora and lora can be written")
    if min(config.r1, config.r2) < 1:
        raise AdapterError(f"PEFT's PBLoRA needs r1 ≥ 1 and r2 ≥ 1; this adapter has r1={config.r1}, r2={config.r2}")
    settings = {
        "lora_alpha": peft.integral(config.scale * config.r2),
        "obj_num": config.k,
        "peft_type": "PBLORA",
        "r1": config.r1,
        "r2": config.r2,
    }
    peft.write(directory, {"pref_vec_init": None}, settings, LEAVES, config, tensors, base_model)
