"""Adapters of layers that are cut for several processes.

Where W (out, in) is cut along its outputs (query, key, value, gate, up), each process has some rows of it and the same
rows of B; A and M(α) are whole. Where W is cut along its inputs (output and down projections), each process has some
columns of it and the same columns of A; what each makes of its part of x is summed over the processes, W x and update
together (:class:`parm_mlx.pblora.layer.PBLoRALinear`).
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import AdapterError
from parm_mlx.pblora.targets import CUT_ALONG_INPUTS, CUT_ALONG_OUTPUTS, Target

SEGMENTED = ("qkv_proj", "in_proj_qkv")  # layers of several parts, each of which mlx-lm cuts


def cut_tensors(tensors: Mapping[str, mx.array], targets: Sequence[Target]) -> dict[str, mx.array]:
    """Returns an adapter's tensors, under their names, as this process needs them for these layers.

    Raises:
        AdapterError: A layer is made of several parts that are cut one by one.
    """
    cut = dict(tensors)
    for target in targets:
        linear = target.linear
        if isinstance(linear, CUT_ALONG_OUTPUTS):
            if target.path.rpartition(".")[2] in SEGMENTED:
                raise AdapterError(
                    f"{target.name} holds query, key and value together: its adapter cannot be cut",
                    hint="leave out --share on: the guide is whole in every process then, or take --shard apart",
                )
            key, axis = f"{target.name}.b", 0
        elif isinstance(linear, CUT_ALONG_INPUTS):
            key, axis = f"{target.name}.a", 1
        else:
            continue
        if key in cut:
            cut[key] = _part(cut[key], axis, linear.group)
    return cut


def _part(tensor: mx.array, axis: int, group: mx.distributed.Group) -> mx.array:
    """This process's part; a tensor that cannot be divided stays as it is, and then does not fit its layer."""
    if tensor.ndim != 2 or tensor.shape[axis] % group.size():
        return tensor
    return mx.contiguous(mx.split(tensor, group.size(), axis=axis)[group.rank()])


def part_of_product(linear: nn.Module, x: mx.array) -> mx.array:
    """Computes this process's part of W x for a layer that is cut along its inputs: the sum of the parts is W x."""
    if isinstance(linear, nn.ShardedToAllLinear):
        return x @ linear.weight.T
    return mx.quantized_matmul(
        x,
        linear.weight,
        scales=linear.scales,
        biases=linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )
