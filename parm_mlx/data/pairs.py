"""A pair of responses, and the rows of data that are none."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from parm_mlx.errors import DataError
from parm_mlx.guidance.templates import Content

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt.

    Attributes:
        prompt: A user's text, or a conversation that ends before the response.
        responses: The two responses.
        preferred: For each objective that judged this pair, the index (0 or 1) of the response it prefers.
        where: Where it comes from: ``pairs.jsonl:12``, or ``owner/name[train] row 12`` on the hub.
        margins: For objectives whose label is by scores, by how much the preferred response is ahead, ≥ 0.
    """

    prompt: Content
    responses: tuple[str, str]
    preferred: dict[str, int]
    where: str
    margins: dict[str, float] = field(default_factory=dict)

    @property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal for equal prompts, whether given as text or as one user message."""
        messages = [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
        text = json.dumps([[m["role"], m["content"].strip()] for m in messages])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    @property
    def key(self) -> bytes:
        """16 bytes that are equal for the same prompt with the same two responses, in either order."""
        return hashlib.blake2b(self.prompt_key + b"".join(sorted(self._digests)), digest_size=16).digest()

    @property
    def swapped(self) -> bool:
        """Tells the two orders of the same pair apart."""
        first, second = self._digests
        return first > second

    @property
    def _digests(self) -> list[bytes]:
        return [hashlib.blake2b(response.encode(), digest_size=16).digest() for response in self.responses]

    @property
    def undecidable(self) -> bool:
        """Whether both responses are equal, so that nothing can be learned from the pair."""
        return self.responses[0] == self.responses[1]


class RowError(Exception):
    """What is wrong with one row; collected in :class:`Problems`, never shown to a user by itself."""


@dataclass
class Problems:
    """Bad rows, counted all and remembered some, so that one error can report them together."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, where: str, reason: object) -> None:
        """Notes that a row cannot be used."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {reason}")

    def raise_any(self, source: str | Path) -> None:
        """Raises when there is anything to report.

        Raises:
            DataError: With the number of bad rows and the first 20 of them.
        """
        if self.count == 1:
            raise DataError(self.shown[0])
        if self.count:
            more = [f"… and {self.count - len(self.shown)} more"] if self.count > len(self.shown) else []
            raise DataError("\n  ".join([f"{source}: {self.count} rows cannot be used", *self.shown, *more]))
