"""Requests that are wrong: each is refused with a 4xx in OpenAI's shape, and the server goes on."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from parm_mlx.serving import engine
from parm_mlx.serving.engine import Engine
from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.steering import Menu
from tests.serving.running import MODEL, QUESTION, Running, serving

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
RESPOND, MESSAGE = "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": QUESTION}]
FINE: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": USER, "max_tokens": 2},
    COMPLETE: {"model": MODEL, "prompt": "I am", "max_tokens": 2},
    RESPOND: {"model": MODEL, "input": QUESTION, "max_output_tokens": 2},
    MESSAGE: {"model": MODEL, "messages": USER, "max_tokens": 2},
}
JSON = {"Content-Type": "application/json"}


def ask(
    port: int, path: str, body: bytes | None, method: str = "POST", headers: dict[str, str] | None = None
) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {**JSON, **(headers or {})})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def assert_refused(found: tuple[int, bytes, Any], says: str = "") -> None:
    status, body, headers = found
    assert 400 <= status < 500, (status, body)
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"], error


WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((path, {"model": "other"}, "the model is bundled") for path in FINE),
    *((path, {"model": 5}, "model") for path in FINE),
    *((path, {"unknown": 1}, "unknown is not supported") for path in FINE),
    *((path, {"temperature": -1}, "temperature") for path in FINE),
    *((path, {"alpha": [1]}, "alpha has 1 weight") for path in FINE),
    *((path, {"stream": "yes"}, "stream") for path in FINE),
    (CHAT, {"model": "../../etc/passwd"}, "the model is bundled"),
    (CHAT, {"model": "bundled/../smollm2"}, "the model is bundled"),
    (CHAT, {"model": "bundled@"}, "alpha is empty"),
    (CHAT, {"model": "bundled@/etc/passwd"}, "not a number"),
    (CHAT, {"model": "x" * 5000}, "model"),
    (CHAT, {"model": "bundled@warmth=1,warmth=1"}, "twice"),
    (CHAT, {"model": "bundled@1,0", "alpha": [0, 1]}, "different preferences"),
    (CHAT, {"model": "bundled@base", "alpha": {"focus": 1}}, "different preferences"),
    (CHAT, {"alpha": [1, 2, 3]}, "alpha has 3 weight"),
    (CHAT, {"alpha": [0, 0]}, "all zero"),
    (CHAT, {"alpha": [-1, 2]}, "must be a finite number"),
    (CHAT, {"alpha": {"warm": 1}}, "did you mean 'warmth'"),
    (CHAT, {"alpha": {"warmth": "much"}}, "alpha"),
    (CHAT, {"alpha": 0.5}, "alpha"),
    (CHAT, {"alpha": True}, "alpha"),
    (CHAT, {"alpha": []}, "alpha has 0 weight"),
    (CHAT, {"alpha": {}}, "all zero"),
    (CHAT, {"alpha": [[1, 0]]}, "alpha"),
    (CHAT, {"alpha": ""}, "alpha is empty"),
    (CHAT, {"alpha": [1.0] * 200}, "alpha"),
    (CHAT, {"beta": 0}, "beta must be"),
    (CHAT, {"beta": 1, "alpha": "base"}, "the base answers alone"),
    (CHAT, {"beta": "strong"}, "beta"),
    (CHAT, {"explain": True, "alpha": "base"}, "the base answers alone"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "hello"}]}, "role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
    (CHAT, {"messages": [{"content": "hello"}]}, "role"),
    (CHAT, {"messages": [{"role": "user", "content": "half \ud800"}]}, "surrogate"),
    (CHAT, {"messages": USER * 1001}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "bread " * 3000}]}, "the prompt has"),
    (CHAT, {"max_tokens": 0}, "max_tokens"),
    (CHAT, {"max_tokens": 2.5}, "max_tokens"),
    (CHAT, {"max_tokens": 10**400}, "max_tokens"),
    (CHAT, {"max_tokens": 2, "max_completion_tokens": 3}, "differ"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 1000}, "n"),
    (CHAT, {"aplha": [1, 0]}, "did you mean 'alpha'"),
    (CHAT, {"temperature": 1e9}, "temperature"),
    (CHAT, {"temperature": "hot"}, "temperature"),
    (CHAT, {"temperature": 1e-7}, "temp must be 0 or"),
    (CHAT, {"top_p": 2}, "top_p"),
    (CHAT, {"top_k": -1}, "top_k"),
    (CHAT, {"min_p": 1.5}, "min_p"),
    (CHAT, {"seed": "lucky"}, "seed"),
    (CHAT, {"seed": 2**70}, "seed"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"stop": ["a"] * 100}, "stop"),
    (CHAT, {"stop": ["a", ""]}, "stop"),
    (CHAT, {"stop": "x" * 1000}, "stop"),
    (CHAT, {"presence_penalty": 3}, "presence_penalty"),
    (CHAT, {"frequency_penalty": -3}, "frequency_penalty"),
    (CHAT, {"logit_bias": {"hello": 1}}, "no token"),
    (CHAT, {"logit_bias": {"-1": 1}}, "no token"),
    (CHAT, {"logit_bias": {"99999999": 1}}, "no token"),
    (CHAT, {"logit_bias": {"5": 1000}}, "logit_bias"),
    (CHAT, {"logit_bias": [1]}, "logit_bias"),
    (CHAT, {"top_logprobs": 2}, "needs logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, "needs stream"),
    (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "json_schema goes with"),
    (CHAT, {"response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}, "goes with"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
        "refused",
    ),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"title": "x" * 70000}}}},
        "more than",
    ),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "no tools"),
    (CHAT, {"tools": [{"type": "code"}]}, "tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"functions": []}, "functions is not supported"),
    (CHAT, {"store": True}, "store"),
    (CHAT, {"suffix": "x"}, "suffix is not supported"),
    (COMPLETE, {"prompt": ""}, "prompt"),
    (COMPLETE, {"prompt": ["a", "b"]}, "prompt"),
    (COMPLETE, {"prompt": [1, 2]}, "prompt"),
    (COMPLETE, {"echo": True}, "echo"),
    (COMPLETE, {"suffix": "x"}, "suffix is not supported"),
    (RESPOND, {"previous_response_id": "resp_1"}, "previous_response_id is not supported"),
    (RESPOND, {"input": []}, "input"),
    (RESPOND, {"tools": []}, "tools is not supported"),
    (RESPOND, {"text": {"format": {"type": "json_schema"}}}, "schema goes with"),
    (MESSAGE, {"max_tokens": None}, "max_tokens"),
    (MESSAGE, {"messages": [{"role": "assistant", "content": "so"}]}, "the user's"),
    (MESSAGE, {"messages": [{"role": "system", "content": "so"}]}, "role"),
    (MESSAGE, {"stop_sequences": [5]}, "stop_sequences"),
]


@pytest.mark.parametrize(("path", "changes", "says"), WRONG, ids=[f"{p[4:]} {str(c)[:50]}" for p, c, _ in WRONG])
def test_a_wrong_field_is_named(server: Running, path: str, changes: dict[str, Any], says: str) -> None:
    assert_refused(ask(server.port, path, json.dumps({**FINE[path], **changes}).encode()), says)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"anyOf": [{"type": "object", "properties": {f"{i}{j}": {} for j in range(40)}} for i in range(60)]},
        {"const": "say <|end|> now"},
        False,
    ],
    ids=str,
)
def test_a_schema_that_nothing_follows_is_no_server_error(server: Running, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    status, body, _ = ask(
        server.port, CHAT, json.dumps({**FINE[CHAT], "max_tokens": 40, "response_format": form}).encode()
    )
    assert status == 400 or (status == 200 and json.loads(body)["choices"][0]["message"]["content"]), body


RAW = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"text"',
    b"{",
    b"{} {}",
    b"\xff\xfe{}",
    b'{"model": "\xff"}',
    b'{"model": NaN}',
    json.dumps({**FINE[CHAT], "metadata": {"a": ["\udc00"]}}).encode(),
    json.dumps({**FINE[CHAT], "\udc00": 1}).encode(),
    b'{"alpha": [NaN, 1]}',
    b'{"temperature": Infinity}',
    b'{"temperature": 1e999}',
    json.dumps({**FINE[CHAT], "metadata": {"a": 0.5}}).encode().replace(b"0.5", b"1e999"),
    json.dumps({**FINE[CHAT], "logit_bias": {str(i): "x" for i in range(300_000)}}).encode(),
    b'{"seed": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a": ' * 1000 + b"1" + b"}" * 1000,
    json.dumps({**FINE[CHAT], "metadata": {"a": [[[[[[[[[[[[[1]]]]]]]]]]]]]}})
    .encode()
    .replace(b"1]", b"[" * 80 + b"]" * 81),
]


@pytest.mark.parametrize("body", RAW, ids=range(len(RAW)))
def test_a_body_that_is_not_a_request(server: Running, body: bytes) -> None:
    assert_refused(ask(server.port, CHAT, body))


def test_large_bodies(server: Running) -> None:
    text = "x" * (5 << 20)
    found = ask(server.port, CHAT, json.dumps({**FINE[CHAT], "user": text}).encode())
    assert found[0] == 413
    assert_refused(found)
    chunked = (b"x" * 65536 for _ in range(100))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", CHAT, chunked, JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):  # the server has answered and closed before all was sent
        pass
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        (CHAT, "POST", {"Content-Type": "text/plain"}, 415),
        (CHAT, "POST", {"Host": "evil.example"}, 403),
        (CHAT, "POST", {"Host": "127.0.0.1.evil.example:80"}, 403),
        (CHAT, "POST", {"Host": ""}, 403),
        (CHAT, "POST", {"Origin": "http://evil.example"}, 403),
        (CHAT, "POST", {"Origin": "null"}, 403),
        (CHAT, "POST", {"X-PARM-Alpha": "warmth=2,cold=1"}, 400),
        (CHAT, "POST", {"X-PARM-Alpha": ""}, 400),
        (CHAT, "GET", {}, 405),
        (CHAT, "PUT", {}, 405),
        ("/v1/nothing", "POST", {}, 404),
        ("/v1/models/..%2f..%2fetc", "GET", {}, 404),
        ("/v1/models/other", "GET", {}, 404),
        ("/static/../app.py", "GET", {}, 404),
        ("/static/%2e%2e/app.py", "GET", {}, 404),
        ("/static/..%2f..%2fcli/main.py", "GET", {}, 404),
        ("/" + "x" * 30_000, "GET", {}, 404),
    ],
)
def test_wrong_headers_and_paths(server: Running, path: str, method: str, headers: dict[str, str], status: int) -> None:
    body = json.dumps(FINE[CHAT]).encode() if method in ("POST", "PUT") else None
    found = ask(server.port, path, body, method, headers)
    assert found[0] == status
    assert_refused(found)


def test_every_answer_has_the_policy(server: Running) -> None:
    for path in ("/", "/health", "/v1/models", "/static/main.js", "/v1/nothing"):
        headers = ask(server.port, path, None, "GET")[2]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_slow_and_broken_clients(server: Running) -> None:
    """Clients that send half a request, or nothing that is HTTP, hold nobody up."""
    halves = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"POST",
        b"\x16\x03\x01",
    ]
    sockets = []
    for half in halves * 10:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(half)
        sockets.append(connection)
    begun = time.monotonic()
    assert ask(server.port, CHAT, json.dumps(FINE[CHAT]).encode())[0] == 200
    assert time.monotonic() - begun < 5
    for connection in sockets:
        connection.close()
    assert ask(server.port, "/health", None, "GET")[0] == 200


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    allowed = {"allow_origin": "http://localhost:3000", "allow_host": "My.Mac"}
    with serving(api_key="sesame", batch_size=2, max_queue=1, **allowed) as running:
        yield running


def test_a_key(keyed: Running) -> None:
    body = json.dumps(FINE[CHAT]).encode()
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "sesame"}, {"X-API-Key": "s"}):
        found = ask(keyed.port, CHAT, body, headers=headers)
        assert found[0] == 401
        assert_refused(found)
    key = "sesame"
    assert ask(keyed.port, CHAT, body, headers={"Authorization": f"Bearer {key}"})[0] == 200
    assert ask(keyed.port, CHAT, body, headers={"X-API-Key": key})[0] == 200
    assert ask(keyed.port, "/metrics", None, "GET")[0] == 401
    assert ask(keyed.port, "/health", None, "GET")[0] == 200
    assert ask(keyed.port, "/", None, "GET")[0] == 200


def test_an_origin_and_a_host_that_are_allowed(keyed: Running) -> None:
    origin = {"Origin": "http://localhost:3000"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-stainless-os"}
    status, _, headers = ask(keyed.port, CHAT, None, "OPTIONS", asked)
    assert status == 200
    assert headers["access-control-allow-origin"] == origin["Origin"]
    status, _, headers = ask(keyed.port, CHAT, b"{}", headers=origin)
    assert (status, headers["access-control-allow-origin"]) == (401, origin["Origin"])  # the page may read why
    assert ask(keyed.port, "/health", None, "GET", {"Host": "my.mac:8080"})[0] == 200
    assert ask(keyed.port, "/health", None, "GET", {"Host": "other.mac"})[0] == 403


def test_more_answers_than_fit_are_never_asked_to_wait(keyed: Running) -> None:
    body = json.dumps({**FINE[CHAT], "n": 4}).encode()
    assert_refused(ask(keyed.port, CHAT, body, headers={"X-API-Key": "sesame"}), "n is 4")


def test_health_is_asked_of_the_engine_once_for_many(keyed: Running) -> None:
    before = keyed.engine.counts["requests"]
    for _ in range(20):
        assert ask(keyed.port, "/health", None, "GET")[0] == 200
    assert keyed.engine.counts["requests"] <= before + 2


def test_an_answer_that_fails_is_an_error_whole_or_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Engine) -> None:
        if self._running:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "_step", failing)
    monkeypatch.setattr(engine, "FAILURES", 100)
    with serving() as running:
        for path, body in FINE.items():
            status, whole, _ = ask(running.port, path, json.dumps(body).encode())
            assert (status, json.loads(whole)["error"]["type"]) == (500, "server_error")
            status, stream, _ = ask(running.port, path, json.dumps({**body, "stream": True}).encode())
            assert status == 200
            *_, last = stream.decode().removesuffix("data: [DONE]\n\n").strip().split("\n\n")
            assert last.startswith("event: error\n") == (path in (RESPOND, MESSAGE))
            error = json.loads(last.rpartition("data: ")[2])
            assert (error["type"], error["error"]["type"]) == ("error", "server_error")
            assert "out of memory" in error["error"]["message"]
            assert stream.endswith(b"data: [DONE]\n\n") == (path in (CHAT, COMPLETE))


def test_a_name_may_hold_an_at() -> None:
    menu = Menu("a@b", ("warm", "brief"), (0.5, 0.5), 1.0)
    assert menu.steering("a@b", None, None, {}).alpha == (0.5, 0.5)
    assert menu.steering("a@b@warm=1", None, None, {}).alpha == (1.0, 0.0)
    for other in ("a", "a@", "b", "a@b@"):
        with pytest.raises(RequestError):
            menu.steering(other, None, None, {})
