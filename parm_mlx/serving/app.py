"""The application: routes, streams, health and metrics."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import parm_mlx
from parm_mlx.errors import first_line
from parm_mlx.ranges import meant
from parm_mlx.serving.chat import ChatRequest, CompletionRequest, Completions
from parm_mlx.serving.errors import RequestError, content
from parm_mlx.serving.fields import SteeredFields, check_json
from parm_mlx.serving.guard import Guard
from parm_mlx.serving.messages import Messages, MessagesRequest
from parm_mlx.serving.metrics import metrics
from parm_mlx.serving.responses import ResponseRequest, Responses
from parm_mlx.serving.service import Answers, Service, Wanted
from parm_mlx.serving.steering import HEADER, Steering, presets

FIELDS = sorted({*ChatRequest.model_fields, *ResponseRequest.model_fields, *MessagesRequest.model_fields})
STATIC = Path(__file__).parent / "static"
REFUSED: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {}}}
    for status, what in {
        400: "The request is wrong; the error names the field.",
        401: "The API key is missing or wrong.",
        403: "The host or origin is not allowed.",
        404: "There is no such model.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        429: "Too many requests wait.",
        503: "The engine has ended.",
    }.items()
}


def make_app(service: Service, on_stop: Callable[[], None] = lambda: None) -> Any:
    """Makes the application for a service; ``on_stop`` is called when the server has served its last request."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(on_stop)

    app = FastAPI(
        title="parm-mlx",
        version=parm_mlx.__version__,
        description=f"Answers steered by preference. α also goes into the header {HEADER} or the model's name.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=REFUSED,
    )
    _add_errors(app)
    _add_generation(app, service)
    _add_reports(app, service)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    if service.options.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[service.options.allow_origin],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(_StrictJson)
    return Guard(app, service.options)


class _StrictJson:
    """Refuses bodies that are not JSON, which the framework would read more kindly."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        message = await receive()
        try:
            check_json(message.get("body", b""))
        except RequestError as error:
            await JSONResponse(error.content, error.status)(scope, receive, send)
            return
        first = True

        async def again() -> Any:
            nonlocal first
            if first:
                first = False
                return message
            return await receive()

        await self._app(scope, again, send)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.content, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = max(error.errors(), key=lambda each: len(each["loc"]))  # of a union, the way that goes deepest
        field = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int | str))[:200]
        if first["type"] == "extra_forbidden":
            like = meant(field.rpartition(".")[2], FIELDS)
            message, code = f"the field {field} is not supported{like}", "unknown_field"
        else:
            message, code = f"{field or 'the body'}: {first['msg']}", "invalid_field"
        return JSONResponse(content(message, 400, field or None, code), 400)

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(content(str(error.detail), error.status_code), error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(content(f"{type(error).__name__}: {first_line(error)}", 500), 500)


class _Writer(Protocol):
    """Writes the answers to a request in the shape of its protocol."""

    LAST: ClassVar[str | None]  # ends a stream; None where the events of a stream have names

    async def whole(self) -> dict[str, Any]:
        """The response of a request that does not stream."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a response that streams."""


def _add_generation(app: FastAPI, service: Service) -> None:
    def steering(request: Request, body: SteeredFields) -> Steering:
        return service.menu.steering(body.model, body.alpha, body.beta, request.headers)

    @app.post("/v1/chat/completions", summary="Chat completions")
    async def chat(request: Request, body: ChatRequest) -> Any:
        wanted = body.read(steering(request, body), service.vocabulary, service.tokenizer.has_tool_calling)
        return await _answered(service, request, body, wanted, Completions)

    @app.post("/v1/completions", summary="Completions of a text")
    async def complete(request: Request, body: CompletionRequest) -> Any:
        wanted = body.read(steering(request, body), service.vocabulary)
        return await _answered(service, request, body, wanted, Completions)

    @app.post("/v1/responses", summary="Responses")
    async def respond(request: Request, body: ResponseRequest) -> Any:
        return await _answered(service, request, body, body.read(steering(request, body)), Responses)

    @app.post("/v1/messages", summary="Messages, as Anthropic's clients ask")
    async def message(request: Request, body: MessagesRequest) -> Any:
        return await _answered(service, request, body, body.read(steering(request, body)), Messages)


async def _answered(
    service: Service,
    request: Request,
    body: SteeredFields,
    wanted: Wanted,
    writer: Callable[[Answers, Any, Service], _Writer],
) -> Any:
    answers = await service.begin(wanted)
    written = writer(answers, body, service)
    if body.stream:
        lines = _lines(answers, written.events(), written.LAST)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"cache-control": "no-store"})
    whole, gone = asyncio.ensure_future(written.whole()), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(await whole) if whole.done() else PlainTextResponse("", 499)
    finally:
        answers.cancel()
        whole.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _lines(answers: Answers, events: AsyncIterator[dict[str, Any]], last: str | None) -> AsyncIterator[str]:
    """Events as server-sent events; a client that goes away ends them, and the answers."""
    named = last is None
    try:
        async for event in events:
            yield _line(event, event["type"] if named else None)
    except RequestError as error:
        yield _line(error.content, "error" if named else None)
    except Exception as error:
        yield _line(content(f"{type(error).__name__}: {first_line(error)}", 500), "error" if named else None)
    finally:
        answers.cancel()
    if last is not None:
        yield f"data: {last}\n\n"


def _line(event: Mapping[str, Any], name: str | None) -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _add_reports(app: FastAPI, service: Service) -> None:
    menu = service.menu

    @app.get("/v1/models", summary="Models: the default, the base alone, and presets of alpha")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": presets(menu), "steering": service.steering()}

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str, request: Request) -> dict[str, Any]:
        menu.steering(name, None, None, {})
        return {"id": name, "object": "model", "created": 0, "owned_by": "parm-mlx"}

    @app.get("/health", summary="Whether answers come; it asks for a token")
    async def health() -> JSONResponse:
        problem = await service.problem()
        state = {"status": "error", "message": problem} if problem else {"status": "ok"}
        counts = {"active": service.engine.active, "queued": service.engine.queued}
        return JSONResponse({**state, **counts}, 503 if problem else 200)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counts for Prometheus")
    async def report() -> PlainTextResponse:
        return PlainTextResponse(metrics(service.engine), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(STATIC / "docs.html")
