"""The linear layers that an adapter is attached to: found by name suffix, in any mlx-lm model."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn

from parm_mlx.errors import AdapterError
from parm_mlx.pblora.config import DEFAULT_TARGETS, PBLoRAConfig

FUSED_ATTENTION = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "att_proj", "in_proj_qkv", "c_qkv")
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
CUT_ALONG_OUTPUTS = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
CUT_ALONG_INPUTS = (nn.ShardedToAllLinear, nn.QuantizedShardedToAllLinear)
LINEAR = (nn.Linear, nn.QuantizedLinear, *CUT_ALONG_OUTPUTS, *CUT_ALONG_INPUTS)


@dataclass(frozen=True)
class Target:
    """A linear layer to adapt: its block, the block's number, and its path inside the block."""

    block: nn.Module
    number: int
    path: str
    linear: nn.Module

    @property
    def name(self) -> str:
        """Name of the layer in an adapter file, the same for every model family."""
        return f"layers.{self.number}.{self.path}"

    @property
    def reads(self) -> tuple[object, ...] | None:
        """Equal for layers of one block that usually read one input."""
        parent, _, own = self.path.rpartition(".")
        return next(((self.number, parent, names) for names in SHARED_INPUTS if own in names), None)


def linear_dims(linear: nn.Module) -> tuple[int, int]:
    """Returns (out, in) of a plain or quantised linear layer; of a cut one, those of this process's part."""
    out_dims, in_dims = linear.weight.shape
    if "scales" in linear:
        in_dims = in_dims * 32 // linear.bits
    return out_dims, in_dims


def is_named(path: str, suffix: str) -> bool:
    """Returns whether a layer's path ends in a suffix, ``q_proj`` or ``self_attn.q_proj``."""
    return path == suffix or path.endswith("." + suffix)


def find_targets(model: nn.Module, suffixes: Sequence[str]) -> list[Target]:
    """Finds the layers in ``model.layers`` whose path ends in one of the suffixes.

    Raises:
        AdapterError: A suffix matches nothing (the candidates are listed), or mixture-of-experts layers.
    """
    targets, candidates, matched = [], dict[str, None](), set[str]()
    for number, block in enumerate(model.layers):
        for path, module in reversed(block.named_modules()):
            if not path:
                continue
            hits = [suffix for suffix in suffixes if is_named(path, suffix)]
            matched.update(hits)
            if isinstance(module, LINEAR):
                candidates[path] = None
                if hits:
                    targets.append(Target(block, number, path, module))
            elif hits and "Switch" in type(module).__name__:
                raise AdapterError(
                    f"{path} holds mixture-of-experts layers, which cannot be adapted yet",
                    hint="target the attention layers instead",
                )
    missing = [suffix for suffix in suffixes if suffix not in matched]
    if missing or not targets:
        listed = ", ".join(candidates) or "none"
        raise AdapterError(
            f"no layer of the model is named {', '.join(missing or suffixes)}; linear layers in its blocks: {listed}",
            hint="choose some of them with --target-modules",
        )
    return targets


def check_rank(config: PBLoRAConfig, targets: Sequence[Target]) -> None:
    """Raises an AdapterError if a layer is smaller than the rank of its adapter, more than a full update."""
    smallest = min(targets, key=lambda target: min(linear_dims(target.linear)))
    dims = linear_dims(smallest.linear)
    if config.rank > min(dims):
        raise AdapterError(
            f"rank r1 + r2 = {config.rank} is larger than {smallest.name} allows ({dims[0]} × {dims[1]}): "
            f"at most {min(dims)}",
            hint="lower --r1 or --r2, or leave out that layer with --target-modules",
        )


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """Returns the query, key and value projections, or the fused projection in families that have one."""
    paths = [path for block in model.layers for path, module in block.named_modules() if isinstance(module, LINEAR)]
    names = {path.rpartition(".")[2] for path in paths}
    fused = next((name for name in FUSED_ATTENTION if name in names), None)
    if fused and not set(DEFAULT_TARGETS) <= names:
        return (fused,)
    find_targets(model, DEFAULT_TARGETS)  # raises where they are missing, and lists the candidates
    return DEFAULT_TARGETS
