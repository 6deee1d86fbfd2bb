"""More objectives for an adapter that has been trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import mlx.core as mx

from parm_mlx.errors import AdapterError
from parm_mlx.pblora.adapter import Tensors
from parm_mlx.pblora.config import PBLoRAConfig


def extend_objectives(
    config: PBLoRAConfig, tensors: Mapping[str, mx.array], names: Sequence[str]
) -> tuple[PBLoRAConfig, Tensors]:
    """Adds objectives behind those of an adapter; for α without weight on them it is the same adapter.

    A new objective i gets a row W2_i in every layer, the mean of the rows that are there. With all weight on it, the
    adapter does what it did with equal weights: a start for training, where a zero row would be one without the part
    that depends on α. A plain LoRA has no tensor that depends on the number of objectives, and keeps its tensors.

    Args:
        config: The adapter's settings.
        tensors: The adapter as it is stored.
        names: The new objectives.

    Returns:
        The settings, without β_i where there are new objectives, and the tensors.

    Raises:
        AdapterError: A name is the adapter's already or cannot be one, or the adapter is an SVD-LoRA: its rank is tied
            to the number of objectives.
    """
    if not names:
        return config, dict(tensors)
    if config.kind == "svd-lora":
        raise AdapterError(
            f"an svd-lora for {', '.join(config.objectives)} cannot get more objectives: they set its rank"
        )
    rows = len(names)
    extended = {
        name: mx.concatenate([tensor, mx.repeat(tensor.mean(axis=0, keepdims=True), rows, axis=0)])
        if name.endswith(".w2")
        else tensor
        for name, tensor in tensors.items()
    }
    return replace(config, objectives=(*config.objectives, *names), objective_betas=None), extended
