"""``parm-mlx serve`` as a process: its end, its address and its options."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from tests.serving.running import MODEL, QUESTION

LONG = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 30, "stream": True}


@contextmanager
def process(*options: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A server, and its port."""
    command = [sys.executable, "-m", "parm_mlx.cli.main", "serve", "--model", MODEL, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            yield server, int(line.split("http://127.0.0.1:")[1].split()[0])
        finally:
            server.kill()


@contextmanager
def stream(port: int, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """An answer that has begun to come."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        body = json.dumps({**LONG, "max_tokens": tokens})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            assert response.status == 200
            response.readline()
            yield response


def test_a_second_signal_ends_what_is_left_with_an_error() -> None:
    with process() as (server, port), stream(port, 1000) as response:
        server.send_signal(signal.SIGINT)
        assert server.stderr is not None
        assert "ends after 1 answer; another Ctrl-C ends it now" in server.stderr.readline()
        server.send_signal(signal.SIGINT)
        assert "the server is shutting down" in response.read().decode().split("\n\n")[-3]
        assert server.wait(timeout=20) == 128 + signal.SIGINT
        assert server.stderr.read() == "interrupted\n"


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def ends_well(response: http.client.HTTPResponse) -> bool:
    """True if the last line of a stream comes."""
    try:
        return response.read().endswith(b"data: [DONE]\n\n")
    except (ConnectionError, http.client.IncompleteRead):
        return False


def read(port: int, tokens: int) -> str:
    with stream(port, tokens) as response:
        return response.read().decode()


def test_a_server_that_is_asked_to_end_gives_what_was_asked_for() -> None:
    with process() as (server, port), stream(port, 150) as response:
        server.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while is_open(port):
            assert time.monotonic() < end
            time.sleep(0.02)
        lines = response.read().decode().split("\n\n")
        assert lines[-2] == "data: [DONE]"
        assert json.loads(lines[-3].removeprefix("data: "))["choices"][0]["finish_reason"] in ("length", "stop")
        assert server.wait(timeout=20) == 128 + signal.SIGTERM
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def test_a_killed_server_is_noticed_and_its_port_is_free(tmp_path: Path) -> None:
    with process() as (server, port), ExitStack() as streams:
        responses = [streams.enter_context(stream(port, 900)) for _ in range(4)]
        begun = time.monotonic()
        server.kill()
        assert not any(map(ends_well, responses))
        assert time.monotonic() - begun < 1
        server.wait()
        with process("--port", str(port)) as (_, again):
            assert again == port
            assert read(port, 2).endswith("data: [DONE]\n\n")


def command(*options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    full = [sys.executable, "-m", "parm_mlx.cli.main", "serve", "--model", MODEL, *options]
    return subprocess.run(full, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_options_are_checked_before_models_are_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = command("--port", str(port))
        assert found.returncode == 2
        assert f"127.0.0.1:{port} cannot be listened at" in found.stderr
    found = command("--host", "0.0.0.0")
    assert found.returncode == 2
    assert "needs --api-key" in found.stderr
    found = command("--api-key", "sésame")
    assert found.returncode == 2
    assert "--api-key goes into a header of HTTP" in found.stderr
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    found = command(PYTHONPATH=str(tmp_path))
    assert found.returncode == 2
    assert "serve needs the extra serve (fastapi is not installed)" in found.stderr
    assert "pip install 'parm-mlx[serve]'" in found.stderr


def test_a_hanging_engine_ends_the_process(tmp_path: Path) -> None:
    """A step that never ends: its client is told, and the process ends with an error."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "class Late:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'parm_mlx.serving.server':\n"
        "            from parm_mlx.serving.engine import Engine\n"
        "            step = Engine._step\n"
        "            def hanging(self):\n"
        "                if self._running: time.sleep(1000)\n"
        "                step(self)\n"
        "            Engine._step = hanging\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    full = [sys.executable, "-m", "parm_mlx.cli.main", "serve", "--model", MODEL, "--port", "0", "--stall-timeout", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        port = int(server.stdout.readline().split("http://127.0.0.1:")[1].split()[0])
        told: list[Any] = []
        reader = threading.Thread(target=lambda: told.append(read(port, 10)))
        reader.start()
        assert server.wait(timeout=30) == 1
        reader.join(timeout=10)
        assert "no step has ended for" in server.stderr.read()
        assert '"error"' in told[0]
        assert "no step has ended for" in told[0]
