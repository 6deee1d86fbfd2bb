"""What stands before every request: host, origin, key and size are checked, and answers carry a strict policy."""

import hmac
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from parm_mlx.serving.errors import RequestError
from parm_mlx.serving.settings import LOCAL, MAX_BODY, ServerOptions

POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
MAX_DISCARDED = 16 * MAX_BODY  # bytes of a large body that are read, so that its client reads the answer
OPEN = ("/health", "/", "/docs", "/openapi.json")  # without a key: nothing in them is secret


class Guard:
    """The outermost layer of the application (ASGI)."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        self._app, self._options = app, options
        self._hosts = {each.lower() for each in (*LOCAL, options.host, options.allow_host) if each}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        begun, status = monotonic(), 0

        async def sending(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message.get("headers", ())}
                policy = [(k.encode(), v.encode()) for k, v in POLICY.items() if k.encode() not in own]
                if b"access-control-allow-origin" not in own and headers.get("origin") == self._options.allow_origin:
                    allowed = self._options.allow_origin
                    policy += [(b"access-control-allow-origin", allowed.encode())] if allowed else []
                message = {**message, "headers": [*message.get("headers", ()), *policy]}
            await send(message)

        try:
            self._check(scope, headers)
            body = await self._body(receive) if scope["method"] in ("POST", "PUT", "PATCH") else None
        except RequestError as error:
            await _refuse(error, sending)
        else:
            await self._app(scope, receive if body is None else _replayed(body, receive), sending)
        if self._options.log == "requests":
            path = json.dumps(scope["path"])[1:-1]
            sys.stderr.write(f"{scope['method']} {path} {status} {monotonic() - begun:.3f} s\n")

    def _check(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if "*" not in self._hosts and name.strip("[]").lower() not in self._hosts:
            raise RequestError("this host name is not served (--allow-host)", 403, code="host_not_allowed")
        origin = headers.get("origin")
        same = origin is not None and origin.partition("://")[2] == host
        if origin is not None and not same and origin != self._options.allow_origin:
            raise RequestError("pages of other origins may not ask (--allow-origin)", 403, code="origin_not_allowed")
        if scope["method"] == "OPTIONS":
            return
        path = scope["path"]
        if self._options.api_key and path not in OPEN and not path.startswith("/static/"):
            kind, _, bearer = headers.get("authorization", "").partition(" ")
            given = headers.get("x-api-key") or (bearer.strip() if kind.lower() == "bearer" else "")
            if not hmac.compare_digest(given.encode("latin-1"), self._options.api_key.encode()):
                raise RequestError("the API key is missing or wrong", 401, code="invalid_api_key")
        if scope["method"] == "POST" and not headers.get("content-type", "").lower().startswith("application/json"):
            raise RequestError("the Content-Type must be application/json", 415, code="not_json")

    @staticmethod
    async def _body(receive: Any) -> bytes:
        size, body = 0, bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client has gone", 400)
            size += len(message.get("body", b""))
            if size <= MAX_BODY:
                body += message.get("body", b"")
            if not message.get("more_body") or size > MAX_DISCARDED:
                break
        if size > MAX_BODY:
            raise RequestError(f"the body has more than {MAX_BODY} bytes", 413, code="too_large")
        return bytes(body)


def _replayed(body: bytes, receive: Any) -> Any:
    sent = False

    async def replay() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()  # type: ignore[no-any-return]

    return replay


async def _refuse(error: RequestError, send: Any) -> None:
    body = json.dumps(error.content).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= error.headers or {}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    with suppress(OSError):
        await send({"type": "http.response.start", "status": error.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})
