"""A pair of responses, and the rows of data that cannot become one."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from parm_mlx.errors import DataError
from parm_mlx.guidance.templates import Content, as_messages

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt: a user's text, or a conversation that ends before the response."""

    prompt: Content
    responses: tuple[str, str]
    preferred: dict[str, int]  # for each objective that judged, the index (0 or 1) of the response it prefers
    where: str  # ``pairs.jsonl:12``, or ``owner/name[train] row 12`` on the hub
    margins: dict[str, float] = field(default_factory=dict)  # by objective: how far the preferred is ahead, ≥ 0
    ended: tuple[bool, bool] = (True, True)  # False: the response goes on, and its end is not learned

    @property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal for equal prompts, whether given as text or as one user message."""
        messages = [[message["role"], message["content"].strip()] for message in as_messages(self.prompt)]
        return _digest(json.dumps(messages))

    @property
    def key(self) -> bytes:
        """16 bytes that are equal for the same prompt with the same two responses, in either order."""
        return _digest(json.dumps([self.prompt_key.hex(), *sorted(self.responses)]))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class RowError(Exception):
    """Reason why one row cannot be used; collected in :class:`Problems`."""


@dataclass
class Problems:
    """Rows that cannot be used: all are counted, the first 20 are kept to be shown."""

    count: int = 0
    shown: list[str] = field(default_factory=list)  # file, line and reason

    def add(self, where: str, reason: object) -> None:
        """Adds a bad row."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def note(self) -> str:
        """Returns the number of bad rows and the first of them as a note; empty without bad rows."""
        return self._listed(f"{self.count} rows are left out: they cannot be used") if self.count else ""

    def raise_any(self, source: str | Path) -> None:
        """Raises one DataError for all bad rows, if there are any."""
        if self.count == 1:
            raise DataError(self.shown[0])
        if self.count:
            raise DataError(self._listed(f"{source}: {self.count} rows cannot be used"))

    def _listed(self, headline: str) -> str:
        more = [f"… and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
        return "\n  ".join([headline, *self.shown, *more])
