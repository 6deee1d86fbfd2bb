"""The modules of examples/experiments, which are scripts and not a package, and pairs to train on."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def scripts(repository: Path) -> Iterator[SimpleNamespace]:
    """The modules by name, all but rebuild."""
    folders = [repository / "examples" / name for name in ("experiments", "bundled")]
    names = sorted({file.stem for file in folders[0].glob("*.py")} - {"rebuild"})
    path, known = list(sys.path), set(sys.modules)
    sys.path[:0] = map(str, folders)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent in folders:
            del sys.modules[name]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder, with four pairs in place of those of the bundled world."""
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    texts = ["I am so glad you asked! Cut the tin open.", "Cut the tin along its rim, then fold the lid back."]
    rows = [
        {"prompt": f"How do I open tin {i}?", "responses": texts, "preferred": {"warmth": 0, "focus": 1}}
        for i in range(4)
    ]
    (bundled / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (bundled / "pairs.json").write_text("{}")
    return tmp_path / "experiments"
