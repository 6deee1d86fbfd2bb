"""A part of the data: one file, or one split of a data set on the hub."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parm_mlx.data.pairs import Problems
from parm_mlx.data.reading import read_rows
from parm_mlx.errors import DataError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Part(ABC):
    """Rows of one format.

    Attributes:
        name: What errors and records call it.
        split: ``train``, ``valid`` or ``test``; ``train`` where the data are not split.
        objective: What a row that does not say it judges, as far as a name tells it.
    """

    name: str
    split: str
    objective: str | None

    @abstractmethod
    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (where, decoded row); what cannot be decoded goes to ``problems``.

        Raises:
            DataError: The part cannot be read.
        """

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What is equal only for equal rows, and where to get them again."""


@dataclass(frozen=True)
class FilePart(Part):
    """A file.

    Attributes:
        path: Where it is.
    """

    path: Path

    def rows(self, problems: Problems) -> Iterator[tuple[str, Any]]:
        """Yields (``name:line``, decoded row)."""
        try:
            yield from read_rows(self.path, problems, self.name)
        except OSError as error:
            raise DataError(f"data {self.path} cannot be read: {error.strerror or error}") from None

    def identity(self) -> dict[str, str]:
        """The SHA-256 of the file's bytes."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return {"sha256": digest.hexdigest()}
