"""A model with PARM adapters at one fixed preference, as a plain model."""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from parm_mlx.pblora.layer import PBLoRALinear
from parm_mlx.preference import Alpha


def fuse_model(model: nn.Module, alpha: Alpha, dequantize: bool = False) -> None:
    """Replaces every adapted layer by the plain layer W + ΔW(α), in place.

    Args:
        model: A model with adapters attached.
        alpha: k weights.
        dequantize: Allow quantised layers; they become plain ones.

    Raises:
        InputError: A layer is quantised and ``dequantize`` is not set.
    """
    weights = mx.array(alpha, dtype=mx.float32)
    fused = [
        (name, module.fuse(weights, dequantize))
        for name, module in model.named_modules()
        if isinstance(module, PBLoRALinear)
    ]
    model.update_modules(tree_unflatten(fused))
