"""The figures of docs/large.md, by hand."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def large(repository: Path) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(repository / "docs" / "make_large.py")))


def test_bytes_of_a_token(large: SimpleNamespace) -> None:
    """80 layers of 8192 · (2 · 8192 + 2 · 1024 + 3 · 28672) numbers and a head of 32000 · 8192: 68,713,185,280.

    In 4 bits with 4 bytes for 64 of them, 38,651,166,720 bytes. Keys and values of 1,024 tokens: 2 · 80 · 1024 · 2
    bytes each, 335,544,320. The head alone is 262,144,000 numbers, 147,456,000 bytes.
    """
    assert large.base_read() == 38_651_166_720 + 335_544_320
    assert large.head_read(large.LLAMA_70B) == 147_456_000
    assert large.cut_read() == (38_986_711_040 - 147_456_000) / 2 + 147_456_000


def test_exchanges_of_a_token(large: SimpleNamespace) -> None:
    """Two sums of 8192 16-bit numbers in each of 80 layers, and the token; 32,000 float32 logits, and the token."""
    assert large.exchanges("tensor") == [16384] * 160 + [4]
    assert large.exchanges("apart") == [128000, 4]
    assert large.exchanges("alone") == []


def test_seconds_of_a_token(large: SimpleNamespace) -> None:
    """At 1,000 GB/s, 1 ms an exchange and 1 MB/s: apart reads the base in 38.99 ms, and waits 2 + 128.004 ms."""
    link = large.Link("slow", 1e-3, 1e6)
    assert large.seconds("apart", 1000, link) == pytest.approx(0.038986711 + 0.130004)
    assert large.seconds("alone", 1000, link) == pytest.approx((large.base_read() + large.guide_read()) / 1e12)


def test_at_the_break_even_latency_cutting_costs_what_apart_costs(large: SimpleNamespace) -> None:
    speed = large.LINKS[0].speed
    for line, (mac, bandwidth) in zip(large.break_even(), large.MACS.items(), strict=True):
        latency = float(line.split()[0]) * 1e-6
        assert line.endswith(mac)
        own, apart = (large.seconds(way, bandwidth, large.Link("", latency, speed)) for way in ("tensor", "apart"))
        assert own == pytest.approx(apart, rel=0.002)  # the page rounds to whole µs
