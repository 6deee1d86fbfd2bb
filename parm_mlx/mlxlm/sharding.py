"""Models cut for several processes by mlx-lm's own ways: ``shard``, which cuts layers, and pipelines of blocks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm.weights import check_finite

_BEFORE = "_parm_mlx_before"


def shard_modes(model: nn.Module) -> tuple[str, ...]:
    """Returns the ways in which mlx-lm can cut a model of this family: ``tensor``, ``pipeline``, both or none."""
    ways = {"tensor": hasattr(model, "shard"), "pipeline": hasattr(getattr(model, "model", None), "pipeline")}
    return tuple(name for name, there in ways.items() if there)


def cut_layers(model: nn.Module, group: mx.distributed.Group, path: Path) -> None:
    """Cuts the layers of a model that is not evaluated, in place; each process of the group keeps its part.

    Raises:
        ModelError: mlx-lm cannot cut this family, or its heads or widths cannot be divided by the number of processes.
    """
    _check_mode(model, "tensor", path)
    before = _whole_numbers(model)
    try:
        model.shard(group)
    except ValueError as error:
        raise ModelError(
            f"{path} cannot be cut for {group.size()} processes: {error}", hint="start fewer processes"
        ) from None
    for key, count in _whole_numbers(model).items():
        if before.get(key, count) not in (count, count * group.size()):
            name = key[1].replace("num_", "").replace("n_", "").replace("_", " ")
            raise ModelError(
                f"{path} cannot be cut for {group.size()} processes: its {before[key]} {name} cannot be divided by it",
                hint="start as many processes as divide its attention heads and its key-value heads",
            )


def cut_blocks(model: nn.Module, group: mx.distributed.Group, path: Path) -> None:
    """Leaves each process its part of a model's blocks, in place; rank 0 has the last ones.

    Raises:
        ModelError: mlx-lm has no pipeline for this family, or there are fewer blocks than processes.
    """
    _check_mode(model, "pipeline", path)
    trunk: Any = model.model
    if len(trunk.layers) < group.size():
        raise ModelError(
            f"{path} has {len(trunk.layers)} layers, too few for a pipeline of {group.size()} processes",
            hint="start fewer processes",
        )
    trunk.pipeline(group)


def _check_mode(model: nn.Module, mode: str, path: Path) -> None:
    if mode in (modes := shard_modes(model)):
        return
    family = getattr(getattr(model, "args", None), "model_type", type(model).__name__)
    others = " and ".join((*modes, "apart"))
    raise ModelError(f"{path}: mlx-lm's {family} cannot be sharded as {mode}", hint=f"what it can be: {others}")


def _whole_numbers(model: nn.Module) -> dict[tuple[str, str], int]:
    """The whole numbers that the modules of a model hold, such as the number of heads, by module and name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool) and "head" in name and "dim" not in name
    }


def run_before(model: nn.Module, before: Callable[[], None]) -> None:
    """Has a model call ``before`` at the beginning of each forward pass, in place."""
    object.__setattr__(model, _BEFORE, before)
    model.__class__ = _announced(type(model))


@cache
def _announced(family: Any) -> Any:
    """A subclass that calls what :func:`run_before` was given; one for each family, so that models can be compared."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        getattr(self, _BEFORE)()
        return family.__call__(self, *args, **kwargs)

    return type(family.__name__, (family,), {"__call__": call})


def evaluate_one_by_one(model: nn.Module, path: Path) -> None:
    """Computes the arrays of a model one after the other, so that memory holds one that is not cut at a time.

    Raises:
        ModelError: A number is not finite.
    """
    flat: Any = tree_flatten(model.parameters())
    for name, value in flat:
        mx.eval(value)
        check_finite(path, {name: value})
    mx.clear_cache()
    for module in model.modules():
        mx.eval([value for value in module.values() if isinstance(value, mx.array)])
