import pytest

from parm_mlx import timing
from parm_mlx.timing import Sample, time_in_turns


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A generation that takes a second per prompt and some per token, and writes down what it does."""

    passes = None

    def __init__(
        self, name: str, seconds: float, clock: Clock, log: list[str], acceptance: float | None = None
    ) -> None:
        self.name, self.seconds, self.clock, self.log, self.acceptance = name, seconds, clock, log, acceptance

    def read(self) -> None:
        self.clock.now += 1
        self.log.append(f"{self.name} reads")

    def decode(self, steps: int) -> int:
        self.clock.now += self.seconds * steps
        self.log.append(f"{self.name} {steps}")
        return 2 * steps

    def close(self) -> None:
        self.log.append(f"{self.name} ends")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def test_generations_take_turns_and_each_pays_for_itself(clock: Clock) -> None:
    log: list[str] = []
    starts = {"a": lambda: Fake("a", 0.5, clock, log), "b": lambda: Fake("b", 2.0, clock, log, 0.75)}
    times = time_in_turns(starts, 12, lambda: False)
    assert log == ["a reads", "b reads", "a 8", "b 8", "a 8", "b 8", "b ends", "a ends"], "12 tokens are two turns of 8"
    assert times == {"a": Sample(1.0, 8.0, 32, None), "b": Sample(1.0, 32.0, 32, 0.75)}


def test_fewer_tokens_than_a_turn_are_one_turn(clock: Clock) -> None:
    log: list[str] = []
    assert time_in_turns({"a": lambda: Fake("a", 1.0, clock, log)}, 3, lambda: False) == {"a": Sample(1.0, 3.0, 6)}


@pytest.mark.parametrize("after", range(6))
def test_a_round_that_is_stopped_gives_nothing_and_ends_all(clock: Clock, after: int) -> None:
    log: list[str] = []
    asked = iter([False] * after + [True] * 9)
    starts = {"a": lambda: Fake("a", 1.0, clock, log), "b": lambda: Fake("b", 1.0, clock, log)}
    assert time_in_turns(starts, 16, lambda: next(asked)) is None
    started = min(after, 2)
    assert [line for line in log if "ends" in line] == ["b ends", "a ends"][2 - started :]
