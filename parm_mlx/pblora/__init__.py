"""PBLoRA: low-rank adapters with a small core matrix that depends on the preference vector."""

from parm_mlx.pblora.adapter import adapter_tensors, attach, load_into, read_adapter, save_adapter
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.layer import PBLoRALinear
from parm_mlx.pblora.transform import extend_objectives, soup

__all__ = [
    "PBLoRAConfig",
    "PBLoRALinear",
    "adapter_tensors",
    "attach",
    "extend_objectives",
    "load_into",
    "read_adapter",
    "save_adapter",
    "soup",
]
