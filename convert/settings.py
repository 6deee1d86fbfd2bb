"""The settings of a PEFT adapter: reads ``adapter_config.json`` and lists everything that is wrong with it at once."""

from collections.abc import Collection, Mapping
from typing import Any

from parm_mlx.errors import AdapterError
from parm_mlx.ranges import DROPOUT, SCALE, Real, Whole, shown

# Settings of PEFT that do not change what an adapter computes, whatever their value.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
# Ways to begin training that leave the backbone's own weights as they are.
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
UNSUPPORTED = {
    "bias": "trained biases have no place in this format",
    "init_lora_weights": "that may change the backbone's own weights; save it as plain LoRA with PEFT first",
    "layers_pattern": "adapters on some layers only are not supported",
    "layers_to_transform": "adapters on some layers only are not supported",
    "modules_to_save": "modules trained in full have no place in an adapter",
}
UNKNOWN = "what that changes is not known here, so the adapter is not converted"
Number = Whole | Real


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

    def whole(self, key: str, allowed: Whole) -> int:
        """A whole number of at least 1."""
        return self._read(key, self.content.get(key), Whole(1, allowed.high)) or 1

    def number(self, key: str) -> float:
        """A number above 0."""
        return self._read(key, self.content.get(key), SCALE) or 1.0

    def dropout(self, key: str) -> float:
        """A number of at least 0 and below 1; 0 when it is left out."""
        value = self.content.get(key)
        return 0.0 if value is None else self._read(key, value, DROPOUT) or 0.0

    def refuse(self, keys: Mapping[str, str], known: Collection[str]) -> None:
        """Refuses settings under which the adapter would compute something else than its tensors say.

        Args:
            keys: Settings that must be off, and why.
            known: Settings that are read elsewhere, or that change nothing. Any other must be off, too.
        """
        for key, value in self.content.items():
            harmless = key in HARMLESS or key in known or (key == "init_lora_weights" and value in KEEPS_BASE)
            if not harmless and not _is_off(value):
                self.problems.append(f"{key} is {shown(value)}: {keys.get(key, UNKNOWN)}")

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

    def _read(self, key: str, value: Any, allowed: Number) -> Any:
        try:
            return allowed.read(None if isinstance(value, str) else value)
        except ValueError:
            self.problems.append(self._wrong(key, value, str(allowed)))
            return None

    def _wrong(self, key: str, value: Any, wanted: str) -> str:
        return f"{key} must be {wanted}, got {shown(value)}" if key in self.content else f"{key} is missing"


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("none", "", [], {})
