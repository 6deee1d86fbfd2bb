"""Pages that scripts of this folder write from a template."""

from collections.abc import Mapping
from pathlib import Path


def fill(page: str, parts: Mapping[str, str]) -> str:
    """Returns PAGE_template.md with each {name} replaced by its part."""
    text = Path(__file__).with_name(f"{page}_template.md").read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace("{" + name + "}", value)
    return text
