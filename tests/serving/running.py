"""A server for tests: the engine and the application in threads of this process, on the bundled models."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import uvicorn

from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.session import Session, load_session
from parm_mlx.serving.app import make_app
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.server import listen
from parm_mlx.serving.service import Service
from parm_mlx.serving.settings import ServerOptions
from parm_mlx.serving.steering import Menu

MODEL = "bundled"
QUESTION = "How do I bake bread?"


class Running:
    """A server that listens, and its parts."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.engine = service, service.engine
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    @property
    def session(self) -> Session:
        return self.engine.session


@contextmanager
def serving(session: Session | None = None, **options: Any) -> Iterator[Running]:
    """Starts a server with these options, and ends it."""
    given = replace(ServerOptions(port=0), **options)
    engine = Engine(lambda: session or load_session(MODEL), given)
    engine.start()
    loaded = engine.session
    menu = Menu(MODEL, loaded.objectives, tuple(1 / len(loaded.objectives) for _ in loaded.objectives), 1.0)
    service = Service(engine, menu, Sampling(temp=0), 32, given)
    with listen(given) as listener:
        server: Any = uvicorn.Server(uvicorn.Config(make_app(service), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Running(service, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
            engine.close(drain=False)
