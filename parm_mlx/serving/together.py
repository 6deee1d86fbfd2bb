"""Engines of several processes that hold one model: rank 0 tells the others, before each turn, what they do in it.

A turn of an engine depends on who joins, who leaves and what is kept of earlier prompts; all else follows from the
tokens, which are rank 0's in every process.
"""

import math
import pickle
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial

from parm_mlx.guidance.shard import Shard
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.events import AnswerOptions, Ask, Event


@dataclass(frozen=True)
class Turn:
    """What the engines do in a turn.

    Attributes:
        left: Numbers of the answers that leave.
        joined: Answers that are asked for from now on.
        kept: How many of the kept prompts stay.
    """

    left: Collection[int]
    joined: list[Ask]
    kept: int


class LeadingEngine(Engine):
    """The engine of rank 0, which has the requests."""

    def _begin_turn(self) -> None:
        shard, kept = _processes(self._shard), self._kept.shrink()
        left = self._drop()
        joined = self._admit()
        turn = Turn(left, [_followed(answering.ask) for answering in joined], kept)
        assert shard.link is not None
        shard.link.send(pickle.dumps(turn))

    def _work(self) -> None:
        try:
            super()._work()
        except RuntimeError:
            if self._shard is not None and self._shard.link is not None:
                self._shard.link.wait_for_loss()
            raise
        finally:
            if self._shard is not None and self._shard.link is not None:
                self._shard.link.send(pickle.dumps(None))
                self._shard.settle()


class FollowingEngine(Engine):
    """The engine of another process. It has no thread and no requests of its own; :meth:`follow` runs it."""

    def follow(self) -> None:
        """Loads the models, and does in each turn what rank 0 does, until that ends."""
        self._prepare()
        shard = _processes(self._shard)
        assert shard.link is not None
        while (turn := pickle.loads(shard.link.receive())) is not None:
            self._kept.shrink(turn.kept)
            self._remove(partial(_is_among, turn.left))
            self._waiting.extend(Answering(ask, self.session.tokenizer, math.inf) for ask in turn.joined)
            self._admit()
            self._take_turn()
        shard.settle()


def _processes(shard: Shard | None) -> Shard:
    if shard is None:
        raise ValueError("the model is held by one process")
    return shard


def _is_among(numbers: Collection[int], answering: Answering) -> bool:
    return answering.number in numbers


def _followed(ask: Ask) -> Ask:
    """What another process needs to know: it does not choose tokens, and nobody listens to it."""
    options = AnswerOptions(stops=ask.options.stops, explain=ask.options.explain, tools=ask.options.tools)
    return replace(ask, emit=_unheard, options=options, matcher=None)


def _unheard(_: Event) -> None:
    pass
