"""Plain LoRA adapters (PEFT, peft_type LORA) as guides with one fixed objective, and back.

An autoregressive reward model of GenARM is such an adapter: y = W x + s · B · A · x. It guides a base model like a PARM
whose α is always (1).
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from parm_mlx.convert import peft
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.preference import default_objectives, parse_objectives
from parm_mlx.ranges import RANK

LEAVES = {"lora_A.weight": "a", "lora_B.weight": "b"}
_UNSUPPORTED = {
    "alora_invocation_tokens": "activated LoRA is not supported",
    "alpha_pattern": "every layer must have the same lora_alpha",
    "layer_replication": "replicated layers are not supported",
    "lora_bias": "trained biases have no place in this format",
    "rank_pattern": "every layer must have the same rank",
    "target_parameters": "only linear layers can be adapted",
    "trainable_token_indices": "trained embeddings have no place in an adapter",
    "use_dora": "DoRA also rescales the weights, which is not supported",
    "use_qalora": "QA-LoRA is not supported",
}
_KNOWN = {
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "megatron_core",
    "qalora_group_size",
    "r",
    "use_rslora",
}


def read_lora(
    path: Path, content: Mapping[str, Any], objectives: str | Sequence[str] | None = None
) -> tuple[PBLoRAConfig, Tensors]:
    """Reads a LoRA adapter.

    Args:
        path: Its directory.
        content: Its config.
        objectives: The name of its one objective; objective_1 by default.

    Returns:
        Settings and tensors as our format stores them.

    Raises:
        AdapterError: Settings are wrong or not supported, or tensors are unknown, missing or of the wrong shape.
        PreferenceError: More than one name is given.
    """
    settings = peft.Settings(path, content)
    rank, lora_alpha = settings.whole("r", RANK), settings.number("lora_alpha")
    if content.get("task_type") not in (None, "CAUSAL_LM"):
        settings.problems.append(f"task_type is {content['task_type']!r}: only causal language models can guide")
    settings.check(_UNSUPPORTED, _KNOWN)
    names = default_objectives(1) if objectives is None else parse_objectives(objectives, 1)
    scale = lora_alpha / (sqrt(rank) if content.get("use_rslora") else rank)
    shapes = {"a": (rank, -1), "b": (-1, rank)}
    return peft.read(settings, LEAVES, shapes, kind="lora", objectives=names, r1=rank, r2=0, scale=scale)


def write_lora(directory: Path, config: PBLoRAConfig, tensors: Tensors, base_model: str | None = None) -> None:
    """Writes a plain LoRA adapter in PEFT's format, which has no place for the names of objectives.

    Args:
        directory: An existing directory.
        config: Settings of the adapter.
        tensors: Its tensors.
        base_model: The backbone to record; by default the one that the adapter records.
    """
    rooted = bool(peft.recorded_config(config).get("use_rslora"))
    settings = {
        "lora_alpha": peft.integral(config.scale * (sqrt(config.r1) if rooted else config.r1)),
        "peft_type": "LORA",
        "r": config.r1,
    }
    peft.write(directory, {"use_rslora": False}, settings, LEAVES, config, tensors, base_model)
