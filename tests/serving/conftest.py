"""Models, engines and a server for the tests of a file."""

from collections.abc import Iterator

import pytest

from parm_mlx.guidance.session import Session, load_session
from parm_mlx.serving.engine import Engine
from tests.serving.asking import engine_of
from tests.serving.running import MODEL, Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server on the bundled models."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Session:
    """The bundled models."""
    return load_session(MODEL)


@pytest.fixture
def engine(session: Session) -> Iterator[Engine]:
    """An engine on the bundled models."""
    with engine_of(session, max_queue=100) as running:
        yield running
