"""Trainings that are killed for real; the long form is ``python tests/kill_runs.py``."""

from pathlib import Path

from kill_runs import kill_runs


def test_killed_processes(tmp_path: Path) -> None:
    """The short version of the kill test: one run, ended at a random moment."""
    assert len(kill_runs(tmp_path, runs=1, kills=1, steps=16)) >= 1
