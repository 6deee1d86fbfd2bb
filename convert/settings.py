"""The settings of a PEFT adapter: reads ``adapter_config.json`` and lists everything that is wrong with it at once."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeGuard

from parm_mlx.errors import AdapterError

UNSUPPORTED = {
    "bias": "trained biases have no place in this format",
    "layers_pattern": "adapters on some layers only are not supported",
    "layers_to_transform": "adapters on some layers only are not supported",
    "modules_to_save": "modules trained in full have no place in an adapter",
}


class Settings:
    """Reads the settings of a PEFT config and collects what is wrong with them.

    Args:
        content: The content of ``adapter_config.json``.
        what: How errors call the adapter.
    """

    def __init__(self, content: Mapping[str, Any], what: str) -> None:
        self.content = content
        self.what = what
        self.problems: list[str] = []

    def whole(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.content.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        self.problems.append(self._wrong(key, value, "a whole number ≥ 1"))
        return 1

    def number(self, key: str) -> float:
        """A finite number above 0."""
        value = self.content.get(key)
        if _is_number(value) and value > 0:
            return float(value)
        self.problems.append(self._wrong(key, value, "a finite number above 0"))
        return 1.0

    def share(self, key: str) -> float:
        """A number of at least 0 and below 1; 0 when it is left out."""
        value = self.content.get(key, 0.0)
        if _is_number(value) and 0 <= value < 1:
            return float(value)
        self.problems.append(self._wrong(key, value, "at least 0 and below 1"))
        return 0.0

    def refuse(self, keys: Mapping[str, str]) -> None:
        """Settings that must be off, because the adapter would mean something else; the reason for each."""
        for key, reason in keys.items():
            if self.content.get(key) not in (None, False, "none", [], {}):
                self.problems.append(f"{key} is {self.content[key]!r}: {reason}")

    def targets(self) -> Any:
        """``target_modules``: a list of names, a pattern, or nothing."""
        value = self.content.get("target_modules")
        if isinstance(value, list) and not (value and all(isinstance(name, str) and name for name in value)):
            self.problems.append(self._wrong("target_modules", value, "a list of layer names"))
        return value

    def base_model(self) -> str | None:
        """The model that the adapter was trained on, when it is recorded."""
        return str(self.content.get("base_model_name_or_path") or "") or None

    def check(self) -> None:
        """Raises one :class:`AdapterError` that lists every problem found."""
        if self.problems:
            raise AdapterError(f"{self.what}: adapter_config.json: {'; '.join(self.problems)}")

    def _wrong(self, key: str, value: Any, wanted: str) -> str:
        return f"{key} must be {wanted}, got {value!r}" if key in self.content else f"{key} is missing"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
