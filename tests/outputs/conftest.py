import pytest

from parm_mlx.outputs import (
    partial,
)


@pytest.fixture(params=["renames of the system", "plain renames"])
def any_rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to rename: that of the system, where it has one, and the one for file systems that have none."""
    if request.param == "plain renames":
        monkeypatch.setattr(partial, "_system_call", lambda: None)
    elif partial._system_call() is None:
        pytest.skip("this system has no such rename")
