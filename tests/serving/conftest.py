"""One server for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.serving.running import Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server on the bundled models."""
    with serving() as running:
        yield running
