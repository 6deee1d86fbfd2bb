"""Training that begins from an adapter which exists, in place of a fresh one."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.errors import AdapterError, ConfigError
from parm_mlx.files import resolve
from parm_mlx.pblora.adapter import Tensors, adapter_tensors, read_adapter, set_adapter_tensors
from parm_mlx.pblora.config import PBLoRAConfig
from parm_mlx.pblora.transform import extend_objectives

HINT = "--adapter, --r1, --r2 and --lora-alpha (scale times r2, or times the rank) must be those of its training"


class Start:
    """The adapter that a run begins from.

    Args:
        source: Its directory or hub id.

    Raises:
        InputError: There is no such adapter, or it cannot be read.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.config, self.tensors = read_adapter(resolve(source, "adapter"))

    def check_objectives(self, given: Sequence[str]) -> None:
        """Checks objectives that the user has named: those of the adapter come first, in their order.

        Raises:
            ConfigError: They do not.
        """
        own = self.config.objectives
        if tuple(given[: len(own)]) != own:
            raise ConfigError(
                f"objectives {', '.join(given)} must begin with those of {self.source}: {', '.join(own)}",
                hint=f"--objectives {','.join([*own, *(name for name in given if name not in own)])}",
            )

    def put(self, model: nn.Module, wanted: PBLoRAConfig) -> str:
        """Puts the tensors into the fresh adapter of a model; objectives that they do not know yet are added.

        Args:
            model: The model, with its adapter attached.
            wanted: The adapter's settings.

        Returns:
            What was done, in words.

        Raises:
            AdapterError: The adapter is of another kind, rank or scale, or on other layers.
        """
        new = wanted.objectives[self.config.k :]
        config, tensors = extend_objectives(self.config, self.tensors, new)
        names = ("kind", "r1", "r2", "scale")
        pairs = {name: (_shown(getattr(config, name)), _shown(getattr(wanted, name))) for name in names}
        other = [f"{name} is {own}, not {run}" for name, (own, run) in pairs.items() if own != run]
        if other:
            raise self._misfit("; ".join(other), HINT)
        self._check_layers(adapter_tensors(model), tensors)
        set_adapter_tensors(model, {name: tensor.astype(mx.float32) for name, tensor in tensors.items()})
        added = f", with {', '.join(new)} added" if new else ""
        return f"training begins from {self.source}{added}"

    def _check_layers(self, fresh: Mapping[str, mx.array], tensors: Tensors) -> None:
        layers, own = ({name.rpartition(".")[0] for name in names} for names in (fresh, tensors))
        if different := sorted(layers ^ own):
            more = f" and {len(different) - 1} other layers" if len(different) > 1 else ""
            one, other = ("the adapter", "the run") if different[0] in own else ("the run", "the adapter")
            raise self._misfit(f"{one} has {different[0]}{more}, {other} has not", "see --target-modules")
        for name, tensor in tensors.items():
            if tensor.shape != fresh[name].shape:
                reason = f"{name} has shape {tensor.shape}, not {fresh[name].shape}"
                raise self._misfit(reason, "is the adapter of another backbone?")

    def _misfit(self, reason: str, hint: str) -> AdapterError:
        return AdapterError(f"adapter {self.source} does not fit this run: {reason}", hint=hint)


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else repr(value)
