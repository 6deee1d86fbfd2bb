"""The card of SmolLM2's PARM says what its kept answers say."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def checks(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """examples/smollm2/checks.py."""
    for name in ("smollm2", "experiments"):
        monkeypatch.syspath_prepend(repository / "examples" / name)
    import checks

    yield checks
    for name in ("checks", "archive"):
        sys.modules.pop(name, None)


def test_the_scores_of_the_card_are_those_of_the_kept_answers(repository: Path, checks: ModuleType) -> None:
    import archive

    from parm_mlx.answers.store import read_run

    folder = repository / "examples" / "smollm2"
    identity, results, scores = read_run(archive.unpack(folder / "answers.tar.xz"))
    report = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
    answers = checks.by_alpha(list(results.values()))
    assert (len(answers), {len(several) for several in answers.values()}) == (12, {150})
    assert checks.steering(identity["objectives"], answers, scores) == report["steering"]
    quality = checks.quality(answers, None, 0)
    assert quality.keys() == report["quality"].keys()
    for name, row in quality.items():
        shared = set(row) - {"relevance"}
        assert {key: row[key] for key in shared} == {key: report["quality"][name][key] for key in shared}


def test_the_card_is_made_of_the_kept_answers(repository: Path, tmp_path: Path) -> None:
    script, out = repository / "examples" / "smollm2" / "card.py", tmp_path / "card.md"
    subprocess.run([sys.executable, str(script), "--out", str(out)], check=True)
    card = repository / "parm_mlx" / "models" / "smollm2-parm" / "README.md"
    assert out.read_text(encoding="utf-8") == card.read_text(encoding="utf-8")
