from collections.abc import Iterator
from pathlib import Path

import pytest

from parm_mlx.kernels import check, launcher


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels neither on nor off, and no decision of another test."""
    monkeypatch.delenv("PARM_MLX_KERNELS", raising=False)
    launcher.forget()
    yield
    launcher.forget()


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder without a record."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(params=["Metal", "CUDA"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that computes on a GPU, as far as the launcher can see."""
    for module in (launcher, check):
        monkeypatch.setattr(module, "gpu_backend", lambda: request.param)
