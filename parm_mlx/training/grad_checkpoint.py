"""Gradient checkpointing: the layers of a model are computed again in the backward pass instead of being remembered."""

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.mlxlm import PrefixCache


def checkpoint_blocks(model: nn.Module) -> None:
    """Makes every block of a model keep only its inputs for the backward pass, in place.

    Values and gradients stay the same: a block that is computed again draws the same random numbers for its dropout.
    The conditioning of the adapters must surround the whole of ``value_and_grad``.
    """
    for block in model.layers:
        kind: Any = type(block)
        block.__class__ = _checkpointed(kind)


@functools.cache
def _checkpointed(kind: type) -> type:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return kind.__call__(self, x, *args, **kwargs)
        cache = next((a for a in (*args, *kwargs.values()) if isinstance(a, PrefixCache)), None)
        key = mx.array(random_state())
        computed = False

        def block(parameters: Any, x: mx.array, state: list[mx.array]) -> tuple[Any, list[mx.array]]:
            nonlocal computed
            before, outside = self.trainable_parameters(), mx.array(random_state())
            held = cache.state if cache else []
            self.update(parameters)
            if cache:
                cache.state = state
            if computed:
                set_random_state(key)
            y = kind.__call__(self, x, *args, **kwargs)
            kept = cache.state if cache else []
            self.update(before)
            if cache:
                cache.state = held
            if computed:
                set_random_state(outside)
            computed = True
            return y, kept

        # Keys and values of shared prefixes go in and out as arguments: gradients pass through nothing else.
        y, state = mx.checkpoint(block)(self.trainable_parameters(), x, cache.state if cache else [])
        if cache:
            cache.state = state
        return y

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call})


def random_state() -> mx.array:
    """MLX's random state itself, which every use of randomness changes."""
    state: Any = mx.random.state
    current: mx.array = state[0]
    return current


def set_random_state(key: mx.array) -> None:
    """Sets MLX's random state to a copy of an earlier one."""
    random_state()[:] = key
