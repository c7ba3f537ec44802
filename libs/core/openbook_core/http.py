"""HTTP in OpenAI's shapes, for the services that speak it: bodies, errors, tokens, request ids, the listening socket.

Needs starlette, uvicorn and pydantic, which those services depend on; nothing else of openbook_core imports this.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openbook_core.errors import (
    ArgumentError,
    AuthenticationError,
    DeadlineError,
    ForbiddenError,
    OpenbookError,
    Reason,
    UnavailableError,
)
from openbook_core.security.options import Protection
from openbook_core.security.tokens import TokenFile, bind_caller
from openbook_core.telemetry import bind_request_id
from openbook_core.tracing import annotate, serving

# Answered without a token: the page, which asks for one, probes, and numbers without text for Prometheus.
OPEN_PATHS = ("/", "/healthz", "/readyz", "/metrics")

# A whole body must have come within this.
_BODY_S = 60.0

# Of a refused request's body, the most that is read and dropped, and the longest that this may take.
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_S = 10.0


class StrictBody(BaseModel):
    """A request's JSON object: unknown fields are refused by name, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Body = TypeVar("Body", bound=StrictBody)


class BodyTooLargeError(ArgumentError):
    """A request body of more than the service takes: HTTP 413."""

    http_status = 413


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises BodyTooLargeError as soon as it is known to be over `limit` bytes, DeadlineError where the
    client leaves before its end or takes more than a minute to send it."""
    size, parts = 0, []
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        _require_size(int(declared), limit)
    try:
        async with asyncio.timeout(_BODY_S):
            async for part in request.stream():
                size += len(part)
                _require_size(size, limit)
                parts.append(part)
    except ClientDisconnect:
        raise DeadlineError("the caller went away before its body was read") from None
    except TimeoutError:
        raise DeadlineError(f"after {_BODY_S:g} s only {size} bytes of the body had come; send it at once") from None
    return b"".join(parts)


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise BodyTooLargeError(f"the body has more than {limit} bytes; send less text")


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Raises ArgumentError whose field is the request's field at fault, None if the body is no JSON object."""
    try:
        parsed: Any = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"the body is not JSON of whole Unicode characters: {error}") from None
    if not isinstance(parsed, dict):
        raise ArgumentError(f"the body must be a JSON object, given {type(parsed).__name__}")
    data = {key: value for key, value in parsed.items() if value is not None}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        item = error.errors()[0]
        message = item["msg"].removeprefix("Value error, ")
        field, _, rest = message.partition(": ")
        if item["loc"]:
            field = ".".join(str(part) for part in item["loc"] if part not in _UNION_NAMES)
            rest = message
        given = "" if item["type"] in ("missing", "value_error") else f"; given {str(item['input'])[:80]!r}"
        raise ArgumentError(f"{field}: {rest}{given}", field=field) from None


_UNION_NAMES = ("str", "list[str]", "list[TextPart]", "constrained-str")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def route_error_response(request: Request, error: HTTPException, endpoint: str) -> JSONResponse:
    """OpenAI's error object for a path or method that the API does not have; `endpoint` is what it is there for."""
    path = request.url.path
    reason, message = Reason.BAD_ARGUMENT, f"{path}: {error.detail}"
    if error.status_code == 404:
        reason, message = Reason.NOT_FOUND, f"there is no {path}; answers come from {endpoint}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path} does not take {request.method}; use {allowed}"
    return JSONResponse(
        error_body(OpenbookError(message, reason=reason), error.status_code),
        status_code=error.status_code,
        headers=error.headers,
    )


def error_response(error: OpenbookError) -> JSONResponse:
    """OpenAI's error object, with Retry-After where the error says when to come back."""
    headers = {"retry-after": str(max(1, math.ceil(error.retry_after_s)))} if error.retry_after_s is not None else {}
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = 'Bearer realm="openbook"'
    elif isinstance(error, ForbiddenError):
        headers["www-authenticate"] = 'Bearer realm="openbook", error="insufficient_scope"'
    return JSONResponse(error_body(error, error.http_status), status_code=error.http_status, headers=headers)


def error_body(error: OpenbookError, status: int) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    kind = "rate_limit_error" if status == 429 else kind
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": str(error.reason)}}


class Observe:
    """Takes over or makes `x-request-id`, sends it back, and tells `count` the route and status of each reply.

    With `tokens` a request needs one of scope "read", but for OPEN_PATHS; what is not one of them is a span of its
    caller's trace.

    Plain ASGI: Starlette's function middleware would hide from the routes that a client has left.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None], tokens: TokenFile | None = None) -> None:
        self._app, self._count, self._tokens = app, count, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        identity = bind_request_id(headers.get("x-request-id"))
        path = f"{scope['method']} {scope['path']}"

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._count(route, message["status"])
                annotate(status=message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", identity.encode("latin-1"))]
            await send(message)

        if scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, observed)
            return
        with serving(f"HTTP {path}", headers):
            if self._tokens is not None:
                try:
                    bind_caller(self._tokens.admit(headers.get("authorization"), "read", path))
                except OpenbookError as error:
                    await error_response(error)(scope, receive, observed)
                    return
            await self._app(scope, receive, observed)


def http_server(app: ASGIApp, protection: Protection) -> uvicorn.Server:
    """uvicorn as the services run it."""
    tls = protection.tls
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            ssl_context_factory=None if tls is None else lambda *_: tls.context(),
        )
    )


class DrainBody:
    """Before an answer leaves, reads and drops what the service left unread of the request's body, within bounds.

    A connection that closes with unread bytes is reset, and the client may never see why it was refused. Beyond the
    bounds it is closed all the same, and so is that of a client that asked before it sent (`expect: 100-continue`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        asks = headers.get(b"expect", b"").lower() == b"100-continue"

        async def received() -> Message:
            nonlocal unread, asks
            asks = False
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drained(message: Message) -> None:
            if message["type"] == "http.response.start" and unread:
                size = 0
                with suppress(TimeoutError):
                    async with asyncio.timeout(_DRAIN_S):
                        while unread and not asks and size < _DRAIN_BYTES:
                            size += len((await received()).get("body", b""))
                if unread:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, received, drained)


def listen(host: str, port: int, field: str = "port") -> socket.socket:
    """A listening socket; raises UnavailableError with reason PORT_IN_USE naming the setting `field`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where TCP is named: else an answer in two writes waits 40 ms in between.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what uses it or choose another {field}",
            field=field,
            reason=Reason.PORT_IN_USE,
        ) from error
    return listener
