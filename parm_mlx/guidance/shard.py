"""One guided model over several processes, which ``mlx.launch`` starts on one machine or more.

Three ways to divide it:

    tensor      the base's layers are cut, and with them a guide that shares its weights; another guide is whole in
                every process
    pipeline    each process has some of the base's blocks; the guide is whole in every process
    apart       rank 0 has the base and rank 1 the guide: Eq. 13 is the sum of what they weigh their logits by

Rank 0 chooses every token, draft and verdict, by one small exchange in the graph of each step: on other machines sums
may be rounded differently, and processes that have taken different tokens would go apart without a word. Therefore
every process builds the same graph, in which exchanges follow one another; an exchange on another stream waits for
those before.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import mlx.core as mx
import mlx.nn as nn

from parm_mlx.distributed import Group
from parm_mlx.errors import ConfigError
from parm_mlx.link import Link
from parm_mlx.mlxlm import cut_blocks, cut_layers, evaluate_one_by_one, run_before

How = Literal["tensor", "pipeline", "apart"]
STOPPED = -2  # in place of a token: rank 0 was asked to stop
T = TypeVar("T")


class Shard:
    """The processes that hold one guided model, and what each of them holds.

    Args:
        group: The processes; of one, everything here does nothing.
        how: The way that the model is divided.

    Attributes:
        stop: Asked in rank 0 at every token; if it returns True, all processes get ``STOPPED`` in place of a token.
        stopped: A token was ``STOPPED``, since :meth:`watch`.
        link: The side channel of these processes; None where there is none.

    Raises:
        ConfigError: There is no such way, or it is not one for so many processes.
    """

    def __init__(self, group: Group, how: How) -> None:
        if how not in get_args(How):
            raise ConfigError(f"--shard must be {', '.join(get_args(How)[:-1])} or {get_args(How)[-1]}, got {how!r}")
        if group.size == 1:
            raise ConfigError(
                f"--shard {how} divides the models between processes, and this one is alone",
                hint="mlx.launch starts them: mlx.launch -n 2 -- parm-mlx …, or with --hostfile on several machines",
            )
        if how == "apart" and group.size != 2:
            raise ConfigError(
                f"--shard apart takes two processes, one for the base and one for the guide; there are {group.size}"
            )
        self.group, self.how = group, how
        self.stop: Callable[[], bool] = lambda: False
        self.stopped = False
        self.link: Link | None = None
        self._stream: Any = None

    @property
    def main(self) -> bool:
        """True for rank 0, which chooses, writes and reports."""
        return self.group.main

    def cut(self, model: nn.Module, path: Path, evaluate: bool = True) -> None:
        """Leaves this process its part of a model that is not evaluated, in place.

        With ``evaluate``, its arrays are computed one after the other: memory holds the part, and little more.

        Raises:
            ModelError: The model cannot be divided so, or holds numbers that are not finite.
        """
        members = self.group.members
        assert members is not None
        if self.how == "tensor":
            cut_layers(model, members, path)
        elif self.how == "pipeline":
            cut_blocks(model, members, path)
        if evaluate:
            evaluate_one_by_one(model, path)
        run_before(model, self.wait_for_other_streams)

    def agree(self, choices: mx.array) -> mx.array:
        """Returns rank 0's whole numbers (n,) in place of this process's: tokens, drafts or verdicts.

        The graph is the same in every process: the numbers of the others count zero times.
        """
        self.wait_for_other_streams()
        own = choices.astype(mx.int32) * int(self.main)
        if self.main and self.stop():
            own = own * 0 + STOPPED
        total: mx.array = mx.distributed.all_sum(own, group=self.group.members)
        return total

    def agree_with(self, choices: mx.array, numbers: mx.array) -> tuple[mx.array, mx.array]:
        """As :meth:`agree`, for whole numbers (n,) and float32 numbers (m,) in one exchange."""
        bits = numbers.astype(mx.float32).view(mx.int32)
        both = self.agree(mx.concatenate([choices.astype(mx.int32), bits]))
        return both[: choices.size], both[choices.size :].view(mx.float32)

    def sampler(self, sampler: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        """A sampler whose tokens are rank 0's."""
        return lambda logprobs: self.agree(sampler(logprobs))

    def decide(self, value: T) -> T:
        """Returns rank 0's value, which JSON can hold, in every process."""
        self.wait_for_other_streams()
        found: T = json.loads(self.group.broadcast(json.dumps(value).encode()))
        self._stream = None  # nothing is on its way
        return found

    def union(self, value: T) -> list[T]:
        """Returns the values, which JSON can hold, of all processes, by rank."""
        self.settle()
        return [json.loads(each) for each in self.group.union(json.dumps(value).encode())]

    def settle(self) -> None:
        """Waits for exchanges that are on their way, which a process must not leave others alone with."""
        if self._stream is not None:
            mx.synchronize(self._stream)
            self._stream = None

    def watch(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Returns a request to stop that all processes see at the same token, from that of rank 0."""
        self.stop, self.stopped = stop, False
        return lambda: self.stopped

    def wait_for_other_streams(self) -> None:
        """Waits for exchanges on another stream than the current one.

        The processes would not keep their order across streams. MLX computes them on the current stream of the CPU.
        """
        stream = mx.default_stream(mx.cpu)
        if self._stream is not None and self._stream != stream:
            mx.synchronize(self._stream)
        self._stream = stream
