"""Listeners of a training run; on a terminal a bar with the latest numbers, elsewhere one line per report."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from parm_mlx.preference import format_alpha
from parm_mlx.training.judge import CornerRecord
from parm_mlx.training.logging import TrainRecord, ValidRecord

T = TypeVar("T")


class Progress:
    """Listens to a training run; this one ignores everything, and is the base of others."""

    def note(self, message: str) -> None:
        """Takes something that the user should know."""

    def warn(self, message: str) -> None:
        """Takes something that the user should act on."""
        self.note(message)

    def track(self, items: Sequence[T], label: str) -> Iterable[T]:
        """Passes on the items of a piece of work that may take a while."""
        return items

    def begin(self, steps: int, done: int = 0) -> None:
        """Training starts, or goes on after ``done`` steps."""

    def advance(self, step: int) -> None:
        """``step`` steps are done."""

    def report(self, record: TrainRecord) -> None:
        """Takes a report, once per ``steps_per_report``."""

    def validated(self, record: ValidRecord) -> None:
        """Takes the result of a validation."""

    def judged(self, record: CornerRecord) -> None:
        """Takes the scores of generated answers."""

    def end(self) -> None:
        """Training is over, whether it was completed or not."""


_BAR = 32  # columns of steps, bar and time


class ConsoleProgress(Progress):
    """Shows a run on a console, with bars if that is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps = self._before = 0
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._started = 0.0

    def note(self, message: str) -> None:
        """Writes a line."""
        self.console.print(message, style="dim", markup=False)

    def warn(self, message: str) -> None:
        """Writes a line that stands out."""
        self.console.print(f"[yellow]warning:[/] {escape(message)}")

    def track(self, items: Sequence[T], label: str) -> Iterable[T]:
        """Shows a bar while the items are worked on."""
        return self._tracked(items, label) if self.console.is_terminal else items

    def begin(self, steps: int, done: int = 0) -> None:
        """Starts the bar, or the clock."""
        self.steps, self._before, self._started = steps, done, time.monotonic()
        if self.console.is_terminal:
            self._bars = self._new_bars()
            self._task = self._bars.add_task("", total=steps, completed=done, news="training")
            self._bars.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bars:
            self._bars.update(self._task, completed=step)

    def report(self, record: TrainRecord) -> None:
        """Updates the bar's numbers, or writes a line."""
        shares = "  ".join(f"{name} {share:.0%}" for name, share in record.accuracy.items())
        parts = [f"loss {record.loss:.4f}", shares, f"{record.tokens_per_second:.0f} tokens/s"]
        parts += [f"{record.padding:.0%} padding", f"{record.peak_memory_gb:.2f} GB peak"]
        if self._bars:
            room = self.console.width - _BAR
            while len(parts) > 1 and len("  ".join(parts)) > room:
                parts.pop()
            self._bars.update(self._task, news="  ".join(parts))
            return
        news = "  ".join(parts)
        left = (time.monotonic() - self._started) * (self.steps - record.step) / (record.step - self._before)
        ending = f"  {_duration(left)} left" if record.step < self.steps else ""
        self.console.print(f"step {record.step}/{self.steps}  {news}{ending}", markup=False)

    def validated(self, record: ValidRecord) -> None:
        """Writes the accuracies at every grid point."""
        own = "  ".join(f"{name} {share:.0%}" for name, share in record.corner_accuracy.items())
        self.console.print(
            f"validation at step {record.step}: loss {record.loss:.4f}; accuracy weighted by alpha "
            f"{record.weighted_accuracy:.0%}; each at its own corner: {own}",
            markup=False,
        )
        for point in record.grid:
            shares = "  ".join(f"{name} {share:.0%}" for name, share in point.accuracy.items())
            self.console.print(f"  at {format_alpha(point.alpha, list(point.accuracy))}:  {shares}", markup=False)

    def judged(self, record: CornerRecord) -> None:
        """Writes the scores at the corners beside the base's."""
        self.console.print(
            f"answers at step {record.step}: mean score at its own corner, at the others, base", markup=False
        )
        for name, own in record.corners.items():
            scores = f"{own:.3g}, {record.others[name]:.3g}, {record.base[name]:.3g}"
            far = f"{record.distance[name]:+.2f} standard deviations of the base apart"
            self.console.print(f"  {name}:  {scores}; {far}", markup=False)

    def end(self) -> None:
        """Removes the bar."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def _new_bars(self) -> Bars:
        left = TimeRemainingColumn(compact=True, table_column=Column(min_width=5))
        news = TextColumn("{task.fields[news]}", markup=False, table_column=Column(no_wrap=True))
        return Bars(MofNCompleteColumn(), BarColumn(10), left, news, console=self.console, transient=True)

    def _tracked(self, items: Sequence[T], label: str) -> Iterator[T]:
        with nullcontext(self._bars) if self._bars else self._new_bars() as bars:
            task = bars.add_task("", total=len(items), news=label)
            for item in items:
                yield item
                bars.advance(task)
            bars.remove_task(task)
            bars.refresh()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
