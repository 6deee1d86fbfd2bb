"""The script that measures a card: at toy size on the CPU, and where there is no card."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of examples/bench/gpu.py, which imports nothing but Python's own."""
    monkeypatch.syspath_prepend(str(repository / "examples" / "bench"))
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    import gpu

    return gpu


def launch(repository: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(repository / "examples" / "bench" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_toy_on_the_cpu_ends_with_valid_json(repository: Path, tmp_path: Path) -> None:
    """Its base has 4 layers of 256 · (256 + 2 · 128 + 256 + 3 · 512) + 2 · 256 numbers, a norm, a head of 1000 · 256.

    That is 4 · 590,336 + 256 + 256,000 = 2,617,600 numbers of 4 bytes; with 8 + 2 tokens in the cache, of 2 · 4 layers
    of 128 numbers, 40,960 bytes more for every sequence.
    """
    out = tmp_path / "out"
    done = launch(repository, "--out", out, "--toy", "--parts", "twins", "training", "--bandwidth", 10)
    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["twins: done", "training: done"]
    found = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    assert found["device"]["name"].endswith("(CPU)")
    assert found["toy"] is True
    rows = found["parts"]["twins"]["measured"]["rows"]
    ways = {"base", "guide", "adapted", "guided", "shared", "one-pass"}
    assert {(row["way"], row["sequences"]) for row in rows} == {(way, n) for way in ways for n in (1, 3)}
    for row in rows:
        assert row["ms_per_step"] > 0
        expected = row["bytes_per_step"] / 10e9 * 1000 / row["ms_per_step"]
        assert row["of_limit"] == pytest.approx(expected, rel=0.02, abs=0.001)
    base = {row["sequences"]: row["bytes_per_step"] for row in rows if row["way"] == "base"}
    assert base == {1: 4 * 2_617_600 + 40_960, 3: 4 * 2_617_600 + 3 * 40_960}
    (case,) = found["parts"]["training"]["measured"]["cases"].values()
    assert all(way["pairs_per_second"] > 0 for way in case.values())


@pytest.mark.skipif(mx.is_available(mx.gpu), reason="MLX has a GPU here")
def test_without_a_card_it_is_one_line(repository: Path, tmp_path: Path) -> None:
    done = launch(repository, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("MLX has no GPU back end here: pip install")
    assert not (tmp_path / "out").exists()


def options(out: Path, **more: Any) -> Namespace:
    return Namespace(out=out, toy=True, bandwidth=None, **more)


def test_a_part_that_does_not_end_is_stopped_and_keeps_what_it_wrote(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processes that it has started; of which one would write a file after three seconds."""
    late, row = tmp_path / "late", tmp_path / "twins.json"
    text = f"(sleep 3; touch {late}) & echo '{{\"rows\": [1]}}' > {row}; sleep 30"
    monkeypatch.setattr(script, "command", lambda part, options: ["sh", "-c", text])
    found = script.run("twins", 1.2, options(tmp_path))
    assert found["ended"] == "stopped after 1 s"
    assert found["measured"] == {"rows": [1]}
    subprocess.run(["sleep", "2.5"], check=True)
    assert not late.exists()


def test_a_part_that_fails_and_one_without_time_are_named(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "command", lambda part, options: ["sh", "-c", "exit 3"])
    assert script.run("twins", 5, options(tmp_path))["ended"] == "exit code 3"
    assert script.run("twins", 0.5, options(tmp_path)) == {"ended": "left out: no time was left"}


def test_what_is_not_installed_is_left_out(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    assert script.run("official", 60, options(tmp_path)) == {"ended": "left out: PyTorch is not installed"}
    assert script.run("tests", 60, options(tmp_path)) == {"ended": "left out: pytest is not installed"}


def test_the_limits_leave_every_part_its_time(script: Any) -> None:
    """The parts before the last two may all meet their limits, and the next one still begins."""
    *first, _, _ = script.LIMITS.values()
    assert sum(first) <= 60 * script.MINUTES
