"""What an examination found, one finding for each thing that is looked at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from parm_mlx.errors import ParmError

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: ``"warning"`` is worth knowing, ``"failed"`` is wrong.
        found: What there is, in words.
        hint: What to do about it, where it is not ok.
        data: The same in numbers.
    """

    name: str
    status: Status
    found: str
    hint: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON, without the path of the user's home folder."""
        named = {"check": self.name, "status": self.status, "found": self.found, "hint": self.hint, "data": self.data}
        return {key: without_home(value) for key, value in named.items()}


def examine(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Looks at one thing; whatever goes wrong is the finding."""
    try:
        return look()
    except ParmError as error:
        return [Finding(name, "failed", str(error), error.hint)]
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return [Finding(name, "failed", found, "this was not foreseen; please report it with the output of --json")]


def without_home(value: Any) -> Any:
    """The same with ~ in place of the user's home folder, in every text."""
    if isinstance(value, dict):
        return {key: without_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_home(inner) for inner in value]
    return value.replace(str(Path.home()), "~") if isinstance(value, str) else value
