import platform
from importlib.metadata import version

import pytest

from parm_mlx import machine


def test_the_memory_of_this_machine() -> None:
    assert 2**28 < machine.usable_memory() < 2**45


def test_what_metal_recommends_counts_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_metal", lambda: True)
    info = {"device_name": "Apple M2 Pro", "max_recommended_working_set_size": 7}
    monkeypatch.setattr(machine.mx, "device_info", lambda: info)
    assert machine.usable_memory() == 7
    assert machine.device_name() == "Apple M2 Pro (Metal)"


def test_the_line_of_a_measurement_names_versions_and_the_device() -> None:
    line = machine.describe_machine("rich")
    assert line.startswith(f"{platform.system()} {platform.machine()}, mlx {version('mlx')}, ")
    assert f"rich {version('rich')}, {machine.device_name()}" in line
