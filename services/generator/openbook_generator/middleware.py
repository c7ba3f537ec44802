"""Request ids and counts for every HTTP request."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openbook_core.telemetry import bind_request_id
from openbook_generator.metrics import Metrics


class Observe:
    """Takes over or makes `x-request-id`, sends it back, and counts the reply by route and status.

    Plain ASGI: Starlette's function middleware would hide from the routes that a client has left.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        identity = bind_request_id(given or None)

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, message["status"]).inc()
                message["headers"] = [*message["headers"], (b"x-request-id", identity.encode("latin-1"))]
            await send(message)

        await self._app(scope, receive, observed)
